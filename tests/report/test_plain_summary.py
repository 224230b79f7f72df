"""A result in plain words, and its confidence interval."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from wideresnet.report.runs import Predictions
from wideresnet.report.statistics import share_interval
from wideresnet.report.summary import summary_section


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_of_newcombe(count: int, total: int, low: float, high: float) -> None:
    """Source: Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3."""
    assert share_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = share_interval(total - count, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("total", [1, 7, 360, 10_000])
def test_intervals_are_those_of_scipy(total: int) -> None:
    for count in sorted({0, 1, total // 3, total - 1, total}):
        slow = binomtest(count, total).proportion_ci(method="wilson")
        assert share_interval(count, total) == pytest.approx((slow.low, slow.high), rel=1e-12)


def plain(num_images: int, num_errors: int, labels: np.ndarray | None = None, wrong: tuple[int, ...] = ()) -> str:
    predictions = None
    if labels is not None:
        predicted = labels.copy()
        predicted[list(wrong)] = (predicted[list(wrong)] + 1) % (labels.max() + 1)
        names = tuple(f"c{label}" for label in range(labels.max() + 1))
        predictions = Predictions(labels, predicted, np.ones(len(labels)), 0.0, names)
    return re.sub("<[^>]+>", "", " ".join(summary_section(num_images, num_errors, predictions)))


def test_the_summary_speaks_of_a_hundred_new_images() -> None:
    text = plain(148, 15)
    assert "Of 100 new images like the test images, about 90 are classified right (95 % interval 84 to 94" in text
    assert "148 test images" in text
    assert "15 errors in 148 test images: the test error is 10.14 %, 95 % interval 6.24 to 16.05 %" in text
    assert "less than about 6.9 percentage points" in text  # sqrt(2) of half the interval


def test_without_an_error_the_interval_still_has_a_width() -> None:
    text = plain(20, 0)
    assert "about 100 are classified right (95 % interval 84 to 100" in text
    assert "95 % interval 0.00 to 16.11 %" in text


def test_small_errors_are_told_of_as_many_images_as_it_takes() -> None:
    assert "Of 1,000 new images like the test images, about 995 " in plain(10_000, 50)
    assert "Of 10,000 new images like the test images, about 9,996 " in plain(10_000, 4)
    assert "Of 100 new images" in plain(90, 0)  # too few for finer numbers


def test_guessing_the_most_frequent_class_is_named() -> None:
    assert "right for 75 of 100" in plain(8, 2, np.array([0, 0, 0, 1] * 2))
    assert "right for less than 1 of 100" in plain(1000, 2, np.arange(1000))


def test_of_unbalanced_classes_the_recall_of_the_worst_is_told_and_the_mean_over_classes() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 5])
    text = plain(145, 4, labels, wrong=(140, 141, 142, 0))
    assert "80 % are found in the mean over classes, and 40 % of the worst one (c2: 2 of 5 test images)" in text
    assert "unbalanced" not in plain(145, 4, np.repeat([0, 1, 2], [100, 40, 11]))
