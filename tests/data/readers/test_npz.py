from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from wideresnet.base.errors import DataError
from wideresnet.data import Dataset, load_dataset


def own_notes(dataset: Dataset) -> tuple[str, ...]:
    """Without those on images that are there twice, as they are in these small sets."""
    return tuple(note for note in dataset.notes if "wrn check shows" not in note)


KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def _arrays(keys: tuple[str, ...] = KERAS, **changed: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    arrays = dict(zip(keys, (images, labels, images[:4], labels[:4]), strict=True))
    return {name: value for name, value in {**arrays, **changed}.items() if value is not None}


def _saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "cells.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("keys", [KERAS, MEDMNIST])
def test_arrays_come_back_as_they_are(tmp_path: Path, keys: tuple[str, ...]) -> None:
    arrays = _arrays(keys)
    dataset = load_dataset(_saved(tmp_path, **arrays))
    assert (dataset.name, dataset.class_names, dataset.facts, own_notes(dataset)) == (
        "cells",
        ("0", "1"),
        None,
        (),
    )
    np.testing.assert_array_equal(dataset.train.images, arrays[keys[0]])
    np.testing.assert_array_equal(dataset.test.labels, arrays[keys[3]])
    assert dataset.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("shape", "expected", "num_notes"),
    [
        ((10, 6, 5), (10, 6, 5, 1), 0),
        ((10, 6, 5, 1), (10, 6, 5, 1), 0),
        ((10, 3, 6, 5), (10, 6, 5, 3), 2),
        ((10, 1, 6, 5), (10, 6, 5, 1), 2),
    ],
)
def test_every_accepted_shape_becomes_channels_last(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...], num_notes: int
) -> None:
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    dataset = load_dataset(_saved(tmp_path, **_arrays(x_train=images, x_test=images[:4])))
    assert dataset.train.images.shape == expected
    assert dataset.train.images.flags.c_contiguous
    assert len(own_notes(dataset)) == num_notes
    channel_first = images if num_notes else images.reshape(expected).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(dataset.train.images.transpose(0, 3, 1, 2), channel_first)


def test_class_names_columns_of_labels_and_unread_arrays(tmp_path: Path) -> None:
    arrays = _arrays(MEDMNIST, class_names=np.array(["ill", "well"]), val_images=np.zeros(3), val_labels=np.zeros(3))
    arrays["train_labels"] = arrays["train_labels"][:, None].astype(np.uint8)
    dataset = load_dataset(_saved(tmp_path, **arrays))
    assert dataset.class_names == ("ill", "well")
    assert dataset.train.labels.shape == (10,)
    assert own_notes(dataset) == ("not read: val_images, val_labels",)


def test_without_test_arrays_every_fifth_image_of_a_class_is_held_out(tmp_path: Path) -> None:
    dataset = load_dataset(_saved(tmp_path, **_arrays(x_test=None, y_test=None)))
    assert (len(dataset.train), dataset.test.labels.tolist()) == (8, [0, 1])
    assert own_notes(dataset) == ("no x_test: every 5th image of each class is held out, 2 images",)


_SPOILT = np.full((10, 6, 5, 3), 0.5)
_SPOILT[0, 0, 0] = [np.nan, np.inf, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": None}, r"needs x_train, y_train, x_test, y_test or .* it has y_train, x_test, y_test"),
        ({"y_test": None}, "needs x_train"),
        ({"x_train": _SPOILT}, "2 of 900 values are NaN or infinite"),
        ({"x_train": np.zeros((10, 6, 5, 3), dtype=np.float32)}, r"x_train is float32 with .*np.rint\(x \* 255\)"),
        (
            {"x_train": np.full((10, 6, 5, 3), -1)},
            "x_train is int64 with values -1 to 2.*; images must be uint8",
        ),
        ({"x_train": np.zeros((10, 90), dtype=np.uint8)}, r"x_train has shape \(10, 90\)"),
        ({"x_train": np.zeros((10, 6, 5, 4), dtype=np.uint8)}, r"x_train has shape \(10, 6, 5, 4\)"),
        ({"x_train": np.zeros((10, 7, 5, 3), dtype=np.uint8)}, "height, width and channels must be equal"),
        ({"x_train": np.zeros((9, 6, 5, 3), dtype=np.uint8)}, "x_train has 9 images but y_train 10 labels"),
        ({"y_train": np.zeros((10, 14), dtype=int)}, "y_train is multi-label: 14 yes/no labels per image"),
        ({"y_train": np.array([0.0, np.nan] * 5)}, "y_train row 1 is NaN"),
        ({"y_train": np.zeros(10)}, "only 1 class"),
        ({"y_train": np.linspace(0, 1, 10)}, "y_train row 1 is 0.111111; labels must be whole numbers or names"),
        ({"y_train": np.array([0, 1, -1] + [0] * 7)}, "y_train row 2: label -1 is negative"),
        ({"y_train": np.array([0, 2**63] * 5, dtype=np.uint64)}, f"row 1: label {2**63} is out of range"),
        ({"y_test": np.array([0, 1, 2, 0])}, "y_test row 2: label 2 is a class without training images"),
        ({"class_names": np.array(["a"])}, "only 1 class"),
        ({"class_names": np.array(["a", "b", "c"])}, r"1 of 3 classes have no training image \(c\)"),
        ({"class_names": np.array([1, 2])}, "class_names is int64"),
        (
            {"x_test": np.zeros((0, 6, 5, 3), dtype=np.uint8), "y_test": np.zeros(0, dtype=int)},
            "no test images",
        ),
        ({"y_train": np.array([0, 1] * 5, dtype=object)}, "pickled objects"),
        ({"class_names": np.array(["a", "b"], dtype=object)}, "pickled objects"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = _saved(tmp_path, **_arrays(**changed))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged or not an \.npz"):
        load_dataset(path)


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, **_arrays())
    content = bytearray(path.read_bytes())
    content[300:600] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load_dataset(path)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_arrays_give_a_dataset_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kinds = st.sampled_from(["u1", "i8", "f4", "?", "U3"])
    shapes = st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    arrays = {name: data.draw(st_numpy.arrays(kinds.map(np.dtype), shapes), label=name) for name in KERAS}
    path = _saved(tmp_path_factory.mktemp("npz"), **arrays)
    try:
        dataset = load_dataset(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert set(dataset.test.labels) <= set(dataset.train.labels)
