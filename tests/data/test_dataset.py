from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import check_labels, every_fifth, split_images


@given(st.lists(st.integers(0, 4), max_size=60))
def test_every_fifth_image_of_each_class_is_held_out(labels: list[int]) -> None:
    is_test = every_fifth(np.array(labels, dtype=np.int64))
    seen = dict.fromkeys(range(5), 0)
    for label, held in zip(labels, is_test, strict=True):
        seen[label] += 1
        assert held == (seen[label] % 5 == 0)


def _check(train: list[int], test: list[int], names: list[str] | None = None) -> tuple[str, ...]:
    return check_labels(np.array(train), np.array(test), names, "here", lambda split, row: f"{split} row {row}")


def test_classes_without_names_are_named_by_number() -> None:
    assert _check([0, 1, 2, 1], [1]) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        ([], [0], None, "here: no train images"),
        ([0, 1], [], None, "here: no test images"),
        ([0, 1, -1], [0], None, "train row 2: label -1 is negative"),
        ([0, 1, 3], [0], None, "train row 2: label 3, but no training image has label 2"),
        ([1, 2], [1], None, "train row 0: label 1, but no training image has label 0"),
        ([0, 1, 10**12], [0], None, f"label {10**12}"),
        ([0, 0], [0], None, "only 1 class"),
        ([0, 1, 2], [0], ["a", "b"], "train row 2: label 2 is out of range; labels are 0..1"),
        ([0, 1], [0, 2], None, "test row 1: label 2 is a class without training images"),
        ([0, 2], [0], ["a", "b", "c"], r"1 of 3 classes have no training image \(b\)"),
    ],
)
def test_labels_that_break_a_rule_are_named(
    train: list[int], test: list[int], names: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _check(train, test, names)


@pytest.mark.parametrize("is_test", [[False, False, True, True], [False, True, False, True]])
def test_splitting_keeps_each_image_with_its_label(is_test: list[bool]) -> None:
    labels = np.arange(4)
    images = np.broadcast_to(labels[:, None, None, None], (4, 2, 2, 1)).astype(np.uint8)
    for split in split_images(images, labels, np.array(is_test)):
        np.testing.assert_array_equal(split.images[:, 0, 0, 0], split.labels)
        assert split.images.flags.c_contiguous
        assert split.labels.dtype == np.int64
        assert len(split) == 2
