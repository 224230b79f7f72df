"""What every reader returns, and the rules that all of them follow."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.format import escape_character
from wideresnet.data.facts import Facts


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Attributes:
        images: uint8 (N, H, W, C), C-contiguous, C is 1 or 3, values 0..255.
        labels: int64 (N,), values 0..classes-1.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test set of the same classes and image size.

    Attributes:
        name: "digits", "cifar10", "cifar100", "svhn", or what the user's folder or file is called.
        source: what the user asked for.
        train, test: the images.
        class_names: in the order of the labels.
        facts: what is published about this set; None for the user's own data.
        notes: one line for every decision that was made for the user.
        layout: what the files were recognized as, a few words.
        white: the value of 16-bit images that became 255; None if there were none.
    """

    name: str
    source: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    facts: Facts | None
    notes: tuple[str, ...]
    layout: str = ""
    white: int | None = None


def digest(train: ImageSet, test: ImageSet) -> str:
    """Return 16 hexadecimal digits that tell two data sets apart: of all pixels and labels, and of their order.

    Of images that stay on the disk, names and sizes stand for the pixels.
    """
    over = hashlib.sha256()
    for part in (train, test):
        over.update(repr(part.images.shape).encode())
        over.update(part.labels.tobytes())
        if not isinstance(part.images, np.ndarray):  # images that stay on the disk
            over.update(part.images.digest())
            continue
        over.update(np.ascontiguousarray(part.images).data)
    return over.hexdigest()[:16]


def count_repeats(dataset: Dataset) -> tuple[int, int]:
    """Count test images whose pixels are those of a training image, and images whose pixels are in several classes."""
    keys = [[hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part.images]
            for part in (dataset.train, dataset.test)]  # fmt: skip
    labels: dict[bytes, set[int]] = {}
    for part, found in zip((dataset.train, dataset.test), keys, strict=True):
        for key, label in zip(found, part.labels.tolist(), strict=True):
            labels.setdefault(key, set()).add(label)
    trained = set(keys[0])
    return sum(key in trained for key in keys[1]), sum(len(labels[key]) > 1 for key in (*keys[0], *keys[1]))


# One image in five is held out: the same share as in digits, and close to CIFAR's one in six.
HOLD_OUT_EVERY = 5

MAX_NAME_LENGTH = 1000  # of a class, in characters: a list of synonyms as in ImageNet has 200

_ILLEGIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode: controls, surrogates, line and paragraph separators


def every_fifth(labels: np.ndarray) -> np.ndarray:
    """Choose test images if the user's data has none: every fifth image of each class, in the given order.

    Args:
        labels: integers (N,).

    Returns:
        bool (N,), True for the fifth, tenth... image of each class; a class of fewer than five has no test image.
    """
    _, counts = np.unique(labels, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)  # position of an image among those of its class
    first_of_class = np.repeat(np.cumsum(counts) - counts, counts)
    rank[np.argsort(labels, kind="stable")] = np.arange(len(labels)) - first_of_class
    return rank % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1


def as_labels(labels: np.ndarray, where: str, first_row: int = 0) -> np.ndarray:
    """Convert integers of any type to int64.

    Args:
        labels: integers (N,).
        where: the column and its file, for the message.
        first_row: number of the first label's row, for the message.

    Raises:
        DataError: an unsigned label is beyond int64, which would turn it into a negative one.
    """
    if labels.dtype.kind == "u" and (too_large := labels > np.iinfo(np.int64).max).any():
        row = int(np.argmax(too_large))
        raise DataError(f"{where} row {first_row + row}: label {labels[row]} is out of range; labels are 0..classes-1")
    return labels.astype(np.int64)


def legible(text: str) -> str:
    """Write what is no text as escapes: a byte of a name that is not UTF-8, a lone surrogate, a control character.

    Class names travel into weights, pages and pictures, where a lone surrogate fails and a control character acts.
    """
    if text.isprintable():
        return text
    return "".join(escape_character(c) if unicodedata.category(c) in _ILLEGIBLE else c for c in text)


def check_labels(
    train: np.ndarray,
    test: np.ndarray,
    class_names: Sequence[str] | None,
    where: str,
    name_row: Callable[[str, int], str],
) -> tuple[str, ...]:
    """Check that the labels are 0..classes-1, that every class has a training image and no test class is new.

    Args:
        train, test: integers (N,), the labels of each split.
        class_names: the names, or None if the data has none.
        where: the file or folder, for the message.
        name_row: given "train" or "test" and an index, returns where that label is, for a message.

    Returns:
        The given class names, each `legible`, or "0", "1"...

    Raises:
        DataError: a label breaks a rule; the message names the first such row and its value.
    """
    for split, labels in (("train", train), ("test", test)):
        if len(labels) == 0:
            raise DataError(f"{where}: no {split} images; at least one is needed")
        if labels.min() < 0:
            row = int(np.argmax(labels < 0))
            raise DataError(f"{name_row(split, row)}: label {labels[row]} is negative; labels start at 0")
    present = np.unique(train)
    if class_names is None:
        missing = np.flatnonzero(present != np.arange(len(present)))
        if len(missing):
            row = int(np.argmax(train == present[missing[0]]))
            raise DataError(
                f"{name_row('train', row)}: label {train[row]}, but no training image has label "
                f"{missing[0]}; labels must be 0, 1, 2... without gaps"
            )
        class_names = [str(label) for label in present]
    num_classes = len(class_names)
    if num_classes < 2:
        raise DataError(f"{where}: only {num_classes} class; a classifier needs two or more")
    for split, labels in (("train", train), ("test", test)):
        if labels.max() >= num_classes:
            row = int(np.argmax(labels >= num_classes))
            reason = "is a class without training images" if split == "test" else "is out of range"
            raise DataError(f"{name_row(split, row)}: label {labels[row]} {reason}; labels are 0..{num_classes - 1}")
    if (long := max(class_names, key=len)) and len(long) > MAX_NAME_LENGTH:
        raise DataError(
            f"{where}: a class name of {len(long):,} characters ({legible(long[:20])}...), at most "
            f"{MAX_NAME_LENGTH:,} are allowed; shorten it"
        )
    absent = sorted(set(range(num_classes)) - set(present.tolist()))
    if absent:
        named = ", ".join(legible(class_names[label]) for label in absent[:10])
        raise DataError(
            f"{where}: {len(absent)} of {num_classes} classes have no training image ({named}); "
            "add images or remove these classes"
        )
    return tuple(map(legible, class_names))


def split_images(images: np.ndarray, labels: np.ndarray, is_test: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """Split images into train and test; without a copy if all training images come first.

    Args:
        images: uint8 (N, H, W, C).
        labels: integers (N,).
        is_test: bool (N,), which are test images.
    """
    num_train = int(len(labels) - is_test.sum())
    labels = labels.astype(np.int64)
    if not is_test[:num_train].any():
        train, test = slice(None, num_train), slice(num_train, None)
    else:
        train, test = ~is_test, is_test
    return ImageSet(images[train], labels[train]), ImageSet(images[test], labels[test])
