"""NumPy archives: `x_train`, `y_train`, `x_test`, `y_test`, or MedMNIST's `train_images`, `train_labels`."""

from __future__ import annotations

import io
import itertools
import math
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import Dataset, ImageSet, as_labels, check_labels, every_fifth, legible, split_images
from wideresnet.data.limits import check_fits, damage_in_one_line

_KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)

_MAX_HEADER_BYTES = 16_384  # NumPy itself refuses a description of more than 10,000 characters
_MAX_DEFLATE_RATIO = 1032  # zlib's technical details: no more than 1032 bytes from one
_BYTES_PER_ROW = 64  # what a label takes: itself, its order, its class, its split
_MAX_NAMES_BYTES = 16 * 2**20


class _Member(NamedTuple):
    """An array in the archive before it is read: its file, its type and shape, its size in bytes."""

    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path, source: str) -> Dataset:
    """Read an archive of arrays. Pickled objects are refused, because they can run code.

    Args:
        path: holds images uint8 (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W), integer labels (N,) or (N, 1), and
            optionally `class_names`; without test arrays every fifth image of each class is the test set.
        source: what the user asked for.

    Raises:
        DataError: keys are missing, or an array has an unusable type, shape or value.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{path}: damaged or not an .npz; save images and labels with np.savez")
    with damage_in_one_line(f"{path}: damaged"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's about headers that Python 2 wrote
        return _read(path, source)


def _read(path: Path, source: str) -> Dataset:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        keys = next((keys for keys in _KEYS if set(keys[:2]) <= members.keys()), None)
        if keys is None or (keys[2] in members) != (keys[3] in members):
            accepted = " or ".join(", ".join(keys) for keys in _KEYS)
            raise DataError(f"{path}: needs {accepted}; it has {_listed(members)}")
        wanted = [name for name in (*keys, "class_names") if name in members]
        arrays = _read_arrays(path, archive, {name: members[name] for name in wanted})

    notes: list[str] = []
    train = _image_set(path, arrays, keys[0], keys[1], notes)
    if keys[2] in arrays:
        test = _image_set(path, arrays, keys[2], keys[3], notes)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"{path}: {keys[0]} has images of {train.images.shape[1:]} and {keys[2]} of "
                f"{test.images.shape[1:]}; height, width and channels must be equal"
            )
        rows = {"train": np.arange(len(train)), "test": np.arange(len(test))}
    else:
        is_test = every_fifth(train.labels)
        rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
        train, test = split_images(train.images, train.labels, is_test)
        notes.append(f"no {keys[2]}: every 5th image of each class is held out, {len(test)} images")
        keys = (*keys[:3], keys[1])
    if unread := [name for name in members if name not in (*keys, "class_names")]:
        notes.append(f"not read: {_listed(unread)}")

    def name_row(split: str, index: int) -> str:
        return f"{path}: {keys[1] if split == 'train' else keys[3]} row {rows[split][index]}"

    names = _class_names(path, arrays)
    names = check_labels(train.labels, test.labels, names, str(path), name_row)
    return Dataset(path.stem, source, train, test, names, None, tuple(notes))


def _read_arrays(path: Path, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> dict[str, np.ndarray]:
    """Read arrays after their headers have shown that they are plain, what they should be, and fit in memory."""
    members = {name: _read_header(path, archive, name, info) for name, info in infos.items()}
    for name, member in members.items():
        if name == "class_names" and member.num_bytes > _MAX_NAMES_BYTES:
            raise DataError(f"{path}: class_names has {member.num_bytes:,} bytes, at most {_MAX_NAMES_BYTES:,}")
    sizes = [member.num_bytes for member in members.values()]
    rows = sum(member.shape[0] for member in members.values() if member.shape)
    # the largest array is copied if channels come first, or if a part is held out for the test
    needed = sum(sizes) + max(sizes) + rows * _BYTES_PER_ROW
    check_fits(needed, f"{path}: its arrays", "use fewer or smaller images")
    arrays = {}
    for name, member in members.items():
        with archive.open(member.info) as file:
            arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise DataError(f"{path}: {name} is longer than its header says; save it again with np.savez")
    return arrays


def _read_header(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> _Member:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name} has an unusual compression; save it with np.savez or np.savez_compressed")
    with archive.open(info) as file:
        start = io.BytesIO(file.read(_MAX_HEADER_BYTES))  # NumPy would read as many bytes as the file claims to have
    version = np.lib.format.read_magic(start)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise DataError(f"{path}: {name} has fields with names; save plain arrays")
    shape, _, dtype = read(start)
    member = _Member(info, dtype, shape)
    if dtype.hasobject:
        raise DataError(f"{path}: {name} has pickled objects, which can run code and are never read; save plain arrays")
    if not 0 <= member.num_bytes <= info.file_size or info.file_size > (info.compress_size + 1) * _MAX_DEFLATE_RATIO:
        raise DataError(f"{path}: {name} claims {member.num_bytes:,} bytes, more than it can hold; it is damaged")
    return member


def _listed(names: Iterable[str]) -> str:
    """Names for a message; there may be very many."""
    first = [legible(name)[:100] for name in itertools.islice(names, 21)]
    return ", ".join(first[:20]) + (", ..." if len(first) > 20 else "") or "nothing"


def _image_set(path: Path, arrays: dict[str, np.ndarray], image_key: str, label_key: str, notes: list[str]) -> ImageSet:
    images = _images(path, image_key, arrays[image_key], notes)
    labels = _labels(path, label_key, arrays[label_key])
    if len(images) != len(labels):
        raise DataError(f"{path}: {image_key} has {len(images)} images but {label_key} {len(labels)} labels")
    return ImageSet(images, labels)


def _images(path: Path, key: str, images: np.ndarray, notes: list[str]) -> np.ndarray:
    if images.dtype != np.uint8:
        advice = "convert with np.rint(x * 255).astype(np.uint8) if they are 0..1"
        if images.dtype.kind == "f" and (broken := int((~np.isfinite(images)).sum())):
            advice = f"{broken} of {images.size} values are NaN or infinite; repair these, then {advice}"
        raise DataError(f"{path}: {key} is {images.dtype}; images must be uint8, 0..255: {advice}")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        notes.append(f"{key} has channels first: converted to channels last")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(f"{path}: {key} has shape {images.shape}; must be (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W)")
    return np.ascontiguousarray(images)


def _labels(path: Path, key: str, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            row = int(np.argwhere(np.isnan(labels))[0][0])
            raise DataError(f"{path}: {key} row {row} is NaN; labels must be integers 0..classes-1")
        raise DataError(f"{path}: {key} is {labels.dtype}; labels must be integers 0..classes-1")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{path}: {key} has shape {labels.shape}; must be (N,) or (N, 1), one class per image")
    return as_labels(labels, f"{path}: {key}")


def _class_names(path: Path, arrays: dict[str, np.ndarray]) -> list[str] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path}: class_names is {names.dtype} {names.shape}; must be a 1-D array of strings")
    return names.tolist()
