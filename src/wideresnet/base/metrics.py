"""Classification metrics, each defined once. The only module of the ground that needs numpy.

Everything starts from integer counts, so that a number in a record, on a page and in a terminal is the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NUM_ECE_BINS = 15
"""Source: Guo et al. 2017, "On calibration of modern neural networks", Table 1."""


MIN_CLASSES_FOR_TOP5 = 10
"""With fewer classes, five guesses would be more than half of all classes. This package's choice."""


@dataclass(frozen=True)
class ClassErrors:
    """Errors by true class.

    Attributes:
        num_images: int64 (classes,), images of each class.
        num_errors: int64 (classes,), those that were taken for another class.
        error_pct: float64 (classes,), percent; NaN for a class without images.
    """

    num_images: np.ndarray
    num_errors: np.ndarray
    error_pct: np.ndarray


@dataclass(frozen=True)
class ClassScores:
    """How well each class is found, float64 (classes,), shares 0..1.

    Attributes:
        recall: of its images, those that are predicted as the class; NaN for a class without images.
        precision: of the images that are predicted as the class, those that are of it; NaN if none is.
        f1: the harmonic mean of both; NaN for a class without images, 0 if none of them is found.

    Source: van Rijsbergen 1979, "Information retrieval", chapter 7.
    """

    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray


class Confusion(NamedTuple):
    """A kind of mistake: images of class `true` that were taken for class `predicted`."""

    true: int
    predicted: int
    num_images: int


@dataclass(frozen=True)
class Calibration:
    """Predictions by the probability of the predicted class, in bins of equal width over 0..1.

    A probability on the border of two bins belongs to the lower one.

    Attributes:
        num_images: int64 (bins,), images in each bin.
        accuracy: float64 (bins,), share that is classified correctly, 0..1; NaN for a bin without images.
        confidence: float64 (bins,), mean probability of the predicted class, 0..1; likewise.
    """

    num_images: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    @property
    def error_pct(self) -> float:
        """The expected calibration error (ECE), percent. Source: Guo et al. 2017, Equation 3."""
        filled = self.num_images > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return 100 * float((gaps * self.num_images[filled]).sum() / self.num_images.sum())


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count images by true and predicted class.

    Args:
        labels: int64 (N,), true classes, 0..num_classes-1.
        predicted: int64 (N,), predicted classes, in the same order.
        num_classes: number of classes, with or without images.

    Returns:
        int64 (num_classes, num_classes): true class by row, predicted class by column.
    """
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_errors(matrix: np.ndarray) -> ClassErrors:
    """Count the errors of each class.

    Args:
        matrix: int64 (classes, classes), as `confusion` returns it.
    """
    num_images = matrix.sum(axis=1)
    num_errors = num_images - matrix.diagonal()
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return ClassErrors(num_images, num_errors, 100 * num_errors / num_images)


def class_scores(matrix: np.ndarray) -> ClassScores:
    """Measure how well each class is found.

    Args:
        matrix: int64 (classes, classes), as `confusion` returns it.
    """
    right, num_images, num_predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        f1 = np.where(num_images > 0, 2 * right / (num_images + num_predicted), np.nan)
        return ClassScores(right / num_images, right / num_predicted, f1)


def most_confused(matrix: np.ndarray, limit: int) -> list[Confusion]:
    """List the most frequent kinds of mistakes.

    Args:
        matrix: int64 (classes, classes), as `confusion` returns it.
        limit: how many at most.

    Returns:
        The most frequent first; among equals the lower true class, then the lower predicted class. Kinds that did not
        occur are left out.
    """
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    ranked = (Confusion(*divmod(int(cell), len(matrix)), num_images=int(mistakes.flat[cell])) for cell in order)
    return [kind for kind in ranked if kind.num_images]


def top_k_error(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Measure how often the true class is not among the `k` classes with the highest logits.

    Among equal logits the lower class comes first, as `argmax` has it, so that `k` = 1 is the ordinary error.

    Args:
        logits: float (N, classes), finite.
        labels: int64 (N,), true classes.
        k: number of guesses, at least 1.

    Returns:
        The error in percent.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    comes_first = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return 100 * float((comes_first.sum(axis=1) >= k).mean())


def top_probability(logits: np.ndarray) -> np.ndarray:
    """Compute the probability of the predicted class, the highest of the softmax.

    Args:
        logits: float (N, classes).

    Returns:
        float64 (N,), 0..1.
    """
    exact = logits.astype(np.float64)
    return 1 / np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1)


def calibration(probability: np.ndarray, is_right: np.ndarray, num_bins: int = NUM_ECE_BINS) -> Calibration:
    """Sort predictions into bins by the probability of the predicted class.

    Args:
        probability: float64 (N,), as `top_probability` returns it.
        is_right: bool (N,), whether the predicted class is the true one.
        num_bins: number of bins.
    """
    borders = np.linspace(0, 1, num_bins + 1)
    bins = np.searchsorted(borders[1:-1], probability)  # on a border: the lower bin
    num_images = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return Calibration(
            num_images,
            np.bincount(bins, is_right, num_bins) / num_images,
            np.bincount(bins, probability, num_bins) / num_images,
        )


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Measure how far the probabilities of the predicted classes are from how often these are right.

    Args:
        logits: float (N, classes).
        labels: int64 (N,), true classes.

    Returns:
        The expected calibration error (ECE) over `NUM_ECE_BINS` bins of equal width, percent.

    Source: Guo et al. 2017, Section 2, Equations 2 to 5.
    """
    return calibration(top_probability(logits), logits.argmax(axis=1) == labels).error_pct
