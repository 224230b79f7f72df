"""What was seen of a data set, as a document for people, programs and a page, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wideresnet.base.format import counted
from wideresnet.data.dataset import Dataset, legible
from wideresnet.data.decode import DEFAULT_SIDE_PX, is_native, white_note
from wideresnet.data.depth import WHITE, white_of
from wideresnet.data.inspection.duplicates import Duplicates, Group
from wideresnet.data.inspection.survey import Opened, Survey

IMBALANCE = 10
"""From this ratio of the largest to the smallest class on, a warning is given. This package's choice."""

MAX_LISTED = 1000
"""Entries of a list in the document; its counts are of all."""


def describe(opened: Opened, seen: Survey, duplicates: Duplicates, *, skip_unreadable: bool = False) -> dict[str, Any]:
    """Return the document of a data set, but for the verdict and for what a trained network says of its labels.

    Args:
        opened: the data.
        seen: from `survey`.
        duplicates: from `find_duplicates`.
        skip_unreadable: images that cannot be read are left out, so they do not stop anyone.
    """
    names, readable = [legible(name) for name in opened.class_names], np.ones(len(seen.names), dtype=bool)
    readable[list(seen.failures)] = False
    counts = {
        split: np.bincount(seen.labels[part & readable], minlength=len(names))
        for split, part in (("train", ~seen.is_test), ("test", seen.is_test))
    }
    classes = [
        {"class": name, "train": int(train), "test": int(test)}
        for name, train, test in zip(names, counts["train"], counts["test"], strict=True)
    ]
    document: dict[str, Any] = {
        "data": opened.source,
        "layout": opened.layout or (opened.facts.title if isinstance(opened, Dataset) and opened.facts else ""),
        "splits": {split: int(number.sum()) for split, number in counts.items()},
        "classes": classes,
        "sizes": _sizes(seen),
        "formats": dict(seen.formats.most_common()),
        "modes": dict(seen.modes.most_common()),
        "unreadable": [
            {"file": seen.names[row], "reason": reason} for row, reason in list(seen.failures.items())[:MAX_LISTED]
        ],
        "num_unreadable": len(seen.failures),
        "duplicates": _duplicates(duplicates.groups, seen, names),
        "blank": [seen.names[row] for row in duplicates.blank[:MAX_LISTED]],
        "suspicious": [],
        "problems": [],
        "warnings": [],
        "notes": [*map(legible, opened.notes), *duplicates.notes, *_notes(seen)],
    }
    _judge(document, seen, duplicates, counts, skip_unreadable)
    return document


def give_verdict(document: dict[str, Any]) -> str:
    """Return "ready", "ready with 2 warnings", or "not ready: ..." with the first problem."""
    if problems := document["problems"]:
        more = f" (and {counted(len(problems) - 1, 'more problem')})" if len(problems) > 1 else ""
        return f"not ready: {problems[0]}{more}"
    warnings = document["warnings"]
    return f"ready with {counted(len(warnings), 'warning')}" if warnings else "ready"


def image_at(seen: Survey, row: int, names: Sequence[str]) -> dict[str, Any]:
    """Say which image it is: its index, file or row, split and class."""
    split = "test" if seen.is_test[row] else "train"
    return {"image": row, "file": seen.names[row], "split": split, "class": names[int(seen.labels[row])]}


def _sizes(seen: Survey) -> dict[str, Any] | None:
    sizes = seen.sizes[seen.sizes[:, 0] > 0]
    if not len(sizes):
        return None
    by_area = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
    smallest, median, largest = (by_area[place].tolist() for place in (0, len(by_area) // 2, -1))
    return {
        "distinct": len(np.unique(sizes, axis=0)), "smallest_hw": smallest, "median_hw": median, "largest_hw": largest,
    }  # fmt: skip


def _duplicates(groups: list[Group], seen: Survey, names: Sequence[str]) -> dict[str, Any]:
    def count(kind: list[Group]) -> dict[str, int]:
        return {
            "groups": len(kind),
            "images": sum(len(group.members) for group in kind),
            "across_splits": sum(group.across_splits for group in kind),
            "across_classes": sum(group.across_classes for group in kind),
        }

    listed = [
        {
            "exact": group.is_exact, "across_splits": group.across_splits, "across_classes": group.across_classes,
            "images": [image_at(seen, row, names) for row in group.members[:20]], "num_images": len(group.members),
        }
        for group in groups[:MAX_LISTED]
    ]  # fmt: skip
    exact, near = ([group for group in groups if group.is_exact == kind] for kind in (True, False))
    return {"exact": count(exact), "near": count(near), "groups": listed}


def _notes(seen: Survey) -> list[str]:
    notes = []
    sizes = np.unique(seen.sizes[seen.sizes[:, 0] > 0], axis=0)
    if len(sizes) > 1 or (len(sizes) == 1 and not is_native(*sizes[0].tolist())):
        what = f"{len(sizes):,} sizes" if len(sizes) > 1 else f"images of {sizes[0][1]} x {sizes[0][0]} px"
        notes.append(
            f"{what}: scaled and center-cropped to {DEFAULT_SIDE_PX} x {DEFAULT_SIDE_PX} px, or to image_size="
        )
    if seen.peaks and (white := white_of(seen.peaks) or WHITE) < WHITE:
        notes.append(white_note(max(seen.peaks), white))
    return notes


def _judge(
    document: dict[str, Any], seen: Survey, duplicates: Duplicates, counts: dict[str, np.ndarray], skip_unreadable: bool
) -> None:
    """Add problems, which stop a training, and warnings, which do not."""
    problems, warnings = document["problems"], document["warnings"]
    names = [row["class"] for row in document["classes"]]
    if seen.failures:
        row, reason = next(iter(seen.failures.items()))
        text = f"{len(seen.failures):,} of {counted(len(seen.names), 'image')} cannot be read: "
        text += f"{seen.names[row]} ({reason})"
        text += "; ..." if len(seen.failures) > 1 else ""
        if skip_unreadable:
            warnings.append(f"{text}; left out")
        else:
            problems.append(f"{text}; repair or remove them, or leave them out with skip_unreadable=True")
    if empty := [name for name, number in zip(names, counts["train"], strict=True) if not number]:
        problems.append(f"{_classes(len(empty))} no training image that can be read: {_listed(empty)}")
    if not counts["test"].sum():
        problems.append("no test image can be read")
    elif empty := [name for name, number in zip(names, counts["test"], strict=True) if not number]:
        warnings.append(f"{_classes(len(empty))} no test image, so nothing is measured there: {_listed(empty)}")
    least, most = int(counts["train"].argmin()), int(counts["train"].argmax())
    if counts["train"][least] and counts["train"][most] >= IMBALANCE * counts["train"][least]:
        warnings.append(
            f"classes are unbalanced: {names[most]} has {counted(int(counts['train'][most]), 'training image')}, "
            f"{names[least]} has {int(counts['train'][least]):,}; look at the error of each class"
        )
    for kind, exact in (("equal", True), ("nearly equal", False)):
        groups = [group for group in duplicates.groups if group.is_exact == exact]
        if crossing := [group for group in groups if group.across_splits]:
            num_test = sum(int(seen.is_test[list(group.members)].sum()) for group in crossing)
            are = "is" if num_test == 1 else "are"
            warnings.append(
                f"{counted(num_test, 'test image')} {are} {kind} to training images, so the error is too low; "
                "remove them from one of the two"
            )
        if crossing := [group for group in groups if group.across_classes]:
            images = sum(len(group.members) for group in crossing)
            warnings.append(f"{counted(images, 'image')} in {counted(len(crossing), 'group')} are {kind} and have "
                            "different classes; keep the right one")  # fmt: skip
        if rest := [group for group in groups if not (group.across_splits or group.across_classes)]:
            images = sum(len(group.members) for group in rest)
            document["notes"].append(
                f"{counted(images, 'image')} in {counted(len(rest), 'group')} are {kind}, of one class and split"
            )
    if duplicates.blank:
        is_one = len(duplicates.blank) == 1
        warnings.append(
            f"{counted(len(duplicates.blank), 'image')} {'is' if is_one else 'are'} of a single color: "
            f"{_listed([seen.names[row] for row in duplicates.blank])}"
        )


def _classes(number: int) -> str:
    return "1 class has" if number == 1 else f"{number:,} classes have"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
