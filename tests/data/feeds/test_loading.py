"""Images that stay where they are have the pixels, labels and notes of those that are decoded at once."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagenet_like import add, make_folders, make_shards
from wideresnet.base.errors import DataError
from wideresnet.data import Dataset, load_dataset
from wideresnet.data.feeds.lazy import lazy
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.inference.check import check_data


def write_deep(folder: Path, peak: int = 1023) -> Path:
    """Class folders of 16-bit PNGs, gray and in color, that use ten bits; some with transparency, turned or in CMYK."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            values = random.integers(0, peak, (20, 20), dtype=np.uint16)
            values[0, 0] = peak
            Image.fromarray(values).save(folder / name / f"{number}.png")
        flat = random.integers(0, 256, (20, 20, 4), dtype=np.uint8)
        Image.fromarray(flat).save(folder / name / "clear.png")
        Image.fromarray(flat, "CMYK").save(folder / name / "ink.jpg")
        exif = Image.Exif()
        exif[0x0112] = 5 + label
        Image.fromarray(flat[..., :3]).save(folder / name / "turned.jpg", exif=exif)
    return folder


def as_shards(folder: Path, place: Path) -> Path:
    place.mkdir()
    with tarfile.open(place / "all.tar", "w") as tar:
        for number, file in enumerate(sorted(folder.rglob("*.*"))):
            add(tar, f"{number:04d}{file.suffix}", file.read_bytes())
            add(tar, f"{number:04d}.cls", b"%d" % (file.parent.name == "b"))
    return place


def as_table(folder: Path, place: Path) -> Path:
    place.mkdir()
    rows = ["file,label"]
    for file in sorted(folder.rglob("*.*")):
        shutil.copy(file, place / f"{file.parent.name}{file.name}")
        rows.append(f"{file.parent.name}{file.name},{file.parent.name}")
    (place / "labels.csv").write_text("\n".join(rows))
    return place


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "folders": lambda folder, _: folder,
    "shards": as_shards,
    "table": as_table,
}


def both(data: Path, **options: int) -> tuple[Dataset, Dataset]:
    stream, resident = (load_dataset(data, feed=feed, **options) for feed in ("stream", "resident"))  # type: ignore[arg-type]
    assert lazy(stream.train.images) is not None
    assert lazy(resident.train.images) is None
    return stream, resident


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"white": 2000}, {"image_size": 12}])
def test_every_image_has_the_same_pixels_in_both_ways(tmp_path: Path, layout: str, options: dict[str, int]) -> None:
    stream, resident = both(LAYOUTS[layout](write_deep(tmp_path / "deep"), tmp_path / "other"), **options)
    for ours, theirs in ((stream.train, resident.train), (stream.test, resident.test)):
        np.testing.assert_array_equal(np.asarray(ours.images), theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (stream.white, stream.class_names, stream.layout) == (resident.white, resident.class_names, resident.layout)
    assert stream.white == options.get("white", 1023)
    deep = f"the 16-bit images hold values up to 1,023: {stream.white:,}"
    assert [any(note.startswith(deep) for note in dataset.notes) for dataset in (stream, resident)] == [True, True]


def test_workers_of_a_stream_scale_16_bits_too(tmp_path: Path) -> None:
    stream, resident = both(write_deep(tmp_path / "deep"))
    images = lazy(stream.train.images)
    assert images is not None
    for workers in (0, 1):
        feed = StreamFeed(images, stream.train.labels, Preprocessing("scale"), batch_size=14, workers=workers)
        with feed.running():
            batch, _ = next(feed.epoch(0))
        expected = resident.train.images[feed.plan(0, "cpu")[0].order[:14].numpy()]
        np.testing.assert_array_equal((batch * 255).round().permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("feed", ["stream", "resident"])
def test_an_image_beyond_16_bits_is_named_and_the_others_stay_as_they_are(tmp_path: Path, feed: Any) -> None:
    folder = write_deep(tmp_path / "deep")
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(folder / "a/beyond.tif")
    with pytest.raises(DataError, match=r"^1 of 19 images .*beyond\.tif \(pixels from 0 to 70000, beyond 16 bits"):
        load_dataset(folder, feed=feed)
    others = load_dataset(folder, feed=feed, skip_unreadable=True)
    assert others.white == 1023
    assert len(others.train) + len(others.test) == 18
    assert np.asarray(others.train.images).max() == 255


def test_measured_sizes_and_values_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_deep(tmp_path / "deep")
    first = load_dataset(folder, feed="stream")
    monkeypatch.setattr("wideresnet.data.feeds.loading.measure", lambda _: pytest.fail("measured again"))
    second = load_dataset(folder, feed="stream")
    assert (first.white, first.train.images.shape) == (second.white, second.train.images.shape)


def test_what_a_stream_does_not_look_for_is_said(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "set", num_classes=2, train=5, test=2, high=100)
    shutil.copy(folder / "train/class00/0.jpg", folder / "val/class00/0.jpg")
    stream, resident = both(folder, image_size=32)
    assert any("twice are not looked for in a stream; wrn check shows them" in note for note in stream.notes)
    assert any("1 test image is also in the training set" in note for note in resident.notes)


def test_images_in_a_zip_are_decoded_at_once_with_a_note(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "set", num_classes=2, train=5, test=2, high=100)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    dataset = load_dataset(tmp_path / "set.zip", image_size=32, feed="stream")
    assert lazy(dataset.train.images) is None
    assert any(note.startswith("feed='stream': images in class folders in train/") for note in dataset.notes)
    assert not any("feed=" in note for note in load_dataset(tmp_path / "set.zip", image_size=32).notes)


def test_another_size_of_a_stream_leaves_it_a_stream(tmp_path: Path) -> None:
    stream, resident = both(write_deep(tmp_path / "deep"), image_size=40)
    assert stream.train.images.shape[1:] == (40, 40, 3)
    np.testing.assert_array_equal(np.asarray(stream.test.images), resident.test.images)


def test_check_looks_into_shards(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "set", num_classes=2, train=5, test=2, high=100)
    shutil.copy(folder / "train/class00/0.jpg", folder / "val/class00/0.jpg")
    found, _ = check_data(make_shards(tmp_path / "shards", folder), device="cpu")
    assert (found["layout"], found["splits"]) == ("tar shards", {"train": 10, "test": 4})
    assert found["duplicates"]["exact"]["across_splits"] == 1
    path = tmp_path / "shards/tiny-train-0000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    found, _ = check_data(tmp_path / "shards", device="cpu")
    assert not found["ready"]
    assert "tiny-train-0000.tar: " in found["verdict"]


@pytest.mark.parametrize("where", ["", "train"])
def test_an_archive_that_the_images_were_unpacked_from_is_no_shard(tmp_path: Path, where: str) -> None:
    folder = make_folders(tmp_path / "set", num_classes=2, train=5, test=2, high=100)
    (folder / where / "train.tar").write_bytes(b"junk")
    assert len(load_dataset(folder, image_size=32).train) == 10
