"""Figures of a run, from numbers and arrays to PNG or SVG, by matplotlib without its global state."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter
from PIL import Image

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.format import printable
from wideresnet.base.metrics import class_errors

MARKED_EPOCHS = 30
"""Up to this number of evaluations, each one gets a dot; more dots would run together. This package's choice."""

WIDTH_IN, NARROW_WIDTH_IN = 8.0, 4.0
"""Widths of a figure on a page and on a telephone's page, inches: scaled to 360 px, the smallest text of the narrow one
is 9 px high. This package's choice."""

LOG_RANGE, MAX_LOG_RANGE = 4.0, 1e6
"""From this ratio of the highest to the lowest value on, an axis is logarithmic; it never spans more than the second.
This package's choice."""

# Source: Okabe & Ito 2008, "Color Universal Design", which color-blind readers can tell apart; without black and
# yellow. The last three are darker here: each has a contrast of at least 3 : 1 with both backgrounds, as WCAG 2 asks.
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b3558a", "#b07700", "#3a94d0")
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


# Every color but the grid's has a contrast of at least 4.5 : 1 with the background, as WCAG 2 asks of text.
LIGHT = Theme("#ffffff", "#1f2328", "#646d76", "#e4e7eb", "#0b62c4", "#c6283a")
DARK = Theme("#15181c", "#e3e6ea", "#98a1ab", "#2c3138", "#5aa5ff", "#ff7583")


@dataclass(frozen=True)
class Curve:
    """The record of a run by epoch.

    Attributes:
        label: the run's name in a legend.
        split: what was evaluated: "test" or "val".
        epochs: finished epochs, counted from 1.
        train_error_pct: for each of `epochs`, over its augmented batches, percent.
        train_loss: likewise, nats.
        lr_epochs: moments, in epochs from 0, at which the learning rate is known.
        lr: for each of `lr_epochs`. Between them it is the later one if it is stepped, else linear.
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
    lr_epochs: Sequence[float]
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


def draw_curves(curve: Curve, theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw error, loss and learning rate of one run by epoch, in one column."""
    figure, (error, loss, lr) = _panels(theme, narrow)
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
        add_legend(panel, lines, labels, theme)
    _plot_lr(lr, curve, theme.ink)
    _finish(error, loss, lr, [curve], theme)
    return figure


def draw_comparison(curves: Sequence[Curve], theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw error, loss and learning rate of several runs by epoch; training in thin lines."""
    num_columns = 1 if narrow else 2
    figure, (error, loss, lr) = _panels(theme, narrow, legend_in=0.2 * ceil_div(len(curves), num_columns))
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
                labels.append(f"{short(curve.label, 26 if narrow else 44)}  {last}")
        _plot_lr(lr, curve, color, style)
    add_legend(error, lines, labels, theme, num_columns)
    _finish(error, loss, lr, curves, theme)
    return figure


def draw_predictions(tiles: Sequence[Tile], title: str, about: str = "", theme: Theme = LIGHT) -> Figure:
    """Draw a grid of images, each with its true class, predicted class and probability; wrong ones in red.

    Args:
        tiles: at least one.
        title: above the images.
        about: a second line of the title, e.g. how the images were chosen.
    """
    columns = min(8, len(tiles))
    rows = ceil_div(len(tiles), columns)
    figure = Figure((max(6.2, 1.55 * columns), 2.05 * rows + 0.6), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
    lines = "\n".join(short(line, 90) for line in (title, about) if line)
    figure.suptitle(lines, color=theme.ink, fontsize=11, parse_math=False)
    for place, tile in enumerate(tiles):
        axes = figure.add_subplot(rows, columns, place + 1, xticks=(), yticks=())
        image = tile.image[..., 0] if tile.image.shape[2] == 1 else tile.image
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        color = theme.wrong if tile.is_wrong else theme.ink
        for side in axes.spines.values():
            side.set(color=color if tile.is_wrong else theme.grid, linewidth=2.5 if tile.is_wrong else 1)
        answer = f"{short(tile.predicted, 11)} ({100 * tile.probability:.0f} %)"
        axes.set_title(answer, color=color, fontsize=9.5, fontweight="bold", pad=4, parse_math=False)
        axes.set_xlabel(f"true: {short(tile.true, 12)}", color=color, fontsize=9.5, parse_math=False)
    return figure


def draw_confusion(
    matrix: np.ndarray, groups: Sequence[tuple[str, int]], theme: Theme = LIGHT, *, narrow: bool = False
) -> Figure:
    """Draw a confusion matrix of many classes as a heat map; its colors are those of `heat`.

    Args:
        matrix: int64 (classes, classes), as `base.metrics.confusion` returns it.
        groups: (name, number of classes) of neighbors that belong together, in the order of the rows; empty if the
            classes are not grouped.
    """
    width = NARROW_WIDTH_IN if narrow else WIDTH_IN
    figure = Figure((width, width), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share = matrix / np.maximum(class_errors(matrix).num_images, 1)[:, None]
    colors = np.where(np.eye(len(matrix), dtype=bool)[..., None], _rgb(theme.accent), _rgb(theme.wrong))
    alpha = heat(share)[..., None]
    axes.imshow(alpha * colors + (1 - alpha) * _rgb(theme.background), interpolation="none")  # each cell whole in SVG
    ends = np.cumsum([size for _, size in groups])
    for edge in ends[:-1] - 0.5:
        axes.axhline(edge, color=theme.grid, linewidth=0.5)
        axes.axvline(edge, color=theme.grid, linewidth=0.5)
    if groups:
        places = ends - np.array([size for _, size in groups]) / 2 - 0.5
        names = [short(name, 22 if narrow else 34) for name, _ in groups]
        axes.set_xticks(places, names, rotation=90, parse_math=False)
        axes.set_yticks(places, names, parse_math=False)
    axes.tick_params(colors=theme.ink, labelsize=7.2 if narrow else 8, length=0)
    for side in axes.spines.values():
        side.set(color=theme.grid)
    axes.set_xlabel("predicted", color=theme.ink, fontsize=10)
    axes.set_ylabel("true", color=theme.ink, fontsize=10)
    return figure


def heat(share: Any) -> Any:
    """Return how strongly a cell of a confusion matrix is colored, 0..1, for a share of its true class, 0..1.

    The square root makes a single mistake in a thousand images visible. A number over the strongest color still has a
    contrast of 4.5 : 1 on both backgrounds.
    """
    return np.where(np.asarray(share) > 0, 0.06 + 0.54 * np.sqrt(share), 0.0)


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Convert the figure to a PNG file."""
    return _save(figure, "png", dpi=dpi)


def to_svg(figure: Figure) -> bytes:
    """Convert the figure to an SVG file, with text as text, in the reader's font; the same bytes for equal figures."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wideresnet"}):
        return _save(figure, "svg", metadata={"Date": None})


def in_dark(svg: bytes) -> bytes:
    """Return the SVG file of a figure in `LIGHT` as it would be in `DARK`: all but their colors is equal.

    A figure takes most of its time to be laid out. Pixels in it keep their colors.
    """
    colors = {getattr(LIGHT, name).encode(): getattr(DARK, name).encode() for name in vars(LIGHT)}
    pattern = re.compile(b"|".join(colors))
    return re.sub(rb"<[^>]*>", lambda tag: pattern.sub(lambda color: colors[color[0]], tag[0]), svg)


def image_to_png(image: np.ndarray) -> bytes:
    """Convert an image, uint8 (H, W, C) with C 1 or 3, to a PNG file of the same size."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def image_to_jpeg(image: np.ndarray) -> bytes:
    """Convert a photograph, uint8 (H, W, 3), to a JPEG file of the same size, which is much smaller than PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _save(figure: Figure, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # a class name in a script that the font lacks
        figure.savefig(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _panels(theme: Theme, narrow: bool, legend_in: float = 0.2) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    """Three panels above each other; `legend_in` is the height of the legend above the first."""
    size = (NARROW_WIDTH_IN if narrow else WIDTH_IN, 6.8 + legend_in)
    figure = Figure(size, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    for axes in panels:
        style(axes, theme)
    return figure, tuple(panels)


def style(axes: Axes, theme: Theme) -> None:
    """Give a panel the look that all share: a light grid, and a line below."""
    axes.set_facecolor(theme.background)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9, length=0)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=theme.muted)


def _plot_lr(axes: Axes, curve: Curve, color: str, style: str = "-") -> None:
    drawstyle = "steps-pre" if curve.lr_is_stepped else "default"
    axes.plot(curve.lr_epochs, curve.lr, color=color, linestyle=style, linewidth=1.5, drawstyle=drawstyle)


def _finish(error: Axes, loss: Axes, lr: Axes, curves: Sequence[Curve], theme: Theme) -> None:
    for axes, name in ((error, "error, %"), (loss, "loss"), (lr, "learning rate")):
        axes.set_ylabel(name, color=theme.ink, fontsize=10)
    fit_scale(error, [value for curve in curves for value in (*curve.train_error_pct, *curve.error_pct)])
    fit_scale(loss, [value for curve in curves for value in (*curve.train_loss, *curve.loss)])
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


def fit_scale(axes: Axes, values: Iterable[float]) -> None:
    """Make the axis logarithmic if the values span much, so that the last epochs, which matter, are not flat.

    A value of 0 then lies below the axis. The legend names it, if it is the last one.
    """
    positive = [value for value in values if value > 0]
    high = max(positive, default=0.0)
    low = max(min(positive, default=0.0), high / MAX_LOG_RANGE)
    if high < LOG_RANGE * low or not positive:
        return
    ratio = high / low
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(low / ratio**0.05, high * ratio**0.05)
    digits = (1, 2, 3, 5) if ratio < 30 else (1, 2, 5) if ratio < 1000 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=digits, numticks=math.ceil(math.log10(ratio)) * 4 + 4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _marker(curve: Curve) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.5} if len(curve.evaluated_epochs) <= MARKED_EPOCHS else {}


def add_legend(axes: Axes, lines: Sequence[Artist], labels: Sequence[str], theme: Theme, num_columns: int = 2) -> None:
    """Add a legend with any text; matplotlib itself would read `$` as mathematics and drop a leading underscore."""
    legend = axes.legend(
        lines,
        ["-"] * len(lines),
        loc="lower right",  # above the panel, where no line can run
        bbox_to_anchor=(1, 1),
        ncols=num_columns,
        frameon=False,
        borderaxespad=0,
        labelcolor=theme.ink,
        fontsize=10,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(one_line(label))


def one_line(text: str) -> str:
    """Make any text fit for a figure: in one line, and with escapes for what no font can draw."""
    return printable(" ".join(text.split()))


def short(text: str, length: int) -> str:
    """Shorten a text to that many characters; fit for a figure, as by `one_line`."""
    text = one_line(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _rgb(color: str) -> np.ndarray:
    """'#rrggbb' -> float (3,), 0..1."""
    return np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
