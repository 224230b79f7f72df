"""How far a network's probabilities can be trusted: the reliability diagram of a run's page."""

from __future__ import annotations

import functools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wideresnet.base.metrics import NUM_ECE_BINS, Calibration, calibration
from wideresnet.report import html
from wideresnet.report.figures import LIGHT, NARROW_WIDTH_IN, Theme, style
from wideresnet.report.runs import Predictions


def draw_calibration(measured: Calibration, theme: Theme = LIGHT, *, narrow: bool = True) -> Figure:
    """Draw accuracy over confidence, with the gap between them, and the share of images in each bin.

    Source: Guo et al. 2017, "On calibration of modern neural networks", Figures 1 and 4.

    Args:
        measured: at least one image.
        theme: colors.
        narrow: the diagram is always small.
    """
    del narrow
    figure = Figure((NARROW_WIDTH_IN, 4.6), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    num_bins = len(measured.num_images)
    width, filled = 100 / num_bins, measured.num_images > 0
    centers = 100 * (np.arange(num_bins) + 0.5)[filled] / num_bins
    accuracy, confidence = 100 * measured.accuracy[filled], 100 * measured.confidence[filled]
    for axes in (upper, lower):
        style(axes, theme)
    upper.plot((0, 100), (0, 100), color=theme.muted, linewidth=1, linestyle="--")
    upper.vlines(confidence, confidence, accuracy, color=theme.wrong, linewidth=2)
    upper.plot(confidence, accuracy, "o", color=theme.accent, markersize=6, clip_on=False)
    upper.set_ylabel("accuracy, %", color=theme.ink, fontsize=10)
    upper.set(xlim=(0, 100), ylim=(0, 100))
    lower.bar(centers, 100 * measured.num_images[filled] / measured.num_images.sum(), 0.9 * width, color=theme.muted)
    lower.set_ylabel("images, %", color=theme.ink, fontsize=10)
    lower.set_xlabel("probability of the predicted class, %", color=theme.ink, fontsize=10)
    return figure


def calibration_section(predictions: Predictions) -> list[str]:
    """Show accuracy by confidence, and say what their mean difference is."""
    measured = calibration(predictions.probability, ~predictions.is_wrong)
    sure, right = 100 * predictions.probability.mean(), 100 * (~predictions.is_wrong).mean()
    about = (
        f"How often the predicted class is right, by its probability in {NUM_ECE_BINS} bins; on the dashed line both "
        "are equal. Red: the gap. Its mean over all images is the expected calibration error (ECE), "
        f"{measured.error_pct:.2f} %. The mean probability is {sure:.1f} %, and {right:.1f} % are right: the network "
        f"is {'overconfident' if sure > right else 'underconfident'}."
    )
    alt = f"Reliability diagram: accuracy by the probability of the predicted class; ECE {measured.error_pct:.2f} %."
    drawing = html.picture(functools.partial(draw_calibration, measured), alt, small=True)
    return [html.heading("Calibration"), drawing, html.paragraph(about, "muted")]
