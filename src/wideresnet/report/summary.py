"""A result in plain words: what it means for new images, and what the number of test images allows one to say."""

from __future__ import annotations

import math

import numpy as np

from wideresnet.base.format import counted
from wideresnet.report import html
from wideresnet.report.statistics import share_interval


def summary_section(num_images: int, num_errors: int, labels: np.ndarray | None = None) -> list[str]:
    """Say how many new images will be right, how sure that is, and what guessing would reach.

    Args:
        num_images: of the test set, at least 1.
        num_errors: those that are classified wrong.
        labels: int64 (N,), true classes of the test images; None if they are not known.
    """
    low, high = (1 - share for share in reversed(share_interval(num_errors, num_images)))
    right = 1 - num_errors / num_images
    of = next((of for of in (100, 1000) if num_errors / num_images >= 2 / of), 10_000)
    of = min(of, 10 ** max(2, math.ceil(math.log10(num_images))))  # not more digits than the sample can give
    text = (
        f"Of {of:,} new images like the test images, about {of * right:,.0f} are classified right (95 % interval "
        f"{of * low:,.0f} to {of * high:,.0f}, {counted(num_images, 'test image')})."
    )
    return [html.paragraph(text, "lead"), html.paragraph(_certainty(num_images, num_errors, labels))]


def _certainty(num_images: int, num_errors: int, labels: np.ndarray | None) -> str:
    """What the number of test images allows one to say, and the error of the simplest guess."""
    low, high = (100 * share for share in share_interval(num_errors, num_images))
    half = (high - low) / 2
    wrong = f"{counted(num_errors, 'error')} in {counted(num_images, 'test image')}"
    text = (
        f"{wrong}: the test error is {100 * num_errors / num_images:.2f} %, 95 % interval {low:.2f} to {high:.2f} %. "
    )
    # the difference of two independent shares has the square root of 2 times the width of one
    text += (
        f"On so many images, errors of two networks that differ by less than about {_points(math.sqrt(2) * half)} "
        f"may do so by chance; four times as many would halve that."
    )
    if labels is not None:
        most = 100 * float(np.bincount(labels).max() / len(labels))
        right = f"{most:.0f}" if most >= 1 else "less than 1"
        text += f" Always guessing the most frequent class would be right for {right} of 100."
    return text


def _points(value: float) -> str:
    return f"{value:.{1 if value >= 0.1 else 2}f} percentage points"
