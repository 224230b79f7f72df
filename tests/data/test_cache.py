from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import DataError
from wideresnet.data import Dataset, cache, load_dataset

Write = Callable[..., Path]


@pytest.fixture
def folder(class_folders: Write) -> Path:
    """Ten images of two sizes in two classes, one of them gray, so that there are notes."""
    folder = class_folders({"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 3}})
    Image.new("L", (12, 8)).save(folder / "train/cat/0.png")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Pillow has opened: each image twice, for its size and for its pixels."""
    opened: list[Any] = []
    original = Image.open

    def counting(source: Any, *args: Any, **options: Any) -> Any:
        opened.append(source)
        return original(source, *args, **options)

    monkeypatch.setattr(Image, "open", counting)
    return opened


def _entry(data_root: Path) -> Path:
    (path,) = (data_root / "decoded").glob("*.safetensors")
    return path


def _assert_equal(first: Dataset, second: Dataset) -> None:
    for one, other in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert other.images.flags.writeable
        assert other.images.flags.c_contiguous
    assert first.class_names == second.class_names


def test_a_second_load_decodes_nothing_and_says_the_same(folder: Path, opened: list[Any]) -> None:
    first = load_dataset(folder)
    assert len(opened) == 2 * 10
    second = load_dataset(folder)
    assert len(opened) == 2 * 10
    assert first.notes == second.notes
    assert len(first.notes) == 2
    _assert_equal(first, second)


def test_parquet_is_cached_too(tmp_path: Path, parquet_file: Write, opened: list[Any]) -> None:
    for split in ("train", "test"):
        parquet_file(tmp_path / f"d/{split}-0.parquet", class_names=["cat", "dog"])
    first = load_dataset(tmp_path / "d")
    _assert_equal(first, load_dataset(tmp_path / "d"))
    assert len(opened) == 2 * 8


def test_left_out_images_stay_left_out_and_counted(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"")
    first, second = (load_dataset(folder, skip_unreadable=True) for _ in range(2))
    assert len(second.train) == 4
    assert first.notes == second.notes
    _assert_equal(first, second)
    with pytest.raises(DataError, match="1 of 10"):
        load_dataset(folder)


@pytest.mark.parametrize("change", ["content", "time", "name", "size"])
def test_any_change_is_noticed(folder: Path, opened: list[Any], change: str) -> None:
    load_dataset(folder)
    path = folder / "train/dog/1.png"
    if change == "content":
        Image.new("RGB", (8, 8)).save(path)
    elif change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "name":
        path.rename(path.with_name("7.png"))
    load_dataset(folder, image_size=16 if change == "size" else None)
    assert len(opened) == 2 * 20


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty"])
def test_a_damaged_entry_is_reported_and_rebuilt(folder: Path, data_root: Path, damage: str) -> None:
    first = load_dataset(folder)
    path = _entry(data_root)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"cut": content[:-50], "flip": content, "garbage": b"\xff" * 300, "empty": b""}[damage])
    second = load_dataset(folder)
    assert second.notes == (*first.notes, f"the cached images {path} were damaged and have been decoded again")
    _assert_equal(first, second)
    assert load_dataset(folder).notes == first.notes


def test_nothing_is_written_next_to_the_users_files(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    load_dataset(folder)
    assert sorted(folder.rglob("*")) == before


def test_an_unwritable_cache_is_noted_and_the_load_goes_on(folder: Path, data_root: Path) -> None:
    data_root.write_text("a file where the folder should be")
    dataset = load_dataset(folder)
    assert len(dataset.train) == 5
    assert f"decoded images could not be cached in {data_root / 'decoded'}" in dataset.notes[-1]


def test_a_full_disk_is_noted_and_leaves_nothing_behind(
    folder: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half an entry")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    dataset = load_dataset(folder)
    assert len(dataset.train) == 5
    assert "No space left on device" in dataset.notes[-1]
    assert list((data_root / "decoded").iterdir()) == []


def test_the_cache_can_be_listed_and_cleared_without_touching_other_files(folder: Path, data_root: Path) -> None:
    assert cache.cache_contents() == []
    assert cache.clear_cache() == 0
    load_dataset(folder)
    entry = _entry(data_root)
    unfinished = entry.with_suffix(".123.tmp")
    unfinished.write_bytes(b"abc")
    foreign = entry.with_name(".tmpAb3dEf")  # what safetensors leaves when it is killed
    foreign.write_bytes(b"abcd")
    others = [data_root / "cifar-10-python.tar.gz", data_root / "decoded/weights.safetensors"]
    for other in others:
        other.write_bytes(b"mine")
    size = entry.stat().st_size
    assert cache.cache_contents() == [
        (entry.name, size, f"decoded from {folder}"),
        (foreign.name, 4, "decoded images, unfinished"),
        (unfinished.name, 3, "decoded images, unfinished"),
    ]
    assert cache.downloads_bytes() == 8
    assert cache.clear_cache() == size + 7
    assert sorted(data_root.rglob("*.*")) == sorted(others)


def test_what_killed_processes_left_behind_is_removed_after_an_hour(folder: Path, data_root: Path) -> None:
    decoded = data_root / "decoded"
    decoded.mkdir(parents=True)
    names = [".tmpAb3dEf", f"{'0' * 64}.123.tmp", "mine.tmp"]
    for name in names:
        for age in ("old", "new"):
            path = decoded / (name if age == "old" else name.replace("3", "4"))
            path.write_bytes(b"abc")
            if age == "old":
                os.utime(path, ns=(0, 0))
    load_dataset(folder)
    left = {path.name for path in decoded.iterdir() if path.suffix != ".safetensors"}
    assert left == {".tmpAb4dEf", f"{'0' * 64}.124.tmp", "mine.tmp"}


def test_decoded_images_that_others_could_have_written_are_not_trusted(
    folder: Path, data_root: Path, opened: list[Any]
) -> None:
    first = load_dataset(folder)
    path = _entry(data_root)
    assert (data_root / "decoded").stat().st_mode & 0o777 == 0o700
    for place, mode in ((path, 0o666), (path.parent, 0o777)):
        place.chmod(mode)
        before = len(opened)
        second = load_dataset(folder)
        assert len(opened) == before + 20
        expected = f"the cached images {path} are not used, because others can write to {place}"
        assert second.notes == (*first.notes, expected)
        _assert_equal(first, second)
        assert load_dataset(folder).notes == first.notes  # stored again, in private


def test_a_cache_whose_path_is_not_utf8_never_calls_its_entries_damaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRN_DATA", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    first, second = load_dataset(folder), load_dataset(folder)
    _assert_equal(first, second)
    assert not any("damaged" in note for note in second.notes)


def test_kernels_and_measurements_are_listed_and_cleared_and_are_no_downloads(data_root: Path) -> None:
    kernels = data_root / "kernels"
    kernels.mkdir(parents=True)
    library = kernels / f"{'0' * 32}-{'1' * 32}.so"
    files = {library: 5, data_root / "fastest.json": 7, kernels / "mine.so": 11, data_root / "cifar-10.tar.gz": 13}
    for path, size in files.items():
        path.write_bytes(bytes(size))
    (kernels / ".build-1").mkdir()
    (kernels / ".build-1" / "winograd.o").write_bytes(bytes(17))
    assert [(name, size) for name, size, _ in cache.cache_contents()] == [(library.name, 5), ("fastest.json", 7)]
    assert cache.downloads_bytes() == 13
    assert cache.clear_cache() == 12
    assert cache.cache_contents() == []
    assert cache.downloads_bytes() == 13
    assert (kernels / "mine.so").exists()


def test_the_data_root_is_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, data_root: Path, tmp_path: Path
) -> None:
    assert cache.data_root() == data_root
    monkeypatch.delenv("WRN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.data_root() == tmp_path / ".cache/wideresnet"
