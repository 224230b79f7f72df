"""NumPy archives: `x_train`, `y_train`, `x_test`, `y_test`, MedMNIST's `train_images`, or just `X` and `y`."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.catalog import hold_out
from wideresnet.data.dataset import Dataset, ImageSet, check_labels, legible
from wideresnet.data.decode import white_note
from wideresnet.data.depth import WHITE, to_eight_bits, white_of
from wideresnet.data.labels import flat_labels, number_labels
from wideresnet.data.limits import check_fits, damage_in_one_line
from wideresnet.data.readers.splits import role_of

_IMAGE_WORDS = frozenset({"x", "image", "images", "img", "imgs", "data", "pixels", "features"})
_LABEL_WORDS = frozenset({"y", "label", "labels", "target", "targets", "class", "classes"})
_NAMES = ("class_names", "label_names", "classes_names")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # x_train, trainX, X_tr, test_images
_SHORT = {"tr": "train", "te": "test", "va": "val"}
_ACCEPTED = "x_train, y_train, x_test, y_test or train_images, train_labels, test_images, test_labels"

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


def read_npz(path: Path, source: str, white: int | None = None) -> Dataset:
    """Read an archive of arrays. Pickled objects are refused, because they can run code.

    Args:
        path: holds images (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W), labels as for `flat_labels`, and optionally
            `class_names`; under names such as `x_train`, `train_images` or, without splits, `X` and `y`; without test
            arrays every fifth image of each class is the test set.
        source: what the user asked for.
        white: of images with 16 bits, see `load_dataset`.

    Raises:
        DataError: keys are missing, or an array has an unusable type, shape or value.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{path}: damaged or not an .npz; save images and labels with np.savez")
    with damage_in_one_line(f"{path}: damaged"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's about headers that Python 2 wrote
        return _read(path, source, white)


def _read(path: Path, source: str, white: int | None) -> Dataset:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        pairs = _pairs(path, members)
        train_role = "train" if "train" in pairs else ""
        test_role = next((role for role in ("test", "val") if role in pairs and train_role), None)
        names_key = next((name for name in _NAMES if name in members), None)
        keys = [*pairs[train_role], *(pairs[test_role] if test_role else ())]
        wanted = [*keys, *([names_key] if names_key else ())]
        arrays = _read_arrays(path, archive, {name: members[name] for name in wanted})

    notes: list[str] = []
    if test_role and _is_unlabeled(arrays[keys[3]]):
        notes.append(f"all of {keys[3]} is -1, so {keys[2]} is unlabeled and no test set")
        test_role = None
    image_keys = [keys[0], *([keys[2]] if test_role else ())]
    images, white = _all_images(path, {key: arrays[key] for key in image_keys}, white, notes)
    train_labels = _flat(path, keys[1], arrays, len(images[0]), keys[0], notes)
    if test_role:
        if test_role == "val":
            notes.append(f"no test arrays: {keys[2]} is the test set")
        test_labels = _flat(path, keys[3], arrays, len(images[1]), keys[2], notes)
        if images[0].shape[1:] != images[1].shape[1:]:
            raise DataError(
                f"{path}: {keys[0]} has images of {images[0].shape[1:]} and {keys[2]} of {images[1].shape[1:]}; "
                "height, width and channels must be equal"
            )
        numbered = number_labels(train_labels, test_labels, str(path))
        train, test = ImageSet(images[0], numbered.train), ImageSet(images[1], numbered.test)
        rows = {"train": np.arange(len(train)), "test": np.arange(len(test))}
    else:
        missing = keys[0].replace("train", "test") if train_role else "split"
        is_test, more = hold_out(np.unique(train_labels, return_inverse=True)[1], f"no {missing}", str(path))
        numbered = number_labels(train_labels[~is_test], train_labels[is_test], str(path))
        rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
        train, test = ImageSet(images[0][~is_test], numbered.train), ImageSet(images[0][is_test], numbered.test)
        notes += more
        keys = [*keys[:2], keys[0], keys[1]]
    if unread := [name for name in members if name not in wanted]:
        notes.append(f"not read: {_listed(unread)}")

    def name_row(split: str, index: int) -> str:
        return f"{path}: {keys[1] if split == 'train' else keys[3]} row {rows[split][index]}"

    names = _class_names(path, names_key, arrays) or numbered.names
    names = check_labels(train.labels, test.labels, names, str(path), name_row)
    layout = f".npz with {', '.join(dict.fromkeys(keys))}" + ("" if test_role else ", test images held out")
    return Dataset(path.stem, source, train, test, names, None, (*notes, *numbered.notes), layout, white)


def _pairs(path: Path, members: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return split ("train", "test", "val", or "" without splits) -> the names of its images and its labels."""
    found: dict[tuple[str, bool], list[str]] = {}
    for name in members:
        words = [_SHORT.get(word.lower(), word.lower()) for word in _WORDS.findall(name)]
        roles = [role for word in words if (role := role_of(str(word)))]
        rest = [word for word in words if not role_of(str(word))]
        if len(roles) > 1 or len(rest) != 1 or rest[0] not in _IMAGE_WORDS | _LABEL_WORDS:
            continue
        found.setdefault((roles[0] if roles else "", rest[0] in _LABEL_WORDS), []).append(name)
    for (role, is_label), names in found.items():
        if len(names) > 1:
            kind = "labels" if is_label else "images"
            raise DataError(
                f"{path}: several arrays may be the {role} {kind}: {_listed(names)}; keep one".replace("  ", " ")
            )
    pairs = {role: (found[role, False][0], found[role, True][0]) for role, is_label in found
             if is_label and (role, False) in found}  # fmt: skip
    half = {role for role, _ in found} - set(pairs)
    if ("train" not in pairs and "" not in pairs) or half & {"train", "test"}:
        raise DataError(f"{path}: needs {_ACCEPTED}; it has {_listed(members)}")
    return pairs


def _is_unlabeled(labels: np.ndarray) -> bool:
    return labels.dtype.kind == "i" and labels.size > 0 and bool((labels == -1).all())


def _read_arrays(path: Path, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> dict[str, np.ndarray]:
    """Read arrays after their headers have shown that they are plain, what they should be, and fit in memory."""
    members = {name: _read_header(path, archive, name, info) for name, info in infos.items()}
    for name, member in members.items():
        if name in _NAMES and member.num_bytes > _MAX_NAMES_BYTES:
            raise DataError(f"{path}: {name} has {member.num_bytes:,} bytes, at most {_MAX_NAMES_BYTES:,}")
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


def _all_images(
    path: Path, arrays: dict[str, np.ndarray], white: int | None, notes: list[str]
) -> tuple[list[np.ndarray], int | None]:
    """Bring the images of all splits to uint8 (N, H, W, C) in the same way; returns also what became white."""
    first = next(iter(arrays.values()))
    for key, images in arrays.items():
        if images.dtype.kind == "f" and (broken := int((~np.isfinite(images)).sum())):
            raise DataError(
                f"{path}: {key} is {images.dtype}: {broken} of {images.size} values are NaN or infinite; repair these, "
                "then convert with np.rint(x * 255).astype(np.uint8) if they are 0..1"
            )
    used = None
    if any(images.dtype != np.uint8 for images in arrays.values()):
        low = min((images.min() for images in arrays.values() if images.size), default=0)
        high = max((images.max() for images in arrays.values() if images.size), default=0)
        if first.dtype.kind in "iu" and low >= 0 and 1 < high <= WHITE:
            used = white or white_of([int(high)]) or WHITE
            if used > 255:
                notes.append(white_note(int(high), used, given=white is not None))
        elif first.dtype.kind == "f" and low >= 0 and 0 < high <= 1 and _are_levels(arrays):
            used = 1
            notes.append("images are multiples of 1/255 from 0 to 1: multiplied by 255")
        else:
            key = next(key for key, images in arrays.items() if images.dtype != np.uint8)
            raise DataError(
                f"{path}: {key} is {arrays[key].dtype} with values {low:g} to {high:g}; images must be uint8, 0..255: "
                "convert with np.rint(x * 255).astype(np.uint8) if they are 0..1"
            )
    shaped = []
    for key, images in arrays.items():
        if used is not None:
            images = to_eight_bits(images, used)
        shaped.append(_shaped(path, key, images, notes))
    return shaped, used if used is not None and used > 255 else None


def _are_levels(arrays: dict[str, np.ndarray]) -> bool:
    """Tell whether floats are gray levels that someone divided by 255."""
    return all(
        np.abs(part * 255 - np.rint(part * 255)).max() < 1e-3
        for images in arrays.values() for part in np.array_split(images, max(1, len(images) // 1000)) if part.size
    )  # fmt: skip


def _shaped(path: Path, key: str, images: np.ndarray, notes: list[str]) -> np.ndarray:
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        notes.append(f"{key} has channels first: converted to channels last")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        is_3d = (images.ndim == 4 and min(shape[1:]) > 4) or (images.ndim == 5 and 1 in (shape[1], shape[4]))
        sides = [side for side in shape[1:] if side != 1]
        what = f"3-D: volumes of {' x '.join(map(str, sides))}, and a network here takes flat images" if is_3d else ""
        raise DataError(
            f"{path}: {key} has shape {shape}{'; it is ' * bool(what)}{what}; must be (N, H, W), (N, H, W, 1|3) or "
            "(N, 1|3, H, W)"
        )
    return np.ascontiguousarray(images)


def _flat(
    path: Path, key: str, arrays: dict[str, np.ndarray], num_images: int, image_key: str, notes: list[str]
) -> np.ndarray:
    labels, note = flat_labels(arrays[key], f"{path}: {key}")
    if note:
        notes.append(note.removeprefix(f"{path}: "))
    if num_images != len(labels):
        raise DataError(f"{path}: {image_key} has {num_images} images but {key} {len(labels)} labels")
    return labels


def _class_names(path: Path, key: str | None, arrays: dict[str, np.ndarray]) -> list[str] | None:
    if key is None:
        return None
    names = arrays[key]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path}: {key} is {names.dtype} {names.shape}; must be a 1-D array of strings")
    return names.tolist()
