"""Figures of a detection run: losses and mAP by epoch, precision by recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wideresnet.report.figures import (
    LIGHT,
    NARROW_WIDTH_IN,
    SERIES_COLORS,
    SERIES_STYLES,
    WIDTH_IN,
    Theme,
    add_legend,
    fit_scale,
    style,
)

SHOWN_CURVES = {"0.50": "IoU 0.50", "0.75": "IoU 0.75", "mean": "mean, IoU 0.50 to 0.95"}


def draw_training(records: Sequence[Mapping[str, Any]], theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw mAP and AP50, the loss, and the learning rate by epoch.

    Args:
        records: what `metrics.jsonl` of a detection run holds.
    """
    figure = Figure((NARROW_WIDTH_IN if narrow else WIDTH_IN, 7.0), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    precision, loss, lr = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    epochs = [record["epoch"] for record in records]
    lines, labels = [], []
    for (key, name), color in zip((("ap50_pct", "AP50"), ("ap_pct", "mAP")), (theme.muted, theme.accent), strict=True):
        points = [(record["epoch"], record[key]) for record in records if key in record]
        if points:
            x, y = zip(*points, strict=True)
            lines += precision.plot(x, y, color=color, linewidth=2, marker="o", markersize=3.5)
            labels.append(f"{name} {y[-1]:.2f} %")
    if lines:
        add_legend(precision, lines, labels, theme)
    precision.set_ylim(bottom=0)
    values = [record["train_loss"] for record in records]
    line = loss.plot(epochs, values, color=theme.accent, linewidth=1.5)
    add_legend(loss, line, [f"train {values[-1]:.3f}"], theme)
    fit_scale(loss, values)
    lr.plot(epochs, [record["lr"] for record in records], color=theme.ink, linewidth=1.5)
    lr.set_ylim(bottom=0)
    for axes, name in ((precision, "average precision, %"), (loss, "loss"), (lr, "learning rate")):
        style(axes, theme)
        axes.set_ylabel(name, color=theme.ink, fontsize=10)
    lr.set_xlim(0, max(epochs) * 1.02)
    lr.xaxis.set_major_locator(MaxNLocator(integer=True))
    lr.set_xlabel("epoch", color=theme.ink, fontsize=10)
    return figure


def draw_precision_recall(
    curves: Mapping[str, Sequence[float]], theme: Theme = LIGHT, *, narrow: bool = False
) -> Figure:  # fmt: skip
    """Draw precision by recall, mean over classes.

    Args:
        curves: of `SHOWN_CURVES`, precision at each recall of 0, 0.01, ... 1.
    """
    width = NARROW_WIDTH_IN if narrow else WIDTH_IN
    figure = Figure((width, 0.62 * width + 0.4), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    style(axes, theme)
    lines, labels = [], []
    for (key, name), color, line_style in zip(SHOWN_CURVES.items(), SERIES_COLORS, SERIES_STYLES, strict=False):
        if curve := curves.get(key):
            recall = [place / (len(curve) - 1) for place in range(len(curve))]
            lines += axes.plot(recall, curve, color=color, linestyle=line_style, linewidth=1.8)
            labels.append(f"{name}: area {100 * sum(curve) / len(curve):.1f} %")
    if lines:
        add_legend(axes, lines, labels, theme, 1 if narrow else 3)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", color=theme.ink, fontsize=10)
    axes.set_ylabel("precision, mean over classes", color=theme.ink, fontsize=10)
    return figure
