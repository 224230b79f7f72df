"""Metrics against their slow, obvious twins."""

from __future__ import annotations

import numpy as np
import pytest

from wideresnet.base.metrics import (
    calibration,
    class_errors,
    confusion,
    expected_calibration_error,
    most_confused,
    top_k_error,
    top_probability,
)

MATRIX = np.array([[5, 3, 0, 0], [1, 6, 0, 3], [0, 0, 0, 0], [1, 0, 0, 9]])


def test_every_image_is_counted_by_true_and_predicted_class() -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 4, (2, 300))
    expected = np.zeros((5, 5), int)  # the last class has no images
    for true, guess in zip(labels, predicted, strict=True):
        expected[true, guess] += 1
    assert np.array_equal(confusion(labels, predicted, 5), expected)


def test_a_class_without_images_has_no_error() -> None:
    errors = class_errors(MATRIX)
    assert errors.num_images.tolist() == [8, 10, 0, 10]
    assert errors.num_errors.tolist() == [3, 4, 0, 1]
    assert errors.error_pct[[0, 1, 3]].tolist() == [37.5, 40.0, 10.0]
    assert np.isnan(errors.error_pct[2])


def test_the_most_frequent_mistakes_come_first_and_those_that_did_not_occur_are_left_out() -> None:
    assert most_confused(MATRIX, 10) == [(0, 1, 3), (1, 3, 3), (1, 0, 1), (3, 0, 1)]
    assert most_confused(MATRIX, 2) == [(0, 1, 3), (1, 3, 3)]
    assert most_confused(np.diag([3, 4]), 5) == []


@pytest.mark.parametrize("k", [1, 2, 5, 9, 10])
def test_top_k_counts_images_whose_class_is_not_among_the_first_k(k: int) -> None:
    random = np.random.default_rng(0)
    logits, labels = random.integers(0, 6, (200, 10)).astype(np.float32), random.integers(0, 10, 200)  # with many ties
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    missed = [label not in row for label, row in zip(labels, order, strict=True)]
    assert top_k_error(logits, labels, k) == 100 * np.mean(missed)
    if k == 1:
        assert top_k_error(logits, labels, k) == 100 * np.mean(logits.argmax(1) != labels)


def slow_ece_pct(logits: np.ndarray, labels: np.ndarray, num_bins: int) -> float:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.astype(float), labels, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        place = next(m for m in range(num_bins) if m / num_bins < probabilities.max() <= (m + 1) / num_bins)
        bins.setdefault(place, []).append((probabilities.max(), bool(row.argmax() == label)))
    gaps = (abs(sum(right for _, right in each) - sum(sure for sure, _ in each)) for each in bins.values())
    return 100 * sum(gaps) / len(labels)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_calibration_error_is_that_of_the_definition(scale: float) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 10, 500)
    logits = (scale * (random.normal(size=(500, 10)) + 2 * np.eye(10)[labels])).astype(np.float32)
    assert expected_calibration_error(logits, labels) == pytest.approx(slow_ece_pct(logits, labels, 15))


def test_a_network_that_is_as_often_right_as_it_says_has_no_calibration_error() -> None:
    three_in_four = np.log(np.array([[3.0, 1.0]])).repeat(4, axis=0)
    assert top_probability(three_in_four) == pytest.approx([0.75] * 4)
    assert expected_calibration_error(three_in_four, np.array([0, 0, 1, 0])) == pytest.approx(0)
    assert expected_calibration_error(three_in_four, np.array([0, 0, 0, 0])) == pytest.approx(25)
    huge = np.array([[1e4, -1e4], [0.0, 1e5]])  # sure to the last bit, once wrongly
    assert expected_calibration_error(huge, np.array([0, 0])) == 50


def test_a_probability_on_a_border_belongs_to_the_lower_bin() -> None:
    found = calibration(np.array([0.25, 0.5, 0.51, 1.0]), np.array([True, False, True, True]), num_bins=4)
    assert found.num_images.tolist() == [1, 1, 1, 1]
    assert found.accuracy.tolist() == [1, 0, 1, 1]
    assert np.isnan(calibration(np.array([0.5]), np.array([True]), num_bins=2).accuracy[1])
