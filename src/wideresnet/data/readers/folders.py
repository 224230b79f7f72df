"""Class folders: `train/<class>/...` with `test/<class>/...`, or `<class>/...` alone."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import Dataset, check_labels, every_fifth, split_images
from wideresnet.data.decode import Decoded, Encoded, decode_all
from wideresnet.data.readers.splits import LAYOUTS, find_splits
from wideresnet.data.readers.walk import Found, images_by_class

_NUM_LISTED = 5


def read_folder(
    folder: Path,
    source: str,
    *,
    image_size: int | None,
    skip_unreadable: bool,
    decode: Callable[..., Decoded] = decode_all,
) -> Dataset:
    """Read a folder of class folders. Subfolders of a class belong to it; hidden files do not.

    Links are followed, also to outside the folder (counted in a note), but a folder is read once: not again through
    a link, whether it leads back to a parent folder or to any other that is read already.

    Args:
        folder: contains `train/<class>` and `test/<class>` (or `val`, `validation`); or `<class>` alone, of which
            every fifth image per class, in the order of a hash of its path, is the test set.
        source: what the user asked for.
        image_size: side, px, of images that do not all have one size of at most 128 px.
        skip_unreadable: leave out images that cannot be read, with a note.
        decode: `decode_all`, or what takes its place.

    Raises:
        DataError: there are no class folders, a class has no images, a test class is not in train, or images cannot
            be read.
    """
    found = Found()
    splits = find_splits(folder, found)
    notes = list(splits.notes)
    train_root, test_root = splits.train_root, splits.test_root
    if len(splits.train) < 2:
        raise DataError(f"{train_root}: {len(splits.train)} class folders, at least 2 are needed; {LAYOUTS}")
    train = images_by_class(folder, splits.train, found)
    test = images_by_class(folder, splits.test, found) if splits.test is not None else {}
    class_names = sorted(train)
    labels_of = {name: label for label, name in enumerate(class_names)}
    test = _under_the_names_of_train(test, class_names, test_root or train_root)
    _check_names(class_names, train_root)
    if all(name.isdecimal() for name in class_names) and class_names != sorted(class_names, key=int):
        notes.append(f"class names are ordered as text: {', '.join(class_names[:_NUM_LISTED])}, ...")
    for root, classes in ((train_root, train), (test_root, test)):
        for name, paths in classes.items():
            if name not in labels_of:
                raise DataError(f"{root}/{name}: train has no such class (only {', '.join(class_names[:10])})")
            if not paths:
                raise DataError(f"{root}/{name}: a class folder without images; add some, or remove the folder")

    files = [(path, labels_of[name]) for name, paths in train.items() for path in paths]
    if test_root is None:
        files.sort(key=lambda item: _stable_hash(item[0].relative_to(folder)))
        held_out = every_fifth(np.array([label for _, label in files]))
        files = sorted(zip(files, held_out.tolist(), strict=True), key=lambda item: (item[1], item[0][0]))
        is_test = np.array([is_held for _, is_held in files])
        files = [item for item, _ in files]
        notes.append(f"no test folder: every 5th image of each class is held out, {is_test.sum()} images")
    else:
        num_train = len(files)
        files += [(path, labels_of[name]) for name, paths in test.items() for path in paths]
        is_test = np.arange(len(files)) >= num_train
        if without := [name for name in class_names if name not in test]:
            classes = "1 class has" if len(without) == 1 else f"{len(without)} classes have"
            notes.append(f"{classes} no test image: {', '.join(without[:_NUM_LISTED])}")
    notes += found.notes(folder)

    paths = [path for path, _ in files]
    labels = np.array([label for _, label in files])
    decoded = decode(
        lambda: (Encoded(str(path.relative_to(folder)), path) for path in paths),
        len(paths),
        folder=folder,
        files=paths,
        image_size=image_size,
        skip_unreadable=skip_unreadable,
    )
    labels, is_test = labels[decoded.kept], is_test[decoded.kept]
    names = check_labels(labels[~is_test], labels[is_test], class_names, str(folder), lambda split, _: str(split))
    train_set, test_set = split_images(decoded.images, labels, is_test)
    return Dataset(folder.resolve().name, source, train_set, test_set, names, None, (*notes, *decoded.notes))


def _same_name(name: str) -> str:
    """What names have in common that look the same: Unicode's composed form, no spaces around."""
    return unicodedata.normalize("NFC", name).strip()


def _check_names(class_names: list[str], root: Path) -> None:
    """Refuse two classes whose names look the same."""
    seen: dict[str, str] = {}
    for name in class_names:
        if (other := seen.setdefault(_same_name(name), name)) != name:
            raise DataError(
                f"{root}: two class folders look the same, {other!a} and {name!a}; merge them, or rename one"
            )


def _under_the_names_of_train(test: dict[str, list[Path]], class_names: list[str], root: Path) -> dict[str, list[Path]]:
    """Give the classes of the test set the names that they have in train, even if these are written otherwise."""
    known = {_same_name(name): name for name in class_names}
    renamed: dict[str, list[Path]] = {}
    for name, paths in test.items():
        own = name if name in class_names else known.get(_same_name(name), name)
        if own in renamed:
            raise DataError(f"{root}: two class folders look the same, {own!a} and {name!a}; merge them")
        renamed[own] = paths
    return renamed


def _stable_hash(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).digest()
