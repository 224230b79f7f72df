"""Tables and pictures of mistakes stay readable with 10, 100 and 1,000 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from page_runs import Page

from wideresnet.base.metrics import confusion
from wideresnet.report import html
from wideresnet.report.classes import classes_section
from wideresnet.report.predictions import mistakes_section, order_by_confusion
from wideresnet.report.runs import Predictions
from wideresnet.report.statistics import share_interval


def predictions_of(num_classes: int, per_class: int = 5) -> Predictions:
    """Of each ten classes, neighbors in a random order, one image of a class is taken for the next of them."""
    labels = np.arange(num_classes).repeat(per_class)
    order = np.random.default_rng(0).permutation(num_classes)
    place = np.argsort(order)
    following = order[place // 10 * 10 + (place % 10 + 1) % 10]
    predicted = labels.copy()
    predicted[::per_class] = following[labels[::per_class]]
    logits = np.eye(num_classes)[predicted] * 9
    return Predictions.of(logits, labels, [f"class {label}" for label in range(num_classes)])


def page_of(body: list[str], folder: Path) -> Page:
    (folder / "page.html").write_bytes(html.page("mistakes", body))
    return Page(folder / "page.html")


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_the_confusion_matrix_is_numbers_a_picture_or_its_worst_block(num_classes: int, tmp_path: Path) -> None:
    page = page_of(mistakes_section(predictions_of(num_classes)), tmp_path)
    pictures = [a for a in page.all("img") if "Confusion matrix" in (a["alt"] or "")]
    matrices = [row for row in page.rows if row[0] == "true \\ predicted"]
    pairs = [row for row in page.rows if row == ["true", "taken for", "images", "of the class, %"]]
    kinds = {10: (0, [10], 0), 100: (1, [], 1), 1000: (0, [20], 1)}
    assert (len(pictures), [len(row) - 1 for row in matrices], len(pairs)) == kinds[num_classes]
    assert len(page.source) < 400_000
    if num_classes == 1000:
        assert "The 20 classes with the most frequent mistakes, of 1,000: 10 of all 1,000 mistakes" in page.text
        assert "The worst 100 of 1,000 classes; no other has more than 20.0 % error." in page.text
        first = page.rows.index(matrices[0]) + 1
        block = np.array([row[1:] for row in page.rows[first : first + 20]], int)
        assert (block.diagonal() == 4).all()
        assert block.sum() == 20 * 4 + 10


def test_classes_that_are_taken_for_each_other_become_neighbors() -> None:
    predictions = predictions_of(100)
    order = order_by_confusion(confusion(predictions.labels, predictions.predicted, 100))
    assert sorted(order.tolist()) == list(range(100))
    tens = np.argsort(np.random.default_rng(0).permutation(100))[order] // 10
    assert (np.diff(tens) != 0).sum() == 9  # each ten in one piece


def test_a_matrix_without_mistakes_between_classes_keeps_all_of_them() -> None:
    for num in (1, 2, 5):
        assert sorted(order_by_confusion(np.eye(num, dtype=np.int64)).tolist()) == list(range(num))


def test_the_table_of_classes_has_the_worst_on_top_with_intervals(tmp_path: Path) -> None:
    matrix = np.array([[8, 2, 0, 0], [0, 3, 1, 0], [0, 0, 40, 0], [0, 0, 0, 0]])
    page = page_of(classes_section(matrix, ["cat", "dog", "owl", "yak"], np.array([80, 30, 400, 7])), tmp_path)
    rows = page.rows
    assert rows[0] == ["class", "error", "recall, %", "precision, %", "F1, %", "test images", "training images"]
    low, high = (f"{100 * share:.0f}" for share in share_interval(3, 4))
    assert rows[1][:3] == ["dog", "25.0 %", f"75.0 {low} to {high}"]
    assert [row[0] for row in rows[1:]] == ["dog", "cat", "owl", "yak"]
    assert rows[2][2:] == ["80.0 49 to 94", "100.0 68 to 100", "88.9", "10", "80"]
    assert rows[4][1:] == ["no image", "-", "-", "-", "0", "7"]
    assert "A full bar is 50 %." in page.text
    assert 'style="width: 50.0%"' in page.source
