"""Figures of docs/the-paper.md, from data to an SVG file that is legible on light and dark pages.

A file holds the SHA-256 of its data, which tells whether it is stale: its bytes depend on matplotlib's version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from wideresnet.base.format import human_count
from wideresnet.report.block_figures import draw_blocks, draw_similarity
from wideresnet.report.figures import DARK, LIGHT, WIDTH_IN, Curve, add_legend, draw_curves, style, to_svg
from wideresnet.spec.analysis import Analysis

DEPTH_MARKS = {16: "o", 22: "s", 28: "^", 40: "D"}
"""Depth -> the shape of its points."""


@dataclass(frozen=True)
class Point:
    """The CIFAR-10 error of a network.

    Attributes:
        label: written next to it.
        depth: the n of its name.
        params: number of its parameters.
        error_pct: test error, percent.
    """

    label: str
    depth: int
    params: int
    error_pct: float


@dataclass(frozen=True)
class Timing:
    """The time of a training step.

    Attributes:
        network: its name.
        flops: operations of the step.
        seconds: its time.
    """

    network: str
    flops: float
    seconds: float

    @property
    def is_thin(self) -> bool:
        """Whether it is one of Figure 4's deep and thin networks."""
        return self.network.startswith("PreAct")


@dataclass(frozen=True)
class Drawing:
    """A figure that has not been drawn yet.

    Attributes:
        name: of its file, without ".svg".
        data: what it shows, as values for JSON.
        draw: makes the figure.
    """

    name: str
    data: Any
    draw: Callable[[], Figure]

    @property
    def mark(self) -> str:
        """The digest of the data, as its file has it."""
        text = json.dumps(self.data, sort_keys=True)
        return f"<!-- data: sha256 {hashlib.sha256(text.encode()).hexdigest()} -->"

    def svg(self) -> str:
        """Draw it."""
        svg = re.sub(r" <metadata>.*?</metadata>\n", "", to_svg(self.draw()).decode(), flags=re.DOTALL)  # a version
        start = svg.index(">", svg.index("<svg ")) + 1
        return f"{svg[:start]}\n {self.mark}\n {dark_style()}{svg[start:]}"


def dark_style() -> str:
    """Return the style element with which a figure in the colors of `LIGHT` has those of `DARK` on a dark page."""
    rules = [
        f'[style*="{part}: {getattr(LIGHT, name)}"]{{{part}:{getattr(DARK, name)}!important}}'
        for name in vars(LIGHT)
        for part in ("fill", "stroke")
    ]
    return f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"


def curves(curve: Curve, drops: Sequence[int]) -> Drawing:
    """Draw the record of a run, and where its learning rate drops.

    Args:
        curve: of `report.runs.read_run`.
        drops: the epochs, counted from 1, at whose start it drops.
    """

    def draw() -> Figure:
        figure = draw_curves(curve)
        error, loss, _ = figure.axes
        for axes in (error, loss):
            for epoch in drops:
                axes.axvline(epoch - 1, color=LIGHT.muted, linewidth=1, linestyle=(0, (2, 3)))
        inset = error.inset_axes((0.06, 0.12, 0.44, 0.42))  # in the empty corner below the first epochs
        style(inset, LIGHT)
        inset.plot(curve.epochs[drops[0] - 1 : drops[1] - 1], curve.train_loss[drops[0] - 1 : drops[1] - 1],
                   color=LIGHT.muted, linewidth=1.5)  # fmt: skip
        inset.set_title("train loss between the first two drops", loc="left", color=LIGHT.ink, fontsize=9)
        return figure

    return Drawing("curves", [asdict(curve), list(drops)], draw)


def errors(table4: Sequence[Point], thin: Sequence[Point], wide: Sequence[Point], ours: Sequence[Point]) -> Drawing:
    """Draw error against parameters.

    Args:
        table4: the paper's, with ZCA whitening.
        thin, wide: the paper's, normalized by mean and standard deviation.
        ours: of this package's records, normalized likewise.
    """

    def draw() -> Figure:
        figure, (left, right) = _figure(3.9, sharey=True)
        lines = []
        depths = sorted({point.depth for point in table4})
        for depth in depths:
            own = [point for point in table4 if point.depth == depth]
            color = LIGHT.accent if depth == max(depths) else LIGHT.muted
            lines += left.plot(*_places(own), marker=DEPTH_MARKS[depth], color=color, linewidth=1.2, markersize=6)
            for point in own:  # of the shorter lines the first label is below, and the others above
                beside, above = ((5, 4), "left"), ((0, 6), "center")
                below = ((-5, -10), "right")
                _label(left, point, *(beside if depth == max(depths) else below if point is own[0] else above))
        add_legend(left, lines, [f"n={depth}" for depth in depths], LIGHT, len(depths))
        lines = [
            *right.plot(*_places(thin), "D", color=LIGHT.muted, markersize=6),
            *right.plot(*_places(wide), "o", color=LIGHT.accent, markersize=6),
            *right.plot(*_places(ours), "*", color=LIGHT.wrong, markersize=11),
        ]
        for point in (*thin, *wide):
            _label(right, point, (6, 4), "left")
        add_legend(right, lines, ["thin", "wide", "ours"], LIGHT, 3)
        for axes, title in (
            (left, "the paper, Table 4: ZCA"),
            (right, "the paper, Tables 5 and 6, and ours: mean/std"),
        ):
            axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=9.5, pad=22)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator([3e5, 1e6, 3e6, 1e7, 3e7, 1e8]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_count(value)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlim(4e5, 2.5e8)
            axes.set_xlabel("parameters", color=LIGHT.ink, fontsize=10)
        left.set_ylabel("CIFAR-10 test error, %", color=LIGHT.ink, fontsize=10)
        return figure

    return Drawing("errors", [[asdict(point) for point in each] for each in (table4, thin, wide, ours)], draw)


def times(panels: Sequence[tuple[str, Sequence[Timing]]]) -> Drawing:
    """Draw the time of a training step against its operations.

    Args:
        panels: (title, networks) of two machines.
    """

    def draw() -> Figure:
        figure, all_axes = _figure(3.9)
        for axes, (title, timings) in zip(all_axes, panels, strict=True):
            lines = []
            for thin, marker, color in ((True, "D", LIGHT.muted), (False, "o", LIGHT.accent)):
                own = [timing for timing in timings if timing.is_thin == thin]
                x, y = [timing.flops for timing in own], [1000 * timing.seconds for timing in own]
                lines += axes.plot(x, y, marker, color=color, markersize=7)
            widest = max(timings, key=lambda timing: timing.flops)
            x = [min(timing.flops for timing in timings) / 2, 2 * widest.flops]
            y = [1000 * widest.seconds * flops / widest.flops for flops in x]
            lines += axes.plot(x, y, color=LIGHT.muted, linewidth=1, linestyle=(0, (2, 3)))
            for timing in timings:
                offset, side = ((0, 8), "center") if timing.is_thin else ((7, -10), "left")
                _write(axes, timing.network, (timing.flops, 1000 * timing.seconds), offset, side)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlim(7e9, 9 * widest.flops)
            low, high = (f(1000 * timing.seconds for timing in timings) for f in (min, max))
            axes.set_ylim(low / 2, high * 2)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_count(value)))
            axes.yaxis.set_major_locator(FixedLocator([m * 10**e for e in range(1, 5) for m in (1, 2, 5)]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=9.5, pad=22)
            axes.set_xlabel("FLOP per step", color=LIGHT.ink, fontsize=10)
            add_legend(axes, lines, ["thin", "wide", "WRN-28-10's speed"], LIGHT, 3)
        all_axes[0].set_ylabel("ms per step of 32 images", color=LIGHT.ink, fontsize=10)
        return figure

    return Drawing("times", [[title, [asdict(timing) for timing in timings]] for title, timings in panels], draw)


def blocks(analyses: Sequence[Analysis], labels: Sequence[str]) -> list[Drawing]:
    """Draw what `wrn analyze` draws of several networks: their blocks, and how similar these are."""
    data = [[label, analysis.to_json()] for label, analysis in zip(labels, analyses, strict=True)]
    return [
        Drawing("blocks", data, lambda: draw_blocks(analyses, labels)),
        Drawing("similarity", data, lambda: draw_similarity(analyses, labels)),
    ]


def _figure(height_in: float, **options: Any) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two panels side by side."""
    figure = Figure((WIDTH_IN, height_in), facecolor=LIGHT.background, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, **options)
    for axes in (left, right):
        style(axes, LIGHT)
    return figure, (left, right)


def _places(points: Sequence[Point]) -> tuple[list[int], list[float]]:
    return [point.params for point in points], [point.error_pct for point in points]


def _label(axes: Axes, point: Point, offset: tuple[int, int], side: str) -> None:
    _write(axes, point.label, (point.params, point.error_pct), offset, side)


def _write(axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], side: str) -> None:
    """Write next to a point; `side` is the side of the text that is there."""
    axes.annotate(text, place, offset, textcoords="offset points", ha=side, color=LIGHT.ink, fontsize=8.5)  # type: ignore[arg-type]
