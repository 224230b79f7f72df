"""Class folders: `train/<class>/...` with `test/<class>/...`, or `<class>/...` alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import Dataset, check_labels, every_fifth, split_images
from wideresnet.data.decode import Encoded, decode_all
from wideresnet.data.images import EXTENSIONS

TEST_FOLDERS = ("test", "val", "validation")  # the first one that exists is the test set
_NUM_LISTED = 5

_LAYOUTS = (
    "accepted are class folders (train/<class>/ with test/<class>/, or <class>/ alone), Hugging Face parquet "
    "(train-*.parquet, test-*.parquet), or torchvision's files (cifar-10-batches-py, cifar-100-python, "
    "train_32x32.mat)"
)


@dataclass
class _Found:
    """What a walk through the folders found besides images."""

    others: list[Path] = field(default_factory=list)
    num_outside: int = 0
    num_repeated: int = 0


def read_folder(folder: Path, source: str, *, image_size: int | None, skip_unreadable: bool) -> Dataset:
    """Read a folder of class folders. Subfolders of a class belong to it; hidden files do not.

    Links are followed, also to outside the folder (counted in a note), but a folder is read once: not again through
    a link, whether it leads back to a parent folder or to any other that is read already.

    Args:
        folder: contains `train/<class>` and `test/<class>` (or `val`, `validation`); or `<class>` alone, of which
            every fifth image per class, in the order of a hash of its path, is the test set.
        source: what the user asked for.
        image_size: side, px, of images that do not all have one size of at most 128 px.
        skip_unreadable: leave out images that cannot be read, with a note.

    Raises:
        DataError: there are no class folders, a class has no images, a test class is not in train, or images cannot
            be read.
    """
    found = _Found()
    notes: list[str] = []
    subfolders = {path.name: path for path in _visible(folder) if path.is_dir()}
    test_name = next((name for name in TEST_FOLDERS if name in subfolders), None)
    has_train = "train" in subfolders and any(path.is_dir() for path in _visible(subfolders["train"]))
    if not has_train:
        if test_name:
            raise DataError(
                f"{folder}: has {test_name}/ but no train/ with class folders; add it, or "
                f"rename {test_name}/ if it is a class"
            )
        train_root, test_root = folder, None
    else:
        train_root, test_root = subfolders["train"], subfolders[test_name] if test_name else None
        unread = [name for name in subfolders if name not in ("train", test_name)]
        if unread:
            notes.append(f"not read: folders {', '.join(unread)} next to train")
        found.others += [path for path in _visible(folder) if not path.is_dir()]

    train = _classes(folder, train_root, found)
    if len(train) < 2:
        raise DataError(f"{train_root}: {len(train)} class folders, at least 2 are needed; {_LAYOUTS}")
    class_names = sorted(train)
    labels_of = {name: label for label, name in enumerate(class_names)}
    test = _classes(folder, test_root, found) if test_root else {}
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
        if test_root.name != "test":
            notes.append(f"no test folder: {test_root.name} is the test set")
        if without := [name for name in class_names if name not in test]:
            classes = "1 class has" if len(without) == 1 else f"{len(without)} classes have"
            notes.append(f"{classes} no test image: {', '.join(without[:_NUM_LISTED])}")
    notes += _found_notes(folder, found)

    paths = [path for path, _ in files]
    labels = np.array([label for _, label in files])
    decoded = decode_all(
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


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder: Path, root: Path, found: _Found) -> dict[str, list[Path]]:
    """The images of each class folder in `root`, by class, in the order of their paths.

    Real folders come first, so that each belongs to the class that contains it. Folders behind links come after that,
    and none twice: a few links that fork and join again would else make billions of paths.
    """
    classes: dict[str, list[Path]] = {}
    within = os.path.realpath(folder)
    seen = {_identity(folder), _identity(root)}
    links: list[tuple[str, Path]] = []
    for path in _visible(root):
        if not path.is_dir():
            found.others.append(path)
            continue
        classes[path.name] = []
        if path.is_symlink():
            links.append((path.name, path))
        elif _is_new(path, seen):
            links += [(path.name, link) for link in _walk(path, classes[path.name], seen, found)]
    for name, path in links:  # grows on the way
        found.num_outside += _leads_out(path, within)
        if _is_new(path, seen):
            links += [(name, link) for link in _walk(path, classes[name], seen, found)]
        elif path.parent == root:
            raise DataError(f"{path}: a link to a folder that is read already; a folder can be one class only")
        else:
            found.num_repeated += 1
    for name, paths in classes.items():
        found.num_outside += sum(_leads_out(path, within) for path in paths)
        classes[name] = sorted(paths)
    return classes


def _walk(top: Path, images: list[Path], seen: set[tuple[int, int]], found: _Found) -> list[Path]:
    """Add the images in and below a folder to `images`. Return the links to folders, which are not followed."""
    folders, links = [top], []
    while folders:
        for path in _visible(folders.pop()):
            if path.is_dir():
                if path.is_symlink():
                    links.append(path)
                elif _is_new(path, seen):
                    folders.append(path)
            elif path.suffix.lower() in EXTENSIONS:
                images.append(path)
            else:
                found.others.append(path)
    return links


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Tell whether a folder has not been read yet, and remember it."""
    identity = _identity(folder)
    is_new = identity not in seen
    seen.add(identity)
    return is_new


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _leads_out(path: Path, folder: str) -> bool:
    return path.is_symlink() and path.exists() and not Path(os.path.realpath(path)).is_relative_to(folder)


def _found_notes(folder: Path, found: _Found) -> list[str]:
    notes = []
    if found.others:
        listed = ", ".join(str(path.relative_to(folder)) for path in found.others[:_NUM_LISTED])
        more = ", ..." if len(found.others) > _NUM_LISTED else ""
        notes.append(
            f"{_files(len(found.others))} not read: no image extension, or not in a class folder: {listed}{more}"
        )
    if found.num_outside:
        notes.append(f"followed {_links(found.num_outside)} to outside the folder")
    if found.num_repeated:
        notes.append(f"did not follow {_links(found.num_repeated)} to folders that are read already")
    return notes


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _links(count: int) -> str:
    return "1 link" if count == 1 else f"{count} links"


def _stable_hash(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).digest()
