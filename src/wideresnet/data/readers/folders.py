"""Class folders: `train/<class>/...` with `test/<class>/...`, or `<class>/...` alone, on disk or in a .zip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.format import counted
from wideresnet.data.catalog import Catalog, ReadOptions, hold_out
from wideresnet.data.dataset import check_labels
from wideresnet.data.decode import Encoded
from wideresnet.data.labels import check_names, differing, same_name
from wideresnet.data.readers.annotations import read_annotated, spelled_names
from wideresnet.data.readers.kinds import describe_folder, guess_kind
from wideresnet.data.readers.splits import LAYOUTS, Splits, find_splits, role_of, unwrapped
from wideresnet.data.readers.table_files import find_tables
from wideresnet.data.readers.tables import is_at_odds, read_tables
from wideresnet.data.readers.walk import Found, Place, images_by_class, subfolders
from wideresnet.data.readers.zips import ZipPath, open_zip

_NUM_LISTED = 5
_MAX_WITH_TABLES = 10  # folders that are looked into for tables, whatever they are called
Files = dict[str, list[Any]]


def read_folder(path: Path, source: str, options: ReadOptions) -> Catalog:
    """Read a folder of class folders, or of images with a table of their labels; or a .zip of one.

    Subfolders of a class belong to it; hidden files do not. Links are followed, also to outside the folder (counted in
    a note), but a folder is read once: not again through a link, whether it leads back to a parent folder or to any
    other that is read already.

    Args:
        path: contains `train/<class>` and `test/<class>` (or `val`, `validation`); or `<class>` alone, of which
            every fifth image per class, in the order of a hash of its path, is the test set.
        source: what the user asked for.
        options: columns of tables, and the order of classes.

    Raises:
        DataError: there are no class folders and no table, a class has no images, or a test class is not in train.
    """
    folder, notes = (path, []) if path.is_dir() else open_zip(path)
    found = Found()
    root = unwrapped(folder, found)
    above = [folder]  # the folders that were gone through, where tables may be
    if root != folder:
        notes.append(f"read from its only subfolder {root.relative_to(folder)}")
        above = _between(folder, root)
    inside = subfolders(root, found)
    few = len(inside) <= _MAX_WITH_TABLES
    tables = find_tables([*above, *(path for name, path in inside.items() if few or role_of(name))])
    if tables and (options.label_column or options.image_column):
        return read_tables(path, folder, tables, source, options, found, notes)
    splits = find_splits(root, found) if not tables else _splits_or_none(root, found)
    num_full = _num_full(splits, folder)
    if num_full < 2 and tables:
        return read_tables(path, folder, tables, source, options, found, notes)
    if splits is None or len(splits.train) < 2 or num_full == 0 or (num_full == 1 and guess_kind(root)):
        where = splits.train_root if splits is not None and len(splits.train) == 1 else root
        raise DataError(f"{where}: {describe_folder(where, found)}; {LAYOUTS}")
    if tables and (odd := is_at_odds(folder, tables, [*splits.train])):
        raise DataError(f"{root}: {odd}")
    files = _sort(folder, root, above, splits, found, options)
    return _catalog(path, folder, source, files, [*notes, *splits.notes, *files.notes], found)


class _Files:
    """Images by class, in the order of the labels, and what was decided."""

    def __init__(self, train: Files, test: Files | None, names: tuple[str, ...], notes: list[str], layout: str) -> None:
        self.train, self.test, self.names, self.notes, self.layout = train, test, names, notes, layout


def _between(top: Any, bottom: Any) -> list[Any]:
    """The folders from one down to another in it."""
    chain = [bottom]
    while chain[-1] != top:
        chain.append(chain[-1].parent)
    return chain[::-1]


def _splits_or_none(root: Place, found: Found) -> Splits | None:
    try:
        return find_splits(root, found)
    except DataError:  # names of splits without class folders: the table has the labels
        return None


def _num_full(splits: Splits | None, folder: Place) -> int:
    """Count the class folders of train that have images."""
    return sum(map(bool, images_by_class(folder, splits.train, Found()).values())) if splits else 0


def _sort(folder: Any, root: Place, above: Sequence[Any], splits: Splits, found: Found, options: ReadOptions) -> _Files:
    """List the images of each class and split, under the names of train's folders."""
    train = images_by_class(folder, splits.train, found)
    check_names(sorted(train), f"{splits.train_root}: two class folders")
    names, notes = _ordered(sorted(train), options)
    for name in names:
        if not train[name]:
            others = [path for path in found.others if path.parent == splits.train[name]]
            about = f" ({counted(len(others), 'other file')}: {others[0].name}, ...)" if others else ""
            remedy = "give images the extension of their format, such as .jpg" if others else "add some"
            known = guess_kind(folder)
            raise DataError(
                f"{splits.train_root}/{name}: a class folder without images{about}; "
                + (known or f"{remedy}, or remove the folder")
            )
    layout, test = splits.layout, None
    if splits.test is not None:
        test = images_by_class(folder, splits.test, found)
        test, more = _under_the_names_of_train(test, names, splits.test_root)
        notes += more
    for flat in splits.flat if test is None else ():
        annotated = read_annotated(flat, root, folder, sorted(names), found)
        if annotated is None:
            notes.append(f"{flat.name}/ has no class folders and no file of labels: unlabeled, so no test images")
        elif test is None:
            test, annotations = annotated
            layout = f"{splits.layout} and {flat.name}/ with {annotations.name}"
            notes.append(f"the labels of {flat.name}/, the test set, are from {annotations.name}")
        else:
            notes.append(f"not read: {flat.name}/")
    if deep := _with_subfolders(splits):
        notes.append(f"subfolders of a class belong to it: {', '.join(deep[:_NUM_LISTED])}")
    shown = tuple(names)
    if spelled := spelled_names(names, dict.fromkeys([*above, root])):
        shown, where = spelled
        notes.append(f"the names of the classes are from {where}: {names[0]} is {shown[0]}")
    return _Files({name: train[name] for name in names}, test, shown, notes, layout)


def _ordered(names: list[str], options: ReadOptions) -> tuple[list[str], list[str]]:
    """The names of classes in the order of their labels; as text, if nothing else is asked for."""
    if not all(name.isdecimal() for name in names):
        if options.class_order == "number":
            other = next(name for name in names if not name.isdecimal())
            raise DataError(f"class_order='number': {other!r} is no number; use class_order='text'")
        return names, []
    by_number = sorted(names, key=lambda name: (int(name), name))
    if by_number == names:
        return names, []
    other, chosen = ("text", by_number) if options.class_order == "number" else ("number", names)
    order = "number" if other == "text" else "text"
    return chosen, [
        f"class names are ordered as {order}: {', '.join(chosen[:_NUM_LISTED])}, ...; class_order='{other}' "
        "changes that"
    ]


def _with_subfolders(splits: Splits) -> list[str]:
    """The classes with several folders in them, which might be classes themselves."""
    inside = {name: sorted(subfolders(path, Found())) for name, path in splits.train.items()}
    return [f"{name} has {', '.join(folders[:3])}" for name, folders in inside.items() if len(folders) > 1]


def _under_the_names_of_train(test: Files, names: Sequence[str], root: Place) -> tuple[Files, list[str]]:
    """Give the classes of the test set the names that they have in train, even if these are written otherwise."""
    known = {same_name(name): name for name in names}
    renamed: Files = {}
    empty = []
    for name, paths in test.items():
        own = name if name in names else known.get(same_name(name), name)
        if own in renamed:
            raise DataError(f"{root}: two class folders look the same, {differing(own, name)}; merge them")
        if not paths:
            empty.append(name)
        elif own not in names:
            first = ", ".join(names[:10])
            raise DataError(
                f"{root}/{name}: train has no such class (only {first}); add training images of it, or remove the "
                "folder"
            )
        else:
            renamed[own] = paths
    if strange := [name for name in empty if known.get(same_name(name)) is None]:
        return renamed, [f"not read: empty folders {', '.join(strange[:_NUM_LISTED])} in {root.name}"]
    return renamed, []


def _catalog(path: Path, folder: Any, source: str, files: _Files, notes: list[str], found: Found) -> Catalog:
    names = list(files.train)
    items = [(image, label) for label, paths in enumerate(files.train.values()) for image in paths]
    if files.test is None:
        items.sort(key=lambda item: _stable_hash(item[0].relative_to(folder)))
        is_test, more = hold_out(np.array([label for _, label in items]), "no test folder", str(path), tuple(names))
        order = sorted(range(len(items)), key=lambda i: (is_test[i], items[i][0]))
        items, is_test = [items[i] for i in order], is_test[order]
        notes = [*notes, *more]
        layout = f"{files.layout}, test images held out"
    else:
        num_train = len(items)
        items += [(image, label) for label, name in enumerate(names) for image in files.test.get(name, ())]
        is_test, layout = np.arange(len(items)) >= num_train, files.layout
        if without := [name for name in names if name not in files.test]:
            classes = "1 class has" if len(without) == 1 else f"{len(without)} classes have"
            notes = [*notes, f"{classes} no test image: {', '.join(without[:_NUM_LISTED])}"]
    paths, labels = [image for image, _ in items], np.array([label for _, label in items])
    names = check_labels(labels[~is_test], labels[is_test], files.names, str(path), lambda split, _: split)
    in_zip = isinstance(folder, ZipPath)
    layout += " in a .zip" * in_zip
    return Catalog(
        path.resolve().stem if in_zip else path.resolve().name, source, layout, names, labels, is_test,
        lambda: (Encoded(str(image.relative_to(folder)), image) for image in paths),
        path.parent if in_zip else path, [path] if in_zip else paths, (*notes, *found.notes(folder)),
        can_stay=not in_zip,
    )  # fmt: skip


def _stable_hash(path: Any) -> bytes:
    return hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).digest()
