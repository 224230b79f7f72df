"""Figures of what the blocks of networks contribute: `analysis.json` as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from wideresnet.base.arithmetic import ceil_div
from wideresnet.report.figures import (
    LIGHT,
    NARROW_WIDTH_IN,
    SERIES_COLORS,
    SERIES_STYLES,
    WIDTH_IN,
    Theme,
    add_legend,
    fit_scale,
    short,
    style,
)
from wideresnet.spec.analysis import Analysis

MARKED_BLOCKS = 60
"""Up to this number of blocks each one gets a mark; more marks would run together. This package's choice."""

ERROR_TICKS_PCT = (0, 1, 2, 5, 10, 20, 50, 100)
"""Of the axis of errors, which is the same on all pages: linear up to the second, then logarithmic, because a network
without one block has nearly its own error or that of guessing. This package's choice."""


def draw_blocks(
    analyses: Sequence[Analysis], labels: Sequence[str], theme: Theme = LIGHT, *, narrow: bool = False
) -> Figure:
    """Draw error without each block, share of the branch and gradient over depth; the networks in one figure.

    Args:
        analyses: one or more.
        labels: their names in the legend.
        theme: colors.
        narrow: for a telephone.
    """
    num_columns = 1 if narrow else 2
    legend_in = 0.22 * ceil_div(len(analyses), num_columns)
    figure = Figure((NARROW_WIDTH_IN if narrow else WIDTH_IN, 7.2 + legend_in), facecolor=theme.background,
                    layout="constrained")  # fmt: skip
    FigureCanvasAgg(figure)
    error, share, gradient = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    for axes in (error, share, gradient):
        style(axes, theme)
    lines: list[Artist] = []
    for index, analysis in enumerate(analyses):
        color = theme.accent if len(analyses) == 1 else SERIES_COLORS[index % len(SERIES_COLORS)]
        dashes = SERIES_STYLES[index // len(SERIES_COLORS) % len(SERIES_STYLES)]
        num, blocks = len(analysis.blocks), analysis.blocks
        x = (np.arange(num) + 0.5) / num
        for axes, values in (
            (error, [block.error_without_pct for block in blocks]),
            (share, [100 * block.branch_share for block in blocks]),
            (gradient, [num * block.gradient_share for block in blocks]),
        ):
            line = axes.plot(x, values, color=color, linestyle=dashes, linewidth=1.4)
            if axes is error:
                lines += line
            if num <= MARKED_BLOCKS:
                for projects, marker, fill in ((False, "o", color), (True, "s", theme.background)):
                    chosen = [place for place, block in enumerate(blocks) if block.projects == projects]
                    look = {"color": color, "markerfacecolor": fill, "markersize": 5, "clip_on": False}
                    axes.plot(x[chosen], np.take(values, chosen), marker, **look)
        error.axhline(analysis.error_pct, color=color, linewidth=1, linestyle=(0, (2, 3)))
    gradient.axhline(1, color=theme.muted, linewidth=1, linestyle=(0, (2, 3)))
    error.set_yscale("symlog", linthresh=ERROR_TICKS_PCT[1], linscale=0.4)  # an error of 0 is on the axis
    error.set(ylim=(0, 100))
    error.set_yticks(ERROR_TICKS_PCT, list(map(str, ERROR_TICKS_PCT)))
    error.yaxis.set_minor_locator(NullLocator())
    share.set_ylim(0, 100)
    fit_scale(gradient, [len(analysis.blocks) * b.gradient_share for analysis in analyses for b in analysis.blocks])
    if gradient.get_yscale() == "linear":
        gradient.set_ylim(bottom=0)
    for axes, name in ((error, "error without it, %"), (share, "branch's share, %"), (gradient, "gradient / mean")):
        axes.set_ylabel(name, color=theme.ink, fontsize=10)
    _name_groups((error, share, gradient), analyses, theme)
    length = 26 if narrow else 40
    named = [f"{short(label, length)}  {a.error_pct:.2f} %" for label, a in zip(labels, analyses, strict=True)]
    add_legend(error, lines, named, theme, num_columns)
    return figure


def _name_groups(panels: Sequence[Axes], analyses: Sequence[Analysis], theme: Theme) -> None:
    """Name the groups of blocks below the panels, if they begin at the same depths in all networks."""
    last = panels[-1]
    last.set_xlim(0, 1)
    borders, names = _groups(analyses[0])
    if any(_groups(analysis) != (borders, names) for analysis in analyses):
        last.set_xlabel("depth, as a share of the blocks", color=theme.ink, fontsize=10)
        return
    last.set_xticks([(low + high) / 2 for low, high in pairwise(borders)], names)
    last.set_xlabel("from the first to the last block", color=theme.ink, fontsize=10)
    for axes in panels:
        axes.grid(visible=False, axis="x")
        for border in borders[1:-1]:
            axes.axvline(border, color=theme.grid, linewidth=1.2)


def _groups(analysis: Analysis) -> tuple[list[float], list[str]]:
    """Return where groups of blocks begin and the last one ends, as shares of the blocks, and their names."""
    sizes = [(name, len(list(blocks))) for name, blocks in groupby(block.group for block in analysis.blocks)]
    ends = np.cumsum([0, *(size for _, size in sizes)]) / len(analysis.blocks)
    return ends.round(6).tolist(), [name for name, _ in sizes]


def draw_similarity(
    analyses: Sequence[Analysis], labels: Sequence[str], theme: Theme = LIGHT, *, narrow: bool = False
) -> Figure:
    """Draw how similar the outputs of all pairs of blocks are, a map per network; arguments as for `draw_blocks`."""
    columns = 1 if narrow else min(2, len(analyses))
    rows = ceil_div(len(analyses), columns)
    width = NARROW_WIDTH_IN if narrow else WIDTH_IN
    side = width if narrow else width / 2
    figure = Figure((side * columns, side * rows), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    colors = LinearSegmentedColormap.from_list("similarity", [theme.background, theme.accent])
    for place, (analysis, label) in enumerate(zip(analyses, labels, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        image = axes.imshow(analysis.similarity, cmap=colors, vmin=0, vmax=1, interpolation="none", extent=(0, 1, 1, 0))
        borders, names = _groups(analysis)
        middles = [(low + high) / 2 for low, high in pairwise(borders)]
        axes.set_xticks(middles, names)
        axes.set_yticks(middles, names, rotation=90, va="center")
        for border in borders[1:-1]:
            axes.axhline(border, color=theme.background, linewidth=1)
            axes.axvline(border, color=theme.background, linewidth=1)
        axes.tick_params(colors=theme.ink, labelsize=9, length=0)
        for spine in axes.spines.values():
            spine.set(color=theme.grid)
        if len(analyses) > 1:
            axes.set_title(short(label, 34), color=theme.ink, fontsize=10, parse_math=False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02, ticks=(0, 0.5, 1))
        bar.ax.tick_params(colors=theme.ink, labelsize=9, length=0)
        bar.outline.set_edgecolor(theme.grid)  # type: ignore[operator]
    return figure
