"""Figures: what they show, and that no text can break them."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from wideresnet.base.metrics import Calibration
from wideresnet.report.calibration import draw_calibration
from wideresnet.report.figures import (
    DARK,
    LIGHT,
    SERIES_COLORS,
    Curve,
    Theme,
    Tile,
    draw_comparison,
    draw_confusion,
    draw_curves,
    draw_predictions,
    image_to_png,
    in_dark,
    to_png,
    to_svg,
)
from wideresnet.report.reproduction_figures import draw_bands, draw_costs, draw_errors

CURVE = Curve(
    label="a run",
    split="test",
    epochs=[1, 2, 3, 4],
    train_error_pct=[80.0, 40.0, 20.0, 12.5],
    train_loss=[2.0, 1.5, 1.0, 0.5],
    lr_epochs=[0, 1, 2, 3, 4],
    lr=[0.1, 0.1, 0.1, 0.02, 0.02],
    evaluated_epochs=[2, 4],
    error_pct=[35.0, 15.25],
    loss=[1.2, 0.7],
    lr_is_stepped=True,
)
HOSTILE = [
    "caf\udce9",
    "\ud83d",
    "a\x00b",
    "\x1b[31m",
    "\u202eabc",
    "\ufffe",
    "\ue000",
    "\x85",
    "e" + 9 * "\u0301",
    "\u200d",
]
ODD_TEXTS = ["$x^", "_hidden", "two\nlines", "\u65e5\u672c", "<script>", "", "a" * 200, *HOSTILE]


def tile(wrong: bool, channels: int = 3, name: str = "cat") -> Tile:
    return Tile(np.zeros((8, 8, channels), np.uint8), "dog", name, 0.75, wrong)


def values(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def legend(axes: Axes) -> list[Text]:
    found = axes.get_legend()
    assert found is not None
    return found.get_texts()


def legend_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in legend(axes)]


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_curves_show_every_value_and_the_legend_gives_the_last() -> None:
    error, loss, lr = draw_curves(CURVE).axes
    train, test = error.lines
    assert values(train) == (CURVE.epochs, CURVE.train_error_pct)
    assert values(test) == (CURVE.evaluated_epochs, CURVE.error_pct)
    assert legend_texts(error) == ["train 12.50 %", "test 15.25 %"]
    assert legend_texts(loss) == ["train 0.500", "test 0.700"]
    assert values(lr.lines[0]) == (CURVE.lr_epochs, CURVE.lr)


def test_a_stepped_lr_holds_from_the_first_step_and_drops_after_the_epoch_before() -> None:
    lr = draw_curves(CURVE).axes[2]
    assert lr.lines[0].get_drawstyle() == "steps-pre"  # the rate at an epoch's end is that of its whole epoch
    assert values(lr.lines[0])[0][0] == lr.get_xlim()[0] == 0


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_errors_that_span_much_get_a_logarithmic_axis_with_room_on_both_sides(scale: float) -> None:
    train, test = [80 * scale, 40 * scale, 4 * scale, 0.0], [35 * scale, 15 * scale]
    curve = dataclasses.replace(CURVE, train_error_pct=train, error_pct=test)
    error = draw_curves(curve).axes[0]
    low, high = error.get_ylim()
    assert error.get_yscale() == "log"
    assert 2 * scale < low < 4 * scale
    assert high > 80 * scale
    assert len([tick for tick in error.get_yticks() if low <= tick <= high]) >= 2


def test_a_tiny_value_does_not_stretch_the_axis_over_all_others() -> None:
    error = draw_curves(dataclasses.replace(CURVE, train_error_pct=[80.0, 40.0, 20.0, 5e-324])).axes[0]
    assert error.get_ylim()[0] > 1e-5


@pytest.mark.parametrize("errors", [[0.0] * 4, [50.0] * 4, [90.0, 88.0, 85.0, 60.0], [3.0, 0.0, 0.0, 0.0]])
def test_errors_that_span_little_get_a_linear_axis_that_shows_all(errors: list[float]) -> None:
    curve = dataclasses.replace(CURVE, train_error_pct=errors, error_pct=errors[-2:])
    error = draw_curves(curve).axes[0]
    low, high = error.get_ylim()
    assert error.get_yscale() == "linear"
    assert low <= min(errors) <= max(errors) <= high
    assert to_svg(draw_curves(curve))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_text_of_a_figure_is_nine_pixels_high_on_the_page_that_it_is_for(narrow: bool) -> None:
    """The smallest width is 360 px for a telephone, 648 px (43 rem less the margins) for the wide figure."""
    pairs = [("a group", 12), ("others", 13)]
    figures = [
        draw_curves(CURVE, narrow=narrow),
        draw_comparison([CURVE, CURVE], narrow=narrow),
        draw_confusion(np.eye(25, dtype=int), pairs, narrow=narrow),
    ]
    for figure in figures:
        px_per_point = (360 if narrow else 648) / (72 * figure.get_figwidth())
        sizes = [float(text.get_fontsize()) for text in figure.findobj(Text) if text.get_text()]  # type: ignore[union-attr]
        assert min(sizes) * px_per_point >= 9


def test_svg_has_real_text_and_equal_figures_are_equal_files() -> None:
    svg = to_svg(draw_curves(CURVE))
    assert b">learning rate</text>" in svg
    assert svg == to_svg(draw_curves(CURVE))


@pytest.mark.parametrize("text", HOSTILE)
def test_svg_is_well_formed_whatever_the_text(text: str) -> None:
    ElementTree.fromstring(to_svg(draw_comparison([dataclasses.replace(CURVE, label=text)] * 2)))
    ElementTree.fromstring(to_svg(draw_confusion(np.eye(25, dtype=int), [(text, 25)])))


def test_a_confusion_picture_has_a_cell_per_pair_of_classes_and_colors_only_what_occurred() -> None:
    matrix = np.diag([10] * 30)
    matrix[3, 7] = 1
    figure = draw_confusion(matrix, [("first", 10), ("second", 20)])
    (axes,) = figure.axes
    cells = np.asarray(axes.images[0].get_array())
    assert cells.shape == (30, 30, 3)
    colored = (cells != 1).any(axis=2)
    assert np.array_equal(colored, matrix > 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert list(axes.get_yticks()) == [4.5, 19.5]


def test_class_names_are_short_enough_for_a_picture_of_predictions_and_the_title_has_both_lines() -> None:
    figure = draw_predictions([tile(True)], "the error", "the choice")
    assert figure.get_suptitle() == "the error\nthe choice"


def test_held_out_images_are_called_validation() -> None:
    axes = draw_curves(dataclasses.replace(CURVE, split="val")).axes[0]
    assert legend_texts(axes)[1] == "validation 15.25 %"


def test_a_stepped_lr_gets_a_logarithmic_axis_unless_it_is_zero() -> None:
    assert draw_curves(CURVE).axes[2].get_yscale() == "log"
    assert draw_curves(dataclasses.replace(CURVE, lr=[0.0] * 5)).axes[2].get_yscale() == "linear"
    assert draw_curves(dataclasses.replace(CURVE, lr_is_stepped=False)).axes[2].get_yscale() == "linear"


def test_a_run_that_was_not_evaluated_yet_is_drawn() -> None:
    curve = dataclasses.replace(CURVE, evaluated_epochs=[], error_pct=[], loss=[])
    assert len(draw_curves(curve).axes[0].lines) == 1
    assert legend_texts(draw_comparison([curve, CURVE]).axes[0]) == ["a run not evaluated yet", "a run 15.25 %"]


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, contrast ratio."""

    def luminance(color: str) -> float:
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_lines_stand_out_from_the_background(theme: Theme) -> None:
    for color in (theme.ink, theme.muted, theme.accent, theme.wrong):
        assert contrast(color, theme.background) >= 4.5
    for color in SERIES_COLORS:
        assert contrast(color, theme.background) >= 3, color


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_figure_has_the_background_of_its_theme(theme: Theme) -> None:
    picture = np.asarray(opened(to_png(draw_curves(CURVE, theme), dpi=50)).convert("RGB"))
    assert to_hex(picture[0, 0] / 255) == theme.background


COUNTS = np.array([0, 3, 20])
CELL = {
    "label": "WRN-16-1", "dataset": "cifar10", "published_pct": 5.0, "median_pct": 5.5, "n": 2, "macs": 10**8,
    "runs": [{"state": "finished", "test_error_pct": error, "params": 10**6, "train_s": 600.0} for error in (5.2, 5.8)],
}  # fmt: skip


@pytest.mark.parametrize(
    "draw",
    [
        functools.partial(draw_curves, CURVE),
        functools.partial(draw_comparison, [CURVE] * 9),
        functools.partial(draw_calibration, Calibration(COUNTS, np.array([np.nan, 0.4, 0.8]), np.array([0, 0.5, 0.9]))),
        functools.partial(draw_errors, [CELL]),
        functools.partial(draw_costs, [CELL]),
        functools.partial(draw_bands, [("WRN-16-1", [CURVE, CURVE])]),
    ],
    ids=lambda draw: draw.func.__name__,
)
def test_a_light_figure_turned_dark_is_the_dark_one(draw: Callable[[Theme], Figure]) -> None:
    """All but the names that matplotlib makes of contents, colors among them."""

    def nameless(svg: bytes) -> bytes:
        return re.sub(rb'(id="|href="#|url\(#)[\w-]+', rb"\1", svg)

    light, dark = to_svg(draw(LIGHT)), to_svg(draw(DARK))
    assert nameless(in_dark(light)) == nameless(dark)
    assert nameless(light) != nameless(dark)


def test_twenty_four_runs_differ_in_color_or_style() -> None:
    curves = [dataclasses.replace(CURVE, label=str(number)) for number in range(24)]
    axes = draw_comparison(curves).axes[0]
    strong = [line for line in axes.lines if line.get_alpha() is None]
    assert len({(line.get_color(), line.get_linestyle()) for line in strong}) == 24


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_can_be_drawn(text: str) -> None:
    assert opened(to_png(draw_predictions([tile(True, name=text)], text), dpi=40)).size[0] > 0
    assert to_svg(draw_comparison([dataclasses.replace(CURVE, label=text)] * 2))


def test_dollars_and_underscores_stay_as_they_are() -> None:
    curves = [dataclasses.replace(CURVE, label=label) for label in ("_a", "$b$")]
    texts = legend(draw_comparison(curves).axes[0])
    assert [text.get_text() for text in texts] == ["_a 15.25 %", "$b$ 15.25 %"]
    assert not any(text.get_parse_math() for text in texts)


def test_only_wrong_predictions_are_red() -> None:
    figure = draw_predictions([tile(False), tile(True), tile(False, channels=1)], "title")
    colors = [to_hex(axes.title.get_color()) for axes in figure.axes]
    assert colors == [LIGHT.ink, LIGHT.wrong, LIGHT.ink]
    assert [axes.get_title() for axes in figure.axes] == ["cat (75 %)"] * 3
    assert [axes.get_xlabel() for axes in figure.axes] == ["true: dog"] * 3


def test_small_images_are_drawn_pixel_by_pixel() -> None:
    for axes in draw_predictions([tile(False), tile(False, channels=1)], "title").axes:
        assert axes.images[0].get_interpolation() == "nearest"


@pytest.mark.parametrize("channels", [1, 3])
def test_an_embedded_image_keeps_every_pixel(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(image_to_png(pixels))).reshape(pixels.shape), pixels)


def test_drawing_leaves_matplotlibs_global_state_alone() -> None:
    code = (
        "import sys, matplotlib; from matplotlib import rcParams\n"
        "def state(): return {k: rcParams[k] for k in rcParams if k != 'backend'}  # reading that imports pyplot\n"
        "before = state(); from wideresnet.report.figures import *\n"
        "c = Curve('a', 'test', [1], [1.], [1.], [1.], [1.], [1], [1.], [1.], True); to_svg(draw_curves(c))\n"
        "assert 'matplotlib.pyplot' not in sys.modules; assert state() == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
