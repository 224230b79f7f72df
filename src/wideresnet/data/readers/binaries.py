"""MNIST's idx files (also Fashion-, K- and EMNIST's) and STL-10's binaries, as they are distributed."""

from __future__ import annotations

import gzip
import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.catalog import hold_out
from wideresnet.data.dataset import Dataset, ImageSet, check_labels
from wideresnet.data.labels import number_labels
from wideresnet.data.limits import check_fits, damage_in_one_line
from wideresnet.data.readers.splits import role_of

_IDX = re.compile(r"(?P<set>.*?)(?P<split>train|test|t10k)-(?P<kind>images|labels)[-.]idx[13]-ubyte(?P<packed>\.gz)?")
_INNER_FOLDERS = ("raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "EMNIST/raw", "stl10_binary")  # torchvision's
_STL_SIDE_PX = 96  # Coates et al. 2011; its files have no header
_STL_IMAGE_BYTES = 3 * _STL_SIDE_PX**2
_EMNIST_SETS = re.compile(r"emnist-(byclass|bymerge|balanced|letters|digits|mnist)-")


class Binaries(NamedTuple):
    """Files of arrays: of each split ("train", "test") the file of images and that of labels."""

    kind: str
    files: dict[str, tuple[Path, Path]]
    folder: Path


def find_binaries(folder: Path) -> Binaries | None:
    """Find such files in a folder, or in the folders of it that torchvision makes.

    Raises:
        DataError: files of several sets, or images without labels.
    """
    for place in filter(Path.is_dir, (folder, *(folder / inner for inner in _INNER_FOLDERS))):
        names = sorted(path.name for path in place.iterdir())
        idx = [match for name in names if (match := _IDX.fullmatch(name))]
        if idx:
            return _find_idx(place, idx)
        if {"train_X.bin", "train_y.bin"} <= set(names):
            splits = [split for split in ("train", "test") if f"{split}_X.bin" in names and f"{split}_y.bin" in names]
            return Binaries("stl10", {s: (place / f"{s}_X.bin", place / f"{s}_y.bin") for s in splits}, place)
    return None


def _find_idx(folder: Path, matches: list[re.Match[str]]) -> Binaries:
    sets = sorted({match["set"] for match in matches})
    if len(sets) > 1:
        raise DataError(f"{folder}: has files of several sets ({', '.join(sets)}); keep one in a folder of its own")
    found: dict[tuple[str, str], Path] = {}
    for match in sorted(matches, key=lambda match: bool(match["packed"])):  # unpacked ones first
        split = "test" if match["split"] == "t10k" else role_of(match["split"]) or ""
        found.setdefault((split, match["kind"]), folder / match[0])
    for split, kind in list(found):
        other = "labels" if kind == "images" else "images"
        if (split, other) not in found:
            raise DataError(f"{folder}: has the {kind} of {split} but not its {other}; download them again")
    if ("train", "images") not in found:
        raise DataError(f"{folder}: has test files but no train-images-idx3-ubyte; download it")
    files = {split: (found[split, "images"], found[split, "labels"]) for split in ("train", "test")
             if (split, "images") in found}  # fmt: skip
    return Binaries("idx", files, folder)


def read_binaries(binaries: Binaries, source: str) -> Dataset:
    """Read such files into memory.

    Raises:
        DataError: a file is damaged or shorter than its header says.
    """
    parts, notes = {}, list[str]()
    for split, (images, labels) in binaries.files.items():
        read = _read_idx if binaries.kind == "idx" else _read_stl
        with damage_in_one_line(f"{images}: damaged; download it again"):
            parts[split] = read(images, 3), read(labels, 1)
        if len(parts[split][0]) != len(parts[split][1]):
            raise DataError(
                f"{images}: {len(parts[split][0])} images for {len(parts[split][1])} labels; download them again"
            )
    if binaries.kind == "idx" and _EMNIST_SETS.match(binaries.files["train"][0].name):
        parts = {split: (images.transpose(0, 2, 1, 3), labels) for split, (images, labels) in parts.items()}
        notes.append("EMNIST stores its images sideways: turned upright")
    train_images, train_labels = parts["train"]
    if "test" in parts:
        test_images, test_labels = parts["test"]
    else:
        is_test, more = hold_out(np.unique(train_labels, return_inverse=True)[1], "no test files", str(binaries.folder))
        notes += more
        test_images, test_labels = train_images[is_test], train_labels[is_test]
        train_images, train_labels = train_images[~is_test], train_labels[~is_test]
    numbered = number_labels(train_labels.astype(np.int64), test_labels.astype(np.int64), str(binaries.folder))
    names, more = numbered.names, numbered.notes
    if binaries.kind == "stl10":
        names, more = _stl_names(binaries.folder, numbered.names, more)
        if (binaries.folder / "unlabeled_X.bin").exists():
            notes.append("not read: unlabeled_X.bin")
    names = check_labels(
        numbered.train, numbered.test, names, str(binaries.folder),
        lambda split, row: f"{binaries.folder} {split} row {row}",
    )  # fmt: skip
    train = ImageSet(np.ascontiguousarray(train_images), numbered.train)
    test = ImageSet(np.ascontiguousarray(test_images), numbered.test)
    layout = {"idx": "MNIST's idx files", "stl10": "STL-10's binary files"}[binaries.kind]
    return Dataset(binaries.folder.name, source, train, test, names, None, (*notes, *more), layout)


def _read_idx(path: Path, num_dims: int) -> np.ndarray:
    """Read an array of bytes: uint8 (N, H, W, 1) or (N,). Source: LeCun's page on MNIST, "THE IDX FILE FORMAT"."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(4 + 4 * num_dims)
        if len(start) < 4 + 4 * num_dims or start[:4] != bytes((0, 0, 8, num_dims)):
            raise DataError(f"{path}: not an idx file of {num_dims} dimensions of bytes; download it again")
        shape = struct.unpack(f">{num_dims}I", start[4:])
        size = math.prod(shape)
        check_fits(2 * size, f"{path}: its {shape[0]:,} entries", "use fewer")
        held = path.stat().st_size * (1032 if path.suffix == ".gz" else 1)  # zlib's largest ratio
        content = file.read(size + 1) if size <= held else b""
    if len(content) != size:
        raise DataError(f"{path}: its header says {size:,} bytes, and it holds others; download it again")
    values = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    return values[..., None] if num_dims == 3 else values


def _read_stl(path: Path, num_dims: int) -> np.ndarray:
    """Read uint8 (N, 96, 96, 3) or (N,). Source: Coates et al. 2011, the page of STL-10: columns come first."""
    size = path.stat().st_size
    check_fits(2 * size, f"{path}: its images", "use fewer")
    values = np.fromfile(path, dtype=np.uint8)
    if num_dims == 1:
        return values
    if size % _STL_IMAGE_BYTES:
        raise DataError(f"{path}: {size:,} bytes are not a whole number of 96 x 96 images; download it again")
    return values.reshape(-1, 3, _STL_SIDE_PX, _STL_SIDE_PX).transpose(0, 3, 2, 1)


def _stl_names(
    folder: Path, numbers: tuple[str, ...] | None, notes: tuple[str, ...]
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names of the classes, which are numbered from 1."""
    path = folder / "class_names.txt"
    if numbers is None or not path.is_file():
        return numbers, notes
    names = path.read_text(encoding="utf-8", errors="replace").split()
    if len(names) < int(numbers[-1]):
        return numbers, notes
    return tuple(names[int(number) - 1] for number in numbers), ()
