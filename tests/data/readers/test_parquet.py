from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wideresnet.base.errors import DataError
from wideresnet.data import Dataset, load_dataset


def own_notes(dataset: Dataset) -> tuple[str, ...]:
    """Without those on images that are there twice, as they are in these small sets."""
    return tuple(note for note in dataset.notes if "wrn check shows" not in note)


@pytest.mark.parametrize("image_column", ["img", "image"])
@pytest.mark.parametrize("label_column", ["label", "fine_label"])
@pytest.mark.parametrize("raw", [False, True])
def test_images_labels_and_names_come_back_in_order(
    tmp_path: Path,
    parquet_file: Callable[..., Path],
    pixels: Callable[..., np.ndarray],
    image_column: str,
    label_column: str,
    raw: bool,
) -> None:
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "raw": raw}
    names = ["cat", "dog"]
    folder = tmp_path / "pets"
    parquet_file(folder / "train-00000-of-00002.parquet", [0, 1, 0, 1], class_names=names, **columns)
    parquet_file(folder / "train-00001-of-00002.parquet", [1, 1], class_names=names, **columns)
    parquet_file(folder / "test-00000-of-00001.parquet", [1, 0], class_names=names, **columns)
    dataset = load_dataset(folder)
    assert (dataset.name, dataset.class_names, dataset.facts) == ("pets", ("cat", "dog"), None)
    assert own_notes(dataset) == ()
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [1, 0]
    assert dataset.train.labels.dtype == np.int64
    expected = np.stack([pixels(seed=seed) for seed in (0, 1, 2, 3, 0, 1)])
    np.testing.assert_array_equal(dataset.train.images, expected)
    np.testing.assert_array_equal(dataset.test.images, expected[:2])


def test_without_names_classes_are_numbered(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    parquet_file(tmp_path / "d/train.parquet")
    parquet_file(tmp_path / "d/test.parquet")
    assert load_dataset(tmp_path / "d").class_names == ("0", "1")


@pytest.mark.parametrize("split", ["validation", "valid", "val"])
def test_a_validation_split_stands_in_for_a_missing_test_split(
    tmp_path: Path, parquet_file: Callable[..., Path], split: str
) -> None:
    parquet_file(tmp_path / "d/train-0.parquet")
    parquet_file(tmp_path / f"d/{split}-0.parquet", [1, 0])
    dataset = load_dataset(tmp_path / "d")
    assert dataset.test.labels.tolist() == [1, 0]
    assert own_notes(dataset) == (f"no test-*.parquet: {split}-*.parquet is the test set",)


def test_files_of_other_splits_are_named(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    for name in ("train", "test", "validation", "extra"):
        parquet_file(tmp_path / f"d/{name}-0.parquet")
    assert own_notes(load_dataset(tmp_path / "d")) == ("not read: extra-0.parquet, validation-0.parquet",)


def test_without_any_test_split_every_fifth_row_of_a_class_is_held_out(
    tmp_path: Path, parquet_file: Callable[..., Path]
) -> None:
    parquet_file(tmp_path / "d/train-0.parquet", [0, 1] * 6)
    dataset = load_dataset(tmp_path / "d")
    assert dataset.test.labels.tolist() == [0, 1]
    assert len(dataset.train) == 10
    assert own_notes(dataset) == ("no test-*.parquet: every 5th image of each class is held out, 2 images",)


def test_files_in_one_subfolder_are_found_and_in_several_refused(
    tmp_path: Path, parquet_file: Callable[..., Path]
) -> None:
    for split in ("train", "test"):
        parquet_file(tmp_path / f"pets/data/{split}-0.parquet")
    dataset = load_dataset(tmp_path / "pets")
    assert (dataset.name, own_notes(dataset)) == ("pets", ("parquet files found in the subfolder data",))
    parquet_file(tmp_path / "pets/other/train-0.parquet")
    with pytest.raises(DataError, match=r"several subfolders \(data, other\)"):
        load_dataset(tmp_path / "pets")


def test_a_missing_shard_stops_the_run(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    parquet_file(tmp_path / "d/train-00000-of-00002.parquet")
    parquet_file(tmp_path / "d/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="one of 2 files, and number 1 is missing"):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "image", "image_column": "x"}, "column image is int64; it must hold the content"),
        ({"labels": [0, None, 1]}, "row 1: label is null"),
        ({"labels": [0.0, 1.0, float("nan")], "label_type": pa.float64()}, "row 2: label is NaN"),
        (
            {"labels": [0.5, 1.0], "label_type": pa.float32()},
            "row 0: label is 0.5; labels must be integers",
        ),
        (
            {"labels": ["a", "b"], "label_type": pa.string()},
            "labels are names in some files and numbers in others",
        ),
        ({"labels": [0, 1, -3]}, "row 2: label -3 is negative"),
        (
            {"labels": [0, 1, 1, 5], "class_names": ["a", "b"]},
            r"train-0.parquet row 3: label 5 is out of range",
        ),
        ({"labels": [0, 1], "class_names": ["a", "b", "c"]}, r"1 of 3 classes have no training image \(c\)"),
        ({"labels": []}, "no train images"),
    ],
)
def test_columns_and_labels_that_cannot_be_used_are_named(
    tmp_path: Path, parquet_file: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    parquet_file(tmp_path / "d/train-0.parquet", **options)
    shared = {key: value for key, value in options.items() if key == "class_names"}
    parquet_file(tmp_path / "d/test-0.parquet", [0, 1], **shared)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "d")


def test_a_test_class_that_train_lacks_is_named_with_its_file_and_row(
    tmp_path: Path, parquet_file: Callable[..., Path]
) -> None:
    parquet_file(tmp_path / "d/train-0.parquet", [0, 1])
    parquet_file(tmp_path / "d/test-00000-of-00002.parquet", [0, 1, 1])
    parquet_file(tmp_path / "d/test-00001-of-00002.parquet", [0, 2])
    with pytest.raises(DataError, match=r"test-00001-of-00002.parquet row 1: label 2 is a class without"):
        load_dataset(tmp_path / "d")


def test_files_that_disagree_on_class_names_are_refused(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    parquet_file(tmp_path / "d/train-0.parquet", class_names=["cat", "dog"])
    parquet_file(tmp_path / "d/test-0.parquet", class_names=["dog", "cat"])
    with pytest.raises(DataError, match=r"test-0.parquet: class names differ from train-0.parquet"):
        load_dataset(tmp_path / "d")


def test_one_row_is_too_few(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "d/train-0.parquet")
    with pytest.raises(DataError, match="no test images: no test-"):
        load_dataset(tmp_path / "d")


def test_test_files_without_train_files_are_refused(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    parquet_file(tmp_path / "d/test-0.parquet")
    with pytest.raises(DataError, match="no train-"):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, parquet_file: Callable[..., Path], keep: int) -> None:
    parquet_file(tmp_path / "d/train-0.parquet")
    path = parquet_file(tmp_path / "d/test-0.parquet")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"test-0.parquet: cannot be read as parquet") as caught:
        load_dataset(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_damage_inside_the_image_column_is_one_line(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    path = parquet_file(tmp_path / "d/train-0.parquet")
    parquet_file(tmp_path / "d/test-0.parquet")
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-0.parquet") as caught:
        load_dataset(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_unreadable_rows_are_counted_and_can_be_left_out(
    tmp_path: Path,
    parquet_file: Callable[..., Path],
    pixels: Callable[..., np.ndarray],
    encoded: Callable[..., bytes],
) -> None:
    good = [encoded(pixels(seed=seed)) for seed in range(4)]
    parquet_file(tmp_path / "d/train-0.parquet", [0, 1, 0, 1], images=[good[0], b"", None, good[3]])
    parquet_file(tmp_path / "d/test-0.parquet", [0, 1], images=good[:2])
    message = (
        r"2 of 6 images cannot be read: train-0.parquet row 1 \(empty file\); "
        r"train-0.parquet row 2 \(no image bytes"
    )
    with pytest.raises(DataError, match=message + r".*skip_unreadable=True"):
        load_dataset(tmp_path / "d")
    dataset = load_dataset(tmp_path / "d", skip_unreadable=True)
    assert dataset.train.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(dataset.train.images[1], pixels(seed=3))
    assert own_notes(dataset)[0].startswith("left out, 2 of 6 images cannot be read")


def test_leaving_out_all_images_of_a_class_stops_the_run(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    parquet_file(tmp_path / "d/train-0.parquet", [0, 1], images=[b"", b"x"])
    parquet_file(tmp_path / "d/test-0.parquet")
    with pytest.raises(DataError, match="no train images"):
        load_dataset(tmp_path / "d", skip_unreadable=True)
