"""Recall, precision and F1 of each class."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from wideresnet.base.metrics import class_scores, confusion


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 6, 300), random.integers(0, 6, 300)
    scores = class_scores(confusion(labels, predicted, 6))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted)
    for got, expected in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
        np.testing.assert_allclose(got, expected)


def test_a_class_without_images_has_no_recall_and_one_never_predicted_has_no_precision() -> None:
    scores = class_scores(np.array([[3, 0, 0], [2, 0, 0], [0, 0, 0]]))
    np.testing.assert_equal(scores.recall, [1, 0, np.nan])
    np.testing.assert_equal(scores.precision, [0.6, np.nan, np.nan])
    np.testing.assert_equal(scores.f1, [0.75, 0, np.nan])
