"""NumPy archives: `x_train`, `y_train`, `x_test`, `y_test`, or MedMNIST's `train_images`, `train_labels`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import Dataset, ImageSet, check_labels, every_fifth, split_images

_KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


def read_npz(path: Path, source: str) -> Dataset:
    """Read an archive of arrays. Pickled objects are refused, because they can run code.

    Args:
        path: holds images uint8 (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W), integer labels (N,) or (N, 1), and
            optionally `class_names`; without test arrays every fifth image of each class is the test set.
        source: what the user asked for.

    Raises:
        DataError: keys are missing, or an array has an unusable type, shape or value.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: damaged or not an .npz; save images and labels with np.savez")
    try:
        arrays = _arrays(path)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = "damaged"
        if "allow_pickle" in str(error):
            reason = "has pickled objects, which can run code and are never read; save plain arrays"
        raise DataError(f"{path}: {reason} ({' '.join(str(error).split())})") from error
    keys = next((keys for keys in _KEYS if set(keys[:2]) <= arrays.keys()), None)
    if keys is None or (keys[2] in arrays) != (keys[3] in arrays):
        wanted = " or ".join(", ".join(keys) for keys in _KEYS)
        raise DataError(f"{path}: needs {wanted}; it has {', '.join(arrays) or 'nothing'}")

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
    unread = [name for name in arrays if name not in (*keys, "class_names")]
    if unread:
        notes.append(f"not read: {', '.join(unread)}")

    def name_row(split: str, index: int) -> str:
        return f"{path}: {keys[1] if split == 'train' else keys[3]} row {rows[split][index]}"

    names = _class_names(path, arrays)
    names = check_labels(train.labels, test.labels, names, str(path), name_row)
    return Dataset(path.stem, source, train, test, names, None, tuple(notes))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)}


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
    too_large = labels > np.iinfo(np.int64).max
    if too_large.any():
        row = int(np.argmax(too_large))
        raise DataError(f"{path}: {key} row {row}: label {labels[row]} is out of range; labels are 0..classes-1")
    return labels.astype(np.int64)


def _class_names(path: Path, arrays: dict[str, np.ndarray]) -> list[str] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path}: class_names is {names.dtype} {names.shape}; must be a 1-D array of strings")
    return [str(name) for name in names]
