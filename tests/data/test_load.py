from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data import FACTS, Dataset, Facts, load_dataset


def own_notes(dataset: Dataset) -> tuple[str, ...]:
    """Without those on images that are there twice, as they are in these small sets."""
    return tuple(note for note in dataset.notes if "wrn check shows" not in note)


Write = Callable[..., Path]
SPLITS = {"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 3}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cifar1O", "cifar1O: no such data set, file or folder; did you mean cifar10"),
        ("mnist", "mnist: no such data set"),
        ("", "no such data set"),
        (
            "imagenet",
            "imagenet: not supported by name, because it cannot be downloaded without an account; use a folder",
        ),
        ("photos/none", "photos/none: no such file or folder"),
        ("none.npz", "none.npz: no such file or folder"),
    ],
)
def test_an_unknown_data_set_is_named_with_the_nearest(data: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(data)


def test_a_single_file_that_is_no_npz_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.touch()
    with pytest.raises(UsageError, match=r"a parquet file; use the folder"):
        load_dataset(path)


@pytest.mark.parametrize("image_size", [0, -1, 8001])
def test_an_impossible_image_size_is_a_usage_error(image_size: int) -> None:
    with pytest.raises(UsageError, match=f"image_size={image_size}: must be 1 to 8000 px"):
        load_dataset("digits", image_size=image_size)


def test_extra_with_ones_own_folder_is_a_usage_error(class_folders: Write) -> None:
    with pytest.raises(UsageError, match=r"^extra_data=True: only svhn has extra images"):
        load_dataset(class_folders(SPLITS), extra_data=True)


def test_the_image_size_holds_for_published_sets_and_archives_too(tmp_path: Path) -> None:
    digits = load_dataset("digits", image_size=12)
    assert digits.train.images.shape == (1437, 12, 12, 1)
    assert digits.facts is FACTS["digits"]
    assert digits.notes == ("all images resized from 8 x 8 to 12 x 12 px",)
    images = np.zeros((4, 200, 300, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    archive = load_dataset(tmp_path / "a.npz")
    assert archive.test.images.shape == (4, 64, 64, 3)
    assert own_notes(archive) == ("all images resized from 300 x 200 to 64 x 64 px",)


def test_a_path_is_never_read_as_a_name(class_folders: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class_folders(SPLITS).rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    by_name, by_path = load_dataset("digits"), load_dataset(Path("digits"))
    assert (by_name.name, by_name.notes) == ("digits", ("digits exists, too; use ./digits to read it instead",))
    assert len(by_path.train) == len(load_dataset("./digits").train) == 5
    assert by_path.name == "digits-own"
    assert by_path.facts is None
    assert by_path.notes == ("called digits but not the published scikit-learn digits: treated as your own data",)


@pytest.mark.parametrize(("own_names", "expected"), [(None, ("apple", "pear")), (["red", "green"], ("red", "green"))])
def test_a_published_set_in_parquet_is_recognized(
    tmp_path: Path,
    parquet_file: Write,
    own_names: list[str] | None,
    expected: tuple[str, ...],
) -> None:
    for split in ("train", "test"):
        parquet_file(tmp_path / f"fruit/{split}-0.parquet", class_names=own_names)
    means = tuple(load_dataset(tmp_path / "fruit").train.images.mean(axis=(0, 1, 2)))
    facts = Facts("tiny", "Tiny", 4, 4, 8, 3, ("apple", "pear"), (0,), (1,), means, (1,), True, "here")
    dataset = load_dataset(tmp_path / "fruit", image_size=16, known=[facts])
    assert (dataset.name, dataset.facts, dataset.class_names) == ("tiny", facts, expected)
    assert dataset.train.images.shape == (4, 16, 16, 3)
    assert own_notes(dataset) == (
        "recognized as Tiny: counts, size, classes and channel means are equal",
        "all images resized from 8 x 8 to 16 x 16 px",
    )


def test_the_same_images_come_out_of_every_format(class_folders: Write, parquet_file: Write, tmp_path: Path) -> None:
    folder = class_folders(SPLITS)

    def pixels(split: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted((folder / split).rglob("*.png"))]

    labels = [0, 0, 1, 1, 1]
    arrays = {}
    for split in ("train", "test"):
        parquet_file(tmp_path / f"d/{split}-0.parquet", labels, images=pixels(split), class_names=["cat", "dog"])
        arrays[f"x_{split}"] = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in pixels(split)])
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "a.npz", class_names=np.array(["cat", "dog"]), **arrays)

    def content(dataset: Dataset) -> list[object]:
        sets = (dataset.train, dataset.test)
        return [dataset.class_names, *((s.images.tolist(), s.labels.tolist()) for s in sets)]

    first = content(load_dataset(folder))
    assert content(load_dataset(tmp_path / "d")) == first
    assert content(load_dataset(tmp_path / "a.npz")) == first


def test_pillows_own_warnings_neither_reach_the_user_nor_change_the_reason(
    class_folders: Write, bomb: Callable[[int, int], bytes]
) -> None:
    folder = class_folders(SPLITS)
    (folder / "train/cat/0.png").write_bytes(bomb(9600, 9600))  # Pillow warns of this size on opening
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="9600 x 9600 pixels, the limit is 64 million"):
            load_dataset(folder)
