"""A result in plain words: what it means for new images, and what the number of test images allows one to say."""

from __future__ import annotations

import math

import numpy as np

from wideresnet.base.format import counted
from wideresnet.data.inspection.findings import IMBALANCE
from wideresnet.report import html
from wideresnet.report.runs import Predictions
from wideresnet.report.statistics import share_interval


def summary_section(num_images: int, num_errors: int, predictions: Predictions | None = None) -> list[str]:
    """Say how many new images will be right, how sure that is, what guessing would reach, and which classes suffer.

    Args:
        num_images: of the test set, at least 1.
        num_errors: those that are classified wrong.
        predictions: of the test images; None if they are not known.
    """
    low, high = (1 - share for share in reversed(share_interval(num_errors, num_images)))
    right = 1 - num_errors / num_images
    of = next((of for of in (100, 1000) if num_errors / num_images >= 2 / of), 10_000)
    of = min(of, 10 ** max(2, math.ceil(math.log10(num_images))))  # not more digits than the sample can give
    text = (
        f"Of {of:,} new images like the test images, about {of * right:,.0f} are classified right (95 % interval "
        f"{of * low:,.0f} to {of * high:,.0f}, {counted(num_images, 'test image')})."
    )
    certainty = _certainty(num_images, num_errors, None if predictions is None else predictions.labels)
    found = [html.paragraph(text, "lead"), html.paragraph(certainty)]
    return found if predictions is None else [*found, *map(html.paragraph, _recalls(predictions))]


def _recalls(predictions: Predictions) -> list[str]:
    """Name the classes that suffer if large classes decide the error of all: recall by class, in one sentence."""
    num = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    classes = np.flatnonzero(num)
    if num.max() < IMBALANCE * num[classes].min():
        return []
    right = np.bincount(predictions.labels[~predictions.is_wrong], minlength=len(num))
    recalls = 100 * right[classes] / num[classes]
    worst = int(np.argmin(recalls))
    name, of = predictions.class_names[classes[worst]], num[classes[worst]]
    return [
        f"The classes are unbalanced, so this is mostly the error of the large ones. Of the images of a class, "
        f"{recalls.mean():.0f} % are found in the mean over classes, and {recalls[worst]:.0f} % of the worst one "
        f"({name}: {right[classes[worst]]:,} of {counted(int(of), 'test image')})."
    ]


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
