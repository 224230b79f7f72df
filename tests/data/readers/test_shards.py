"""Tar shards hold the images of the folders that they were made from; damaged and hostile ones end in one line."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_like import add, encoded, make_folders, make_shards
from wideresnet.base.errors import DataError
from wideresnet.data import load_dataset
from wideresnet.data.feeds.lazy import lazy
from wideresnet.data.readers import shards as reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("tiny") / "set", num_classes=4, train=6, test=2, high=100)


@pytest.mark.parametrize("kind", ["cls", "json", "txt"])
@pytest.mark.parametrize("feed", ["resident", "stream"])
def test_shards_are_the_folders_they_were_made_from(folder: Path, tmp_path: Path, kind: str, feed: str) -> None:
    packed = load_dataset(make_shards(tmp_path / "shards", folder, kind, per_shard=10), image_size=32, feed=feed)
    plain = load_dataset(folder, image_size=32, feed="resident")
    for ours, theirs in ((packed.train, plain.train), (packed.test, plain.test)):
        np.testing.assert_array_equal(np.asarray(ours.images), theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert packed.class_names == plain.class_names
    assert (lazy(packed.train.images) is not None) == (feed == "stream")
    assert "4 tar shards with 32 images" in packed.notes


def test_the_index_is_built_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path / "shards", folder)
    first = load_dataset(shards, image_size=32, feed="stream")
    monkeypatch.setattr(reader, "_read_one", lambda *_: pytest.fail("indexed again"))
    second = load_dataset(shards, image_size=32, feed="stream")
    np.testing.assert_array_equal(np.asarray(first.test.images), np.asarray(second.test.images))


def test_one_shard_alone_gives_up_every_fifth_image(folder: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", folder)
    dataset = load_dataset(tmp_path / "shards/tiny-train-0000.tar", image_size=32)
    assert (len(dataset.train), len(dataset.test)) == (20, 4)
    assert any(note.startswith("no test shards: every 5th image") for note in dataset.notes)


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    return path


def sample(number: int, label: bytes = b"0") -> dict[str, bytes]:
    return {f"{number:06d}.jpg": encoded(number, high=80), f"{number:06d}.cls": label}


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def link(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("000009.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def long_header(path: Path) -> None:
    """A member whose extended header claims 8 GiB."""
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 2**33
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)


def flip_header(path: Path) -> None:
    """Damage the header of the second sample's image, where tarfile alone would see the end."""
    content = bytearray(path.read_bytes())
    at = content.index(b"000001.jpg")
    content[at + 150] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: cut(path, 1500), r"train\.tar: damaged at 000000\.jpg \((it ends at byte 1,500|unexpected end)"),
        (lambda path: cut(path, path.stat().st_size // 512 * 512 - 20 * 512), r"train\.tar: (damaged|cut off)"),
        (flip_header, r"train\.tar: damaged after 000000\.cls, at byte [\d,]+; download or write the shard again"),
        (link, r"train\.tar: damaged at 000009\.jpg \(it is a link or another special member"),
        (long_header, r"train\.tar: damaged at the beginning \(a header of 8,589,934,592 bytes\)"),
        (lambda path: path.write_bytes(b"junk" * 300), r"train\.tar: damaged at the beginning"),
        (lambda path: path.write_bytes(b""), r"train\.tar: damaged at the beginning \(empty file\)"),
    ],
)
def test_a_damaged_or_hostile_shard_is_named_with_its_member(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = shard(tmp_path / "set" / "train.tar", {**sample(0), **sample(1, b"1")})
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path / "set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"000000.jpg": b"x"}, r"000000\.jpg has no class; add 000000\.cls beside it"),
        ({"000000.jpg": b"x", "000000.cls": b"cat"}, r"000000\.cls: 'cat' is no class number; use 0\.\."),
        ({"000000.jpg": b"x", "000000.cls": b"-1"}, r"000000\.cls: '-1' is no class number"),
        ({"000000.jpg": b"x", "000000.json": b"{"}, r"000000\.json: not JSON"),
        ({"000000.jpg": b"x", "000000.json": b"[" * 10**5}, r"000000\.json: not JSON"),
        ({"000000.jpg": b"x", "000000.json": b'{"caption": 3}'}, r"000000\.json: has none of label, cls, class"),
        ({"000000.jpg": b"x", "000000.cls": b"1" * (2**20 + 1)}, r"1,048,577 bytes, too many for a class number"),
        ({"0.jpg": b"x", "0.png": b"x", "0.cls": b"1"}, r"0\.png: a second image of the same sample"),
        ({"readme.md": b"x"}, r"no images in its tar shards"),
    ],
)
def test_a_sample_that_breaks_a_rule_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    shard(tmp_path / "set" / "train.tar", members)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "set")


def test_a_compressed_shard_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train-0.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"train-0\.tar\.gz: a compressed shard, .*decompress it to \.tar"):
        load_dataset(tmp_path / "set")


def test_archives_beside_class_folders_are_no_shards(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        place = tmp_path / "set" / name
        place.mkdir(parents=True)
        for number in range(5):
            (place / f"{number}.jpg").write_bytes(encoded(number, high=80))
    (tmp_path / "set/photos.tar.gz").write_bytes(b"\x1f\x8b")
    assert load_dataset(tmp_path / "set").class_names == ("cat", "dog")


def test_a_shard_that_ends_early_after_indexing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    members = {name: content for number in range(12) for name, content in sample(number, b"%d" % (number % 2)).items()}
    path = shard(tmp_path / "set" / "train.tar", members)
    images = lazy(load_dataset(tmp_path / "set", image_size=16, feed="stream").train.images)
    assert images is not None
    cut(path, 9000)
    with pytest.raises(DataError, match=r"train\.tar/0000\d\d\.jpg cannot be read \(the shard ends after"):
        list(images.batches(4))


def test_names_beyond_ascii_and_long_ones_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(10):
            add(tar, f"{'ordner' * 30}/größe{number}.jpg", encoded(number, high=80))
            add(tar, f"{'ordner' * 30}/größe{number}.cls", str(number % 2).encode())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.tar").write_bytes(file.getvalue())
    assert len(load_dataset(tmp_path / "set", image_size=16).train) == 8
