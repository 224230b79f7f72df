"""Which folders are training and test images, and which are classes: by names in common spellings, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wideresnet.base.errors import DataError
from wideresnet.data.readers.walk import Found, subfolders, visible

LAYOUTS = (
    "accepted are class folders (train/<class>/ with test/<class>/, or <class>/ alone), Hugging Face parquet "
    "(train-*.parquet, test-*.parquet), or torchvision's files (cifar-10-batches-py, cifar-100-python, "
    "train_32x32.mat)"
)
_MAX_WRAPPED = 5  # folders with nothing but one folder in them, as archives often have one

_SPLIT = re.compile(
    r"(?:dataset|data|seg|images?|imgs?)?[-_ ]*"
    r"(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev|eval(?:uation)?))"
    r"[-_ ]*(?:dataset|data|set|split|images?|imgs?)?",
    re.IGNORECASE,
)
_ALWAYS_SPLITS = ("test", "val", "validation")  # a class of such a name is refused, because it is probably no class


@dataclass(frozen=True)
class Splits:
    """The class folders of each split.

    Attributes:
        train, test: the folder of each class; `test` is None if it is held out from train.
        train_root, test_root: where they are, for messages.
        notes: what was decided, one line each.
    """

    train: Mapping[str, Path]
    test: Mapping[str, Path] | None
    train_root: Path
    test_root: Path | None
    notes: tuple[str, ...]


def find_splits(folder: Path, found: Found) -> Splits:
    """Find out which folders are splits and which are classes.

    Splits have names such as train, Training, seg_test, valid or dev, in any case, and hold class folders; or each
    class folder holds the same splits. A folder that holds nothing but another one is looked through.

    Raises:
        DataError: names look like splits but make no sense as such.
    """
    root = _unwrapped(folder, found)
    notes = [] if root == folder else [f"read from its only subfolder {root.relative_to(folder)}"]
    folders = subfolders(root, found)
    roles = _roles(root, folders)
    train_root = roles.get("train")
    if train_root is not None and (inner := _unwrapped(train_root, found)) and subfolders(inner, found):
        test_root = roles.get("test") or roles.get("val")
        if "test" not in roles and test_root is not None:
            notes.append(f"no test folder: {test_root.name} is the test set")
        if unread := [name for name, path in folders.items() if path not in (train_root, test_root)]:
            notes.append(f"not read: folders {', '.join(unread)} next to {train_root.name}")
        found.others += [path for path in visible(root, found) if not path.is_dir()]
        test = _class_folders(_unwrapped(test_root, found), found) if test_root else None
        return Splits(_class_folders(inner, found), test, inner, test_root, tuple(notes))
    for role in ("test", "val"):
        path = roles.get(role)
        only_splits = train_root is not None and all(map(_SPLIT.fullmatch, folders))
        if path is not None and (only_splits or path.name in _ALWAYS_SPLITS or subfolders(path, found)):
            raise DataError(
                f"{root}: has {path.name}/ but no train/ with class folders; add it, or "
                f"rename {path.name}/ if it is a class"
            )
    inside = {name: _roles(path, subfolders(path, found)) for name, path in folders.items()}
    with_train = [name for name, of_class in inside.items() if "train" in of_class]
    if with_train and len(with_train) < len(inside):
        without = next(name for name in inside if name not in with_train)
        raise DataError(f"{root}: {with_train[0]} has splits inside, but {without} has none; {LAYOUTS}")
    if not with_train:
        return Splits(_class_folders(root, found), None, root, None, tuple(notes))
    role = next((role for role in ("test", "val") if any(role in of_class for of_class in inside.values())), None)
    test = {name: of_class[role] for name, of_class in inside.items() if role in of_class} if role else None
    names = sorted(subfolders(folders[with_train[0]], found))
    notes.append(f"each class folder holds its own splits: {', '.join(names)}")
    train = {name: of_class["train"] for name, of_class in inside.items()}
    return Splits(train, test, root, root if role else None, tuple(notes))


def _unwrapped(folder: Path, found: Found) -> Path:
    """Go down while a folder holds nothing but one folder with folders in it, which is no split itself."""
    for _ in range(_MAX_WRAPPED):
        paths = visible(folder, found)
        folders = [path for path in paths if path.is_dir()]
        if len(folders) != 1 or len(paths) > 1 or folders[0].is_symlink() or _SPLIT.fullmatch(folders[0].name):
            break
        if not subfolders(folders[0], found):
            break
        folder = folders[0]
    return folder


def _roles(folder: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The folders that look like splits, by what they look like: train, test or val."""
    roles: dict[str, Path] = {}
    for name, path in folders.items():
        match = _SPLIT.fullmatch(name)
        role = match.lastgroup if match else None
        if role is not None and role in roles and role != "val":
            raise DataError(f"{folder}: {roles[role].name}/ and {name}/ both look like the {role} images; keep one")
        if role is not None:
            roles.setdefault(role, path)
    return roles


def _class_folders(root: Path, found: Found) -> dict[str, Path]:
    found.others += [path for path in visible(root, found) if not path.is_dir()]
    return subfolders(root, found)
