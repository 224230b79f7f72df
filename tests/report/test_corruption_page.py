"""The page and the figures about corrupted images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from page_runs import Page

from wideresnet.data.corruptions import CORRUPTIONS, GROUPS, corrupt
from wideresnet.report.corruptions import draw_corruption_errors, draw_examples, error_rows, spelled, write_corruptions
from wideresnet.report.figures import DARK, LIGHT, Theme, to_svg


def make_result(names: tuple[str, ...] = CORRUPTIONS) -> dict[str, Any]:
    """Errors that tell every cell apart."""
    errors = {name: [10.0 + i + step for step in range(5)] for i, name in enumerate(names)}
    clean = {
        "weights": "runs/<b>mine", "network": "WRN-16-2", "dataset": "pets & co", "num_images": 1234, "error_pct": 8.25,
        "loss": 0.3, "ece_pct": 2.5, "device": "cpu", "precision": "fp32", "notes": ["a note on the data"],
    }  # fmt: skip
    means = {"mean_error_pct": float(np.mean(list(errors.values()))), "mean_loss": 0.75, "mean_ece_pct": 5.5}
    loss = {name: [0.5, 0.6, 0.7, 0.9, 1.05] for name in names}
    ece = {name: [3.5, 4.5, 5.5, 6.5, 7.5] for name in names}
    severities = [1, 2, 3, 4, 5]
    return {"clean": clean, "severities": severities, "corruptions": errors, "loss": loss, "ece_pct": ece, **means,
            "notes": ["made here"]}  # fmt: skip


def make_image(channels: int = 3, height: int = 10, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_the_page_has_every_number_and_loads_nothing(tmp_path: Path) -> None:
    result, path = make_result(), tmp_path / "new" / "page.html"
    write_corruptions(path, result, make_image())
    page = Page(path)
    for text in (
        "16.50 %",
        "8.25 %",
        "0.3000 nats",
        "2.50 %",
        "0.7500 nats",
        "5.50 %",
        "a note on the data",
        "made here",
    ):
        assert text in page.texts, text
    assert "runs/<b>mine; 1,234 test images per corruption and severity" in page.texts
    for name, row in result["corruptions"].items():
        assert spelled(name) in page.texts
        assert all(f"{error:.2f}" in page.texts for error in row)
    assert all("http" not in (a["src"] or "") for a in page.all("img"))
    alt = page.all("img")[0]["alt"] or ""
    assert "clean 8.25 %, mean 16.50 %, worst JPEG compression with 21.00 %" in alt


def test_a_row_is_a_corruption_and_the_last_the_mean() -> None:
    first, *_, last = error_rows(make_result())
    assert first == ("Gaussian noise", "10.00", "11.00", "12.00", "13.00", "14.00", "12.00", "0.750", "5.50")
    assert last == ("mean", "14.50", "15.50", "16.50", "17.50", "18.50", "16.50", "0.750", "5.50")


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_panel_per_group_has_its_curves_and_the_clean_error(theme: Theme, narrow: bool) -> None:
    result = make_result()
    figure = draw_corruption_errors(result, theme, narrow=narrow)
    assert to_hex(figure.get_facecolor()) == theme.background
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(GROUPS)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes, names in zip(figure.axes, GROUPS.values(), strict=True):
        clean, *lines = axes.get_lines()
        assert set(np.ravel(clean.get_ydata())) == {8.25}
        assert [list(np.ravel(line.get_ydata())) for line in lines] == [result["corruptions"][name] for name in names]
        assert (
            len({line.get_color() for line in lines}) == len({str(line.get_marker()) for line in lines}) == len(lines)
        )
        legend = axes.get_legend()
        assert legend is not None
        shown = [text.get_text() for text in legend.get_texts()]
        assert all(spelled(name) in text for name, text in zip(names, shown, strict=True))


def test_a_few_corruptions_get_their_panels_alone(tmp_path: Path) -> None:
    result = make_result(("fog", "pixelate"))
    figure = draw_corruption_errors(result)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["weather", "digital"]
    write_corruptions(tmp_path / "page.html", result, make_image())


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_shows_the_clean_image_and_severities_1_3_and_5(channels: int, narrow: bool) -> None:
    image, names = make_image(channels), ("fog", "jpeg_compression")
    figure = draw_examples(image, names, narrow=narrow)
    shown = np.array([axes.get_images()[0].get_array() for axes in figure.axes]).reshape(-1, *image.shape)
    by_corruption = shown.reshape(2, 4, *image.shape) if narrow else shown.reshape(4, 2, *image.shape).swapaxes(0, 1)
    for name, strip in zip(names, by_corruption, strict=True):
        assert np.array_equal(strip[0], image)
        for severity, picture in zip((1, 3, 5), strip[1:], strict=True):
            assert np.array_equal(picture, corrupt(image[None], name, severity)[0])
    svg = to_svg(figure)
    assert all(text in svg for text in (b"clean", b"severity 5", b"fog", b"JPEG"))
