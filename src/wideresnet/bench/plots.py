"""Plots of a record: images/s of every contender, first steps, or Figure 4 as the paper draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wideresnet.bench.words import OURS, OURS_INT8, case_title, errors_of, machine_line, short_name, verdict
from wideresnet.report.figures import LIGHT, Theme, one_line, short, to_png
from wideresnet.spec.files import write_atomic

INT8_COLOR = "#0a3d7a"
"""A darker shade of ours' color: the same family, and a contrast of 10 : 1 with white. This package's choice."""


def write_plot(document: dict[str, Any], path: Path) -> None:
    """Draw a record and write it as a PNG file."""
    draw = {"figure4": draw_figure4, "start": draw_starts}.get(document["job"], draw_bars)
    write_atomic(path, to_png(draw(document)))


def draw_bars(document: dict[str, Any], theme: Theme = LIGHT) -> Figure:
    """Draw images/s of each contender, one panel per case; what could not be timed has its reason instead."""
    cases = document["cases"]
    heights = [0.9 + 0.34 * len(case["contenders"]) for case in cases]
    figure = _figure((8, sum(heights) + 0.5), theme)
    panels = figure.subplots(len(cases), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        rows = case["contenders"]
        values = [row.get("images_per_s", 0.0) for row in rows]
        own = {OURS: theme.accent, OURS_INT8: INT8_COLOR}
        axes.barh(range(len(rows)), values, color=[own.get(row["name"], theme.muted) for row in rows], height=0.7)
        ends = [0.0]
        for place, row in enumerate(rows):
            if "problem" in row:
                _write(axes, 0, place, f"  {short(row['problem'], 90)}", theme.wrong)
            else:
                low, high = (case["batch_size"] / row["call_s"][name] for name in ("quartile3", "quartile1"))
                _draw_quartiles(axes, place, low, high, theme)
                _write(axes, max(values[place], high), place, f"  {values[place]:,.4g}", theme.ink)
                ends.append(high)
        axes.set_yticks(range(len(rows)), [short(short_name(row), 36) for row in rows], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(*values, *ends) or 1)
        title = f"{case_title(case)}: {verdict(case)}" if verdict(case) else case_title(case)
        axes.set_title(one_line(title), loc="left", color=theme.ink, fontsize=10.5, fontweight="bold", parse_math=False)
        _style(axes, theme)
    panels[-1].set_xlabel("images per second, median and quartiles", color=theme.ink, fontsize=10)
    figure.suptitle(one_line(machine_line(document)), color=theme.muted, fontsize=8.5, parse_math=False)
    return figure


def draw_starts(document: dict[str, Any], theme: Theme = LIGHT) -> Figure:
    """Draw seconds from the start of a process to the end of its first step."""
    cases = document["cases"]
    figure = _figure((8, 0.5 + 1.7 * len(cases)), theme)
    panels = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        rows = case["starts"]
        for place, row in enumerate(rows):
            spread = row["stepped_s"]
            color = theme.muted if row["name"] == "plain" else theme.accent
            axes.barh(place, spread["median"], color=color, height=0.7)
            _draw_quartiles(axes, place, spread["quartile1"], spread["quartile3"], theme)
            _write(axes, spread["quartile3"], place, f"  {spread['median']:.1f} s", theme.ink)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(row["stepped_s"]["quartile3"] for row in rows))
        title = f"{case['network']}, batch {case['batch_size']}: the first training step"
        axes.set_title(title, loc="left", color=theme.ink, fontsize=10.5, fontweight="bold", parse_math=False)
        _style(axes, theme)
    panels[-1].set_xlabel("seconds from the start of the process, median and quartiles", color=theme.ink, fontsize=10)
    figure.suptitle(one_line(machine_line(document)), color=theme.muted, fontsize=8.5, parse_math=False)
    return figure


def draw_figure4(document: dict[str, Any], theme: Theme = LIGHT) -> Figure:
    """Draw milliseconds per training step by network, the paper's next to today's, with the test errors."""
    figure = _figure((8, 3.8), theme)
    left, right = figure.subplots(1, 2)
    cases = document["cases"]
    today = [1000 * case["contenders"][0]["call_s"]["median"] for case in cases]
    env = document["env"]
    for axes, values, title in (
        (left, [case["paper_ms"] for case in cases], "the paper: Titan X"),
        (right, today, one_line(f"today: {env['gpu'] or env['cpu']}")),
    ):
        colors = [theme.muted if case["network"].startswith("PreAct") else theme.accent for case in cases]
        axes.bar(range(len(cases)), values, color=colors, width=0.72)
        for place, (case, value) in enumerate(zip(cases, values, strict=True)):
            axes.text(place, value, f"{value:,.4g}", ha="center", va="bottom", color=theme.ink, fontsize=9)
            if error := errors_of(case["network"]):
                axes.text(place, 0.02 * max(values), f"{error[0]:.2f} %", ha="center", va="bottom",
                          color=theme.background, fontsize=8)  # fmt: skip
        labels = [case["network"].removeprefix("PreAct").replace("-", "\n", 1) for case in cases]
        axes.set_xticks(range(len(cases)), labels, fontsize=8.5)
        axes.set_ylim(0, 1.12 * max(values))
        axes.set_title(title, color=theme.ink, fontsize=10, parse_math=False)
        _style(axes, theme, grid="y")
    left.set_ylabel(f"ms per step of {cases[0]['batch_size']} images", color=theme.ink, fontsize=10)
    return figure


def _figure(size: tuple[float, float], theme: Theme) -> Figure:
    figure = Figure(size, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_quartiles(axes: Axes, place: float, low: float, high: float, theme: Theme) -> None:
    axes.plot((low, high), (place, place), color=theme.background, linewidth=3.5, solid_capstyle="butt")
    axes.plot((low, high), (place, place), color=theme.ink, linewidth=1.2, marker="|", markersize=5)


def _write(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.text(x, y, text, va="center", color=color, fontsize=9, parse_math=False)


def _style(axes: Axes, theme: Theme, grid: str = "x") -> None:
    axes.set_facecolor(theme.background)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9, length=0)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)  # type: ignore[arg-type]  # "x" or "y"
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == ("left" if grid == "x" else "bottom"), color=theme.muted)
