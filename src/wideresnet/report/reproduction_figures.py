"""Figures of a reproduced table: errors beside the paper's, errors against cost, curves with seeds as bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.format import human_count, human_seconds
from wideresnet.report.figures import (
    LIGHT,
    NARROW_WIDTH_IN,
    SERIES_COLORS,
    SERIES_STYLES,
    WIDTH_IN,
    Curve,
    Theme,
    fit_scale,
    one_line,
    short,
)

MARKERS = "osD^vPX*"
"""Shapes of points, so that they can be told apart without color."""

ROUND_COUNTS = [mantissa * 10.0**exponent for exponent in range(3, 13) for mantissa in (1, 2, 5)]
ROUND_SECONDS = [unit * number for unit in (1, 60) for number in (1, 2, 5, 10, 20, 30)]
ROUND_SECONDS += [3600 * number for number in (1, 2, 5, 10, 20, 50, 100, 200, 500)]
"""Where axes of cost may have ticks: the next one is at most 2.5 times as high."""

MARGIN = 1.6
"""Ratio of the end of such an axis to the last value. Its square is above 2.5, so that every axis has a tick."""


def draw_errors(cells: Sequence[dict[str, Any]], theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw the paper's error and each seed's, one line per cell.

    Args:
        cells: of `experiments.collect.collect`, all of one data set, since errors of others are far away.
    """
    shown = [cell for cell in cells if cell["n"] or cell["published_pct"] is not None][::-1]
    figure, axes = _axes(theme, narrow, 1.1 + 0.34 * len(shown))
    for place, cell in enumerate(shown):
        axes.plot(cell["published_pct"], place, marker="D", color=theme.muted, markersize=7, linestyle="")
        errors = [run["test_error_pct"] for run in cell["runs"] if run["state"] == "finished"]
        axes.plot(errors, [place] * len(errors), marker="o", color=SERIES_COLORS[0], linestyle="", alpha=0.7)
        if cell["median_pct"] is not None:
            axes.plot(cell["median_pct"], place, marker="|", color=SERIES_COLORS[1], markersize=16, markeredgewidth=2.5)
    labels = [short(one_line(cell["label"]), 24 if narrow else 36) for cell in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=9, color=theme.ink, parse_math=False)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("error, %: paper ◆, seeds ●, median |", color=theme.ink, fontsize=9)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    return figure


def draw_costs(cells: Sequence[dict[str, Any]], theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw median errors against parameters, multiply-accumulates of an image, and measured training time.

    Args:
        cells: of one data set; those without a finished run are left out.
    """
    shown = [cell for cell in cells if cell["n"]]
    width = NARROW_WIDTH_IN if narrow else WIDTH_IN
    rows = ceil_div(len(shown), 1 if narrow else 3)
    size = (width, (7.5 if narrow else 2.9) + 0.2 * rows)
    figure = Figure(size, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(*((3, 1) if narrow else (1, 3)), sharey=True)
    about = (
        ("parameters", _params, human_count, ROUND_COUNTS),
        ("multiply-accumulates per image", lambda cell: cell["macs"], human_count, ROUND_COUNTS),
        ("measured training time", _seconds, human_seconds, ROUND_SECONDS),
    )
    for panel, (label, read, write, rounds) in zip(panels, about, strict=True):
        _style(panel, theme)
        for index, cell in enumerate(shown):
            look = {"color": SERIES_COLORS[index % len(SERIES_COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            panel.plot(read(cell), cell["median_pct"], linestyle="", markersize=7, **look)
        values = [read(cell) for cell in shown]
        low, high = min(values) / MARGIN, max(values) * MARGIN
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(_ticks(low, high, rounds)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _, write=write: write(value)))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(label, color=theme.ink, fontsize=9)
        panel.grid(color=theme.grid, linewidth=0.8)
        panel.margins(y=0.15)
        panel.set_xlim(low, high)
    (panels[1] if narrow else panels[0]).set_ylabel("test error, %, median", color=theme.ink, fontsize=9)
    legend = figure.legend(
        panels[0].lines, [short(cell["label"], 40) for cell in shown], loc="outside upper left",
        ncols=1 if narrow else 3, frameon=False, fontsize=9, labelcolor=theme.ink,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def draw_bands(groups: Sequence[tuple[str, Sequence[Curve]]], theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw the median curve of runs that differ only in their seed, within a band from the lowest to the highest.

    Args:
        groups: label and curves of the seeds, at least one each.
    """
    size = (NARROW_WIDTH_IN if narrow else WIDTH_IN, 5.2 + 0.2 * ceil_div(len(groups), 1 if narrow else 2))
    figure = Figure(size, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    error, loss = figure.subplots(2, 1, sharex=True)
    lines = []
    for index, (_, curves) in enumerate(groups):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        style = SERIES_STYLES[index // len(SERIES_COLORS) % len(SERIES_STYLES)]
        epochs = sorted(set.intersection(*(set(curve.evaluated_epochs) for curve in curves)))
        for panel, name in ((error, "error_pct"), (loss, "loss")):
            values = np.array([_at(curve, name, epochs) for curve in curves])
            if len(curves) > 1:
                panel.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
            (line,) = panel.plot(epochs, np.median(values, 0), color=color, linestyle=style, linewidth=1.8)
        lines.append(line)
    for panel, name, label in ((error, "error_pct", "test error, %"), (loss, "loss", "test loss")):
        _style(panel, theme)
        fit_scale(panel, [value for _, curves in groups for curve in curves for value in getattr(curve, name)])
        panel.grid(color=theme.grid, linewidth=0.8)
        panel.set_ylabel(label, color=theme.ink, fontsize=9)
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set_xlabel("epoch", color=theme.ink, fontsize=9)
    labels = [f"{short(label, 36)} ({len(curves)})" for label, curves in groups]
    legend = figure.legend(
        lines, labels, loc="outside upper left", ncols=1 if narrow else 2, frameon=False, fontsize=9,
        labelcolor=theme.ink,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _ticks(low: float, high: float, rounds: Sequence[float]) -> list[float]:
    """Return up to four of the round numbers within an axis."""
    ticks = [number for number in rounds if low <= number <= high]
    return ticks[:: max(1, ceil_div(len(ticks), 4))]


def _at(curve: Curve, name: str, epochs: Sequence[int]) -> list[float]:
    """Return the values of a curve at some of its evaluated epochs."""
    by_epoch = dict(zip(curve.evaluated_epochs, getattr(curve, name), strict=True))
    return [by_epoch[epoch] for epoch in epochs]


def _params(cell: dict[str, Any]) -> float:
    return next(run["params"] for run in cell["runs"] if run["state"] == "finished")


def _seconds(cell: dict[str, Any]) -> float:
    """Return the median training time of the finished runs, s."""
    return float(np.median([run["train_s"] for run in cell["runs"] if run["state"] == "finished"]))


def _axes(theme: Theme, narrow: bool, height: float) -> tuple[Figure, Axes]:
    figure = Figure((NARROW_WIDTH_IN if narrow else WIDTH_IN, height), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes, theme)
    return figure, axes


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.tick_params(colors=theme.ink, labelsize=9, length=0, which="both")
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
