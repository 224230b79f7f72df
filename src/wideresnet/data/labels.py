"""Labels as people store them (whole numbers from 0 or 1, with gaps, floats, yes and no, names, one-hot rows)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.format import counted
from wideresnet.data.dataset import as_labels, legible

_NUM_LISTED = 5
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


class Labels(NamedTuple):
    """The same labels as 0, 1, 2...: of train, of test, the names of classes (None: numbers), and notes."""

    train: np.ndarray
    test: np.ndarray
    names: tuple[str, ...] | None
    notes: tuple[str, ...]


def flat_labels(values: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Turn labels of any type into whole numbers or names, one per image.

    Args:
        values: (N,), (N, 1), or one-hot (N, classes).
        where: the array or column, for messages.

    Returns:
        int64 or text, (N,); and what was done, or "".

    Raises:
        DataError: they are several labels per image, or no labels at all.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind == "f" and (broken := np.isnan(values)).any():
        row = int(np.argwhere(broken)[0][0])
        raise DataError(f"{where} row {row} is NaN; every image needs a label")
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "biuf" and np.isin(values, (0, 1)).all():
        if (values.sum(axis=1) != 1).any():
            raise DataError(
                f"{where} is multi-label: {values.shape[1]} yes/no labels per image; a classifier needs one class per "
                "image"
            )
        return values.argmax(axis=1).astype(np.int64), f"{where} is one-hot: converted to {values.shape[1]} classes"
    if values.ndim != 1:
        raise DataError(f"{where} has shape {values.shape}; must be (N,), (N, 1) or one-hot, one class per image")
    if values.dtype.kind == "f":
        if len(values) and (values != np.rint(values)).any():
            row = int(np.argmax(values != np.rint(values)))
            raise DataError(f"{where} row {row} is {values[row]:g}; labels must be whole numbers or names")
        if len(values) and np.abs(values).max() >= 2**53:
            raise DataError(f"{where} has a label of {np.abs(values).max():g}; labels are 0..classes-1")
        return values.astype(np.int64), f"{where} holds whole numbers as {values.dtype}: read as integers"
    if values.dtype.kind == "b":
        return np.where(values, "true", "false"), f"{where} holds true and false: these are the names of the classes"
    if values.dtype.kind in "US":
        return values.astype(str), ""
    if values.dtype.kind not in "iu":
        raise DataError(f"{where} is {values.dtype}; labels must be whole numbers or names")
    return as_labels(values, where), ""


def number_labels(train: np.ndarray, test: np.ndarray, where: str) -> Labels:
    """Number the classes 0, 1, 2... if their labels are names, start at 1 or have gaps; the names keep the labels.

    Args:
        train, test: what `flat_labels` returned.
        where: the file or folder, for messages.

    Raises:
        DataError: two names of classes look the same, or a test label is none of train's.
    """
    if "U" in (train.dtype.kind, test.dtype.kind):
        train, test = train.astype(str), test.astype(str)
        present = np.unique(train)
        check_names(present.tolist(), f"{where}: two labels")
        test = _spelled_alike(test, present)
        notes: tuple[str, ...] = ()
    else:
        present = np.unique(train)
        is_regular = len(present) == 0 or present[0] < 0 or np.array_equal(present, np.arange(len(present)))
        if is_regular:  # or negative, which `check_labels` refuses with its row
            return Labels(train, test, None, ())
        what = "start at 1" if np.array_equal(present, np.arange(1, len(present) + 1)) else "have gaps"
        shown = ", ".join(map(str, present[:_NUM_LISTED])) + (", ..." if len(present) > _NUM_LISTED else "")
        notes = (f"labels {what}: the {counted(len(present), 'class', 'classes')} are called {shown}",)
    if len(strange := np.setdiff1d(test, present)):
        row = int(np.argmax(test == strange[0]))
        label = legible(str(strange[0]))
        raise DataError(
            f"{where}: test image {row} has label {label}, a class without training images; remove it from the test "
            "images, or add training images"
        )
    names = tuple(str(label) for label in present)
    return Labels(np.searchsorted(present, train), np.searchsorted(present, test), names, notes)


def _spelled_alike(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give test labels the spelling of train, where they only look the same."""
    spelling = {same_name(name): name for name in known.tolist()}
    exact = set(known.tolist())
    values, places = np.unique(labels, return_inverse=True)
    spelled = [name if name in exact else spelling.get(same_name(name), name) for name in values.tolist()]
    return np.array(spelled, dtype=str)[places] if len(values) else labels


def same_name(name: str) -> str:
    """Return what names have in common that look the same: Unicode's composed form, no case, no spaces around."""
    return unicodedata.normalize("NFKC", name).translate(_INVISIBLE).casefold().strip()


def check_names(names: Sequence[str], what: str) -> None:
    """Refuse two classes whose names look the same.

    Args:
        names: of the classes.
        what: where, and what two of them are, e.g. "photos: two class folders".
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(same_name(name), name)) != name:
            raise DataError(f"{what} look the same, {differing(other, name)}; merge them, or rename one")


def differing(first: str, second: str) -> str:
    """Show two names that look the same, and the code points in which they differ."""
    start = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(first), len(second)) if start is None else start
    end = 0
    while end < min(len(first), len(second)) - start and first[-1 - end] == second[-1 - end]:
        end += 1
    points = (" ".join(f"U+{ord(c):04X}" for c in name[start : len(name) - end]) for name in (first, second))
    mine, others = (text or "nothing" for text in points)
    return f"{first!a} and {second!a} ({mine} against {others})"
