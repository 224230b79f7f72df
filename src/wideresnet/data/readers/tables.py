"""A table of labels beside images: labels.csv, Hugging Face's metadata.csv and .jsonl, Kaggle's train.csv."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.format import counted
from wideresnet.data.catalog import Catalog, ReadOptions, hold_out
from wideresnet.data.dataset import check_labels, legible
from wideresnet.data.decode import Encoded
from wideresnet.data.labels import check_names, number_labels
from wideresnet.data.readers.splits import role_of
from wideresnet.data.readers.table_files import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    YES_NO_SPLITS,
    Images,
    Table,
    list_columns,
    no_label,
    parse,
    with_columns,
)
from wideresnet.data.readers.walk import Found, Place, all_images
from wideresnet.data.readers.zips import ZipPath


class _Row(NamedTuple):
    image: Any
    label: str
    role: str | None


def read_tables(
    path: Path, folder: Any, files: Sequence[Any], source: str, options: ReadOptions,
    found: Found, notes: list[str],
) -> Catalog:  # fmt: skip
    """Read images whose labels are in tables.

    Args:
        path: what the user gave, a folder or an archive.
        folder: its root.
        files: from `find_tables`.
        source: what the user asked for.
        options: the columns to take.
        found: takes what else is found.
        notes: what has been decided before.

    Raises:
        DataError: columns are ambiguous, files are missing, or an image has two labels.
    """
    images = Images(folder, all_images(folder, found))
    tables = [with_columns(table, images, options) for table in map(parse, files)]
    usable = [table for table in tables if table.image is not None]
    if not usable:
        first = tables[0]
        raise DataError(
            f"{first.path}: no column of it ({list_columns(first)}) names images in {folder}; give the column with "
            "image_column=, or put the images beside the table"
        )
    usable = _with_labels_of_train(usable)
    labelled = [table for table in usable if table.label is not None]
    if not labelled:
        raise DataError(no_label(usable[0]))
    whole = [table for table in labelled if table.role is None]
    if len(whole) > 1 or (whole and len(labelled) > 1):
        names = ", ".join(table.path.name for table in labelled)
        raise DataError(f"{folder}: several tables have labels: {names}; keep one, or call them train.csv and test.csv")
    notes = [*notes, *(f"{table.path.name} has no labels, so its images are no test images"
                       for table in usable if table.label is None)]  # fmt: skip
    rows, more = _rows(labelled, images, options)
    names_of_tables = {table.path for table in labelled}
    found.others = [other for other in found.others if other not in names_of_tables]
    return _catalog(path, folder, source, rows, labelled, options, [*notes, *more], found)


def _with_labels_of_train(tables: list[Table]) -> list[Table]:
    """Take in every table the columns that are the labels of training images; a table without them has no labels."""
    first = next((table for table in tables if table.label is not None and table.role != "test"), None)
    if first is None or first.label is None:
        return tables
    names = [first.header[place] for place in first.label]
    return [
        table._replace(label=[table.header.index(name) for name in names] if set(names) <= set(table.header) else None)
        for table in tables
    ]


def is_at_odds(folder: Any, files: Sequence[Any], class_names: Sequence[str]) -> str:
    """Say if a table contradicts class folders: a folder with several labels, or a label of several folders."""
    images = None
    for path in files:
        table = parse(path)
        if not any(name.lower() in LABEL_COLUMNS for name in table.header):
            continue
        images = images or Images(folder, all_images(folder, Found()))
        try:
            table = with_columns(table, images, ReadOptions())
        except DataError:
            continue
        if table.image is None or table.label is None or len(table.label) != 1:
            continue
        pairs = set()
        for row in table.rows:
            if (image := images.find(row[table.image], table)) is not None:
                folders = [part for part in image.relative_to(folder).as_posix().split("/") if part in class_names]
                pairs.add((folders[0] if folders else "", row[table.label[0]].strip()))
        if len(pairs) != len({pair[0] for pair in pairs}) or len(pairs) != len({pair[1] for pair in pairs}):
            column = table.header[table.label[0]]
            return (
                f"{table.path.name} has labels (column {column}) that the folders {', '.join(class_names[:3])}, ... "
                f"contradict; use label_column='{column}' for the table, or move it away for the folders"
            )
    return ""


def _rows(tables: Sequence[Table], images: Images, options: ReadOptions) -> tuple[list[_Row], list[str]]:
    """Resolve every row to an image, its label and its split."""
    labels: dict[Any, _Row] = {}
    missing, unlabelled, repeated, notes = list[str](), dict[Any, None](), 0, list[str]()
    for table in tables:
        assert table.image is not None and table.label is not None  # noqa: PT018
        role_of_row = _split_column(table)
        if len(table.label) > 1:
            notes.append(f"{table.path.name} has a column per class: {len(table.label)} classes")
        for number, row in enumerate(table.rows):
            image, label = images.find(row[table.image], table), _label(table, row, number)
            if image is None:
                missing.append(row[table.image])
                continue
            if not label:
                unlabelled[image] = None
                continue
            new = _Row(image, label, role_of_row(row, number))
            old = labels.setdefault(image, new)
            if old.role != new.role:
                raise DataError(
                    f"{table.path} row {number}: {legible(row[table.image])} is a {old.role} and a {new.role} image; "
                    "keep one"
                )
            repeated += old is not new
            if old.label != label:
                raise DataError(
                    f"{table.path} row {number}: {legible(row[table.image])} has the labels {legible(old.label)} and "
                    f"{legible(label)}; a classifier needs one class per image"
                )
    if missing:
        text = f"{counted(len(missing), 'file')} of {len(missing) + len(labels)} in the table {_are(missing)} missing: "
        text += ", ".join(legible(name)[:100] for name in missing[:10]) + (", ..." if len(missing) > 10 else "")
        if not options.skip_unreadable:
            raise DataError(f"{tables[0].path}: {text}. Add them, or leave them out with skip_unreadable=True")
        notes.append(f"left out, {text}")
    if unlabelled:
        notes.append(f"{counted(len(unlabelled), 'image')} without a label in the table left out: "
                     f"{next(iter(unlabelled)).name}{', ...' if len(unlabelled) > 1 else ''}")  # fmt: skip
    if repeated:
        notes.append(f"{counted(repeated, 'row')} of the table repeat{'s' * (repeated == 1)} an image: read once")
    if without := len(images.all) - len(labels) - len(unlabelled):
        first = next(image for image in images.all if image not in labels and image not in unlabelled)
        notes.append(f"{counted(without, 'image')} not in the table: not read, e.g. {first.relative_to(images.folder)}")
    return list(labels.values()), notes


def _are(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _label(table: Table, row: list[str], number: int) -> str:
    assert table.label is not None
    if len(table.label) == 1:
        return row[table.label[0]].strip()
    ones = [table.header[place] for place in table.label if row[place].strip() in ("1", "1.0")]
    if len(ones) != 1:
        raise DataError(
            f"{table.path} row {number}: {len(ones)} of {len(table.label)} columns are 1: multi-label; a classifier "
            "needs one class per image, choose a column with label_column="
        )
    return ones[0]


def _split_column(table: Table) -> Callable[[list[str], int], str | None]:
    """Return a function that tells the split of a row."""
    lower = [name.lower() for name in table.header]
    place = next((lower.index(name) for name in SPLIT_COLUMNS if name in lower), None)
    values = Counter(row[place].strip() for row in table.rows) if place is not None else Counter()
    if place is not None and all(map(role_of, values)):
        return lambda row, _: role_of(row[place].strip())
    if place is not None and any(map(role_of, values)):
        strange = ", ".join(legible(value) or "an empty cell" for value in values if not role_of(value))
        raise DataError(f"{table.path}: column {table.header[place]} has train, test or val, but also {strange}")
    for name, role in YES_NO_SPLITS.items():
        if name in lower:
            at, other = lower.index(name), "test" if role == "train" else "train"
            return lambda row, _: role if row[at].strip().lower() in ("true", "1", "yes", "1.0") else other
    return lambda _row, _: table.role


def _catalog(
    path: Path, folder: Any, source: str, rows: list[_Row], tables: Sequence[Table],
    options: ReadOptions, notes: list[str], found: Found,
) -> Catalog:  # fmt: skip
    roles = [row.role or _role_of_folder(row.image, folder) or "train" for row in rows]
    test_role = next((role for role in ("test", "val") if role in roles), None)
    if unused := sum(role not in ("train", test_role) for role in roles):
        notes.append(f"not read: {counted(unused, 'validation image')}, since there are test images")
    if test_role == "val":
        notes.append("no test images: the validation images are the test set")
    if test_role is not None and "train" not in roles:
        raise DataError(f"{tables[0].path}: all its images are {test_role} images; training needs others")
    rows = [row for row, role in zip(rows, roles, strict=True) if role in ("train", test_role)]
    is_test = np.array([role == test_role for role in roles if role in ("train", test_role)], dtype=bool)
    if test_role is None:
        rows.sort(key=lambda row: row.image)
    labels = _numbers([row.label for row in rows], options)
    if labels.dtype.kind == "U":
        check_names(np.unique(labels).tolist(), f"{tables[0].path}: two labels")
    if test_role is None:
        is_test, more = hold_out(
            np.unique(labels, return_inverse=True)[1], "no test images in the table", str(tables[0].path)
        )
        notes += more
    numbered = number_labels(labels[~is_test], labels[is_test], str(tables[0].path))
    order = np.concatenate([np.flatnonzero(~is_test), np.flatnonzero(is_test)])
    rows, is_test = [rows[i] for i in order], is_test[order]
    labels = np.concatenate([numbered.train, numbered.test])
    parts = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def name_row(split: str, index: int) -> str:
        return str(rows[parts[split][index]].image)

    where = str(tables[0].path)
    names = check_labels(numbered.train, numbered.test, numbered.names, where, name_row)
    in_zip = isinstance(folder, ZipPath)
    files = ", ".join(table.path.name for table in tables)
    return Catalog(
        path.resolve().stem if in_zip else path.resolve().name, source,
        f"images with labels in {files}" + ", test images held out" * (test_role is None) + " in a .zip" * in_zip,
        names, labels, is_test,
        lambda: (Encoded(str(row.image.relative_to(folder)), row.image) for row in rows),
        path.parent if in_zip else path,
        [path] if in_zip else [*(row.image for row in rows), *(table.path for table in tables)],
        (*notes, *numbered.notes, *found.notes(folder)), can_stay=not in_zip,
    )  # fmt: skip


def _numbers(labels: list[str], options: ReadOptions) -> np.ndarray:
    """Labels as whole numbers, if all are and text is not asked for; else as text."""
    numbers = [match[1] for label in labels if (match := re.fullmatch(r"(-?\d{1,18})(?:\.0*)?", label))]
    if len(numbers) == len(labels) and options.class_order != "text":
        return np.array([int(number) for number in numbers], dtype=np.int64)
    return np.array(labels, dtype=str)


def _role_of_folder(image: Any, folder: Place) -> str | None:
    parts = image.relative_to(folder).as_posix().split("/")[:-1]
    return next((role for part in parts if (role := role_of(part))), None)
