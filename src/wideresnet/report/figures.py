"""Figures of a run, from numbers and arrays to PNG or SVG, by matplotlib without its global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from wideresnet.base.arithmetic import ceil_div

MARKED_EPOCHS = 30
"""Up to this number of evaluations, each one gets a dot; more dots would run together. This package's choice."""

# Source: Okabe & Ito 2008, "Color Universal Design", which color-blind readers can tell apart; without black and yellow
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SERIES_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Theme:
    """The colors of a figure."""

    background: str
    ink: str
    muted: str
    grid: str
    accent: str
    wrong: str


LIGHT = Theme("#ffffff", "#1f2328", "#8a929b", "#e4e7eb", "#0b62c4", "#c6283a")
DARK = Theme("#15181c", "#e3e6ea", "#838c96", "#2c3138", "#5aa5ff", "#ff7583")


@dataclass(frozen=True)
class Curve:
    """The record of a run by epoch.

    Attributes:
        label: the run's name in a legend.
        split: what was evaluated: "test" or "val".
        epochs: finished epochs, counted from 1.
        train_error_pct: for each of `epochs`, over its augmented batches, percent.
        train_loss: likewise, nats.
        lr: for each of `epochs`, the learning rate of its last step.
        evaluated_epochs: the epochs after which `split` was evaluated; may be empty.
        error_pct: of `split`, for each of `evaluated_epochs`, percent.
        loss: likewise, nats.
        lr_is_stepped: whether lr is constant and drops by a factor, which is best seen on a logarithmic axis.
    """

    label: str
    split: str
    epochs: Sequence[int]
    train_error_pct: Sequence[float]
    train_loss: Sequence[float]
    lr: Sequence[float]
    evaluated_epochs: Sequence[int]
    error_pct: Sequence[float]
    loss: Sequence[float]
    lr_is_stepped: bool


@dataclass(frozen=True)
class Tile:
    """An image and its prediction.

    Attributes:
        image: uint8 (H, W, C), C is 1 or 3.
        true: name of its class.
        predicted: name of the predicted class.
        probability: of the predicted class, 0..1.
        is_wrong: whether the two classes differ.
    """

    image: np.ndarray
    true: str
    predicted: str
    probability: float
    is_wrong: bool


def draw_curves(curve: Curve, theme: Theme = LIGHT) -> Figure:
    """Draw error, loss and learning rate of one run by epoch, in one column."""
    figure, (error, loss, lr) = _panels(theme, heights=(3, 2, 1))
    split = {"test": "test", "val": "validation"}[curve.split]
    for panel, train, evaluated, form in (
        (error, curve.train_error_pct, curve.error_pct, "{} {:.2f} %"),
        (loss, curve.train_loss, curve.loss, "{} {:.3f}"),
    ):
        lines = panel.plot(curve.epochs, train, color=theme.muted, linewidth=1.5)
        labels = [form.format("train", train[-1])]
        if evaluated:
            lines += panel.plot(curve.evaluated_epochs, evaluated, color=theme.accent, linewidth=2, **_marker(curve))
            labels.append(form.format(split, evaluated[-1]))
        _legend(panel, lines, labels, theme)
    _plot_lr(lr, curve, theme.ink)
    _finish(error, loss, lr, [curve], theme)
    return figure


def draw_comparison(curves: Sequence[Curve], theme: Theme = LIGHT) -> Figure:
    """Draw error, loss and learning rate of several runs by epoch; training in thin lines."""
    figure, (error, loss, lr) = _panels(theme, heights=(3, 2, 1))
    lines: list[Artist] = []
    labels: list[str] = []
    for index, curve in enumerate(curves):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        style = SERIES_STYLES[index // len(SERIES_COLORS) % len(SERIES_STYLES)]
        for panel, train, evaluated in (
            (error, curve.train_error_pct, curve.error_pct),
            (loss, curve.train_loss, curve.loss),
        ):
            panel.plot(curve.epochs, train, color=color, linestyle=style, linewidth=0.8, alpha=0.5)
            line = panel.plot(
                curve.evaluated_epochs, evaluated, color=color, linestyle=style, linewidth=1.8, **_marker(curve)
            )
            if panel is error:
                lines += line
                last = f"{evaluated[-1]:.2f} %" if evaluated else "not evaluated yet"
                labels.append(f"{_short(curve.label, 44)}  {last}")
        _plot_lr(lr, curve, color, style)
    _legend(error, lines, labels, theme)
    _finish(error, loss, lr, curves, theme)
    return figure


def draw_predictions(tiles: Sequence[Tile], title: str, theme: Theme = LIGHT) -> Figure:
    """Draw a grid of images, each with its true class, predicted class and probability; wrong ones in red."""
    columns = min(8, len(tiles))
    rows = ceil_div(len(tiles), columns)
    figure = Figure((1.55 * columns, 2.05 * rows + 0.4), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
    figure.suptitle(_one_line(title), color=theme.ink, fontsize=12, parse_math=False)
    for place, tile in enumerate(tiles):
        axes = figure.add_subplot(rows, columns, place + 1, xticks=(), yticks=())
        image = tile.image[..., 0] if tile.image.shape[2] == 1 else tile.image
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        color = theme.wrong if tile.is_wrong else theme.ink
        for side in axes.spines.values():
            side.set(color=color if tile.is_wrong else theme.grid, linewidth=2.5 if tile.is_wrong else 1)
        answer = f"{_short(tile.predicted, 11)} ({100 * tile.probability:.0f} %)"
        axes.set_title(answer, color=color, fontsize=9.5, fontweight="bold", pad=4, parse_math=False)
        axes.set_xlabel(f"true: {_short(tile.true, 12)}", color=color, fontsize=9.5, parse_math=False)
    return figure


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Convert the figure to a PNG file."""
    return _save(figure, "png", dpi=dpi)


def to_svg(figure: Figure) -> bytes:
    """Convert the figure to an SVG file, with text as shapes, so that it looks the same everywhere."""
    return _save(figure, "svg", metadata={"Date": None})


def image_to_png(image: np.ndarray) -> bytes:
    """Convert an image, uint8 (H, W, C) with C 1 or 3, to a PNG file of the same size."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _save(figure: Figure, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # a class name in a script that the font lacks
        figure.savefig(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _panels(theme: Theme, heights: tuple[int, int, int]) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    figure = Figure((8, 7), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    for axes in panels:
        axes.set_facecolor(theme.background)
        axes.tick_params(which="both", colors=theme.ink, labelsize=9, length=0)
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set(visible=side == "bottom", color=theme.muted)
    return figure, tuple(panels)


def _plot_lr(axes: Axes, curve: Curve, color: str, style: str = "-") -> None:
    drawstyle = "steps-pre" if curve.lr_is_stepped else "default"
    axes.plot(curve.epochs, curve.lr, color=color, linestyle=style, linewidth=1.5, drawstyle=drawstyle)


def _finish(error: Axes, loss: Axes, lr: Axes, curves: Sequence[Curve], theme: Theme) -> None:
    for axes, name in ((error, "error, %"), (loss, "loss"), (lr, "learning rate")):
        axes.set_ylabel(name, color=theme.ink, fontsize=10)
    error.set_ylim(bottom=0)
    loss.set_ylim(bottom=0)
    if all(curve.lr_is_stepped and min(curve.lr) > 0 for curve in curves):
        lr.set_yscale("log")
        lr.margins(y=0.2)
        lr.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        lr.yaxis.set_minor_formatter(NullFormatter())
    else:
        lr.set_ylim(bottom=0)
    last = max(max(curve.epochs) for curve in curves)
    lr.set_xlim(0, last + 0.02 * last)
    lr.xaxis.set_major_locator(MaxNLocator(integer=True))
    lr.set_xlabel("epoch", color=theme.ink, fontsize=10)


def _marker(curve: Curve) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.5} if len(curve.evaluated_epochs) <= MARKED_EPOCHS else {}


def _legend(axes: Axes, lines: Sequence[Artist], labels: Sequence[str], theme: Theme) -> None:
    """Add a legend with any text; matplotlib itself would read `$` as mathematics and drop a leading underscore."""
    legend = axes.legend(
        lines,
        ["-"] * len(lines),
        loc="lower right",  # above the panel, where no line can run
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0,
        labelcolor=theme.ink,
        fontsize=10,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_one_line(label))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _short(text: str, length: int) -> str:
    text = _one_line(text)
    return text if len(text) <= length else text[: length - 1] + "…"
