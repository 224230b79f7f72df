"""Metrics against their slow, obvious twins."""

from __future__ import annotations

import numpy as np
import pytest

from wideresnet.base.metrics import class_errors, confusion, most_confused, top_k_error

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
