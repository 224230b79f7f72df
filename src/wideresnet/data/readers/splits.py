"""Which folders are training and test images, and which are classes: by names in common spellings, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wideresnet.base.errors import DataError
from wideresnet.data.labels import same_name
from wideresnet.data.readers.walk import Found, Place, has_images, subfolders, visible

LAYOUTS = (
    "accepted are class folders (train/<class>/ with test/<class>/, or <class>/ alone), also in a .zip; a table of "
    "labels (labels.csv, metadata.csv) beside the images; webdataset's tar shards (train-0000.tar, val-0000.tar); "
    "Hugging Face parquet (train-*.parquet, test-*.parquet); .npz; MNIST's and STL-10's files; or torchvision's "
    "(cifar-10-batches-py, cifar-100-python, train_32x32.mat)"
)
_MAX_WRAPPED = 5  # folders with nothing but one folder in them, as archives often have one

_ROLES = {
    "train": ("train", "training", "trn", "trainset", "traindata"),
    "test": ("test", "testing", "tst", "testset", "testdata", "holdout"),
    "val": ("val", "valid", "validation", "validate", "valset", "dev", "devset", "eval", "evaluation"),
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words}
_COMMON = frozenset({"dataset", "data", "seg", "image", "images", "img", "imgs", "set", "split", "the", "my", "folder"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # train2017, seg_train, TrainingSet, TRAIN
_ALWAYS_SPLITS = ("test", "val", "validation")  # a class of such a name is refused, because it is probably no class


@dataclass(frozen=True)
class Splits:
    """The class folders of each split.

    Attributes:
        train, test: the folder of each class; `test` is None if the test set is to be found otherwise.
        train_root, test_root: where they are, for messages.
        flat: folders that look like test images, the first choice first, but have no class folders.
        layout: what was recognized.
        notes: what was decided, one line each.
    """

    train: Mapping[str, Any]
    test: Mapping[str, Any] | None
    train_root: Any
    test_root: Any
    flat: tuple[Any, ...]
    layout: str
    notes: tuple[str, ...]


def role_of(name: str) -> str | None:
    """Return "train", "test" or "val" if a name, of a folder or in a column of splits, looks like that of a split."""
    role, others = _role_and_others(name)
    return None if set(others) - _COMMON else role


def _role_and_others(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The role that a name holds, and its other words: `flowers_train` -> "train", ("flowers",)."""
    words = [word.lower() for word in _WORD.findall(name)]
    roles = {_ROLE_OF[word] for word in words if word in _ROLE_OF}
    return roles.pop() if len(roles) == 1 else None, tuple(word for word in words if word not in _ROLE_OF)


def find_splits(root: Place, found: Found) -> Splits:
    """Find out which folders are splits and which are classes.

    Splits have names such as train, Training, seg_test, valid or dev, in any case, and hold class folders; or each
    class folder holds the same splits.

    Args:
        root: from `unwrapped`.
        found: takes what else is found.

    Raises:
        DataError: names look like splits but make no sense as such.
    """
    folders = subfolders(root, found)
    roles = _roles(root, folders, found)
    train_root = roles["train"][0] if roles.get("train") else None
    if train_root is not None and len(subfolders(inner := unwrapped(train_root, found, "train"), found)) > 0:
        return _beside_train(root, folders, roles, inner, found)
    for role in ("test", "val"):
        for path in roles.get(role, ()):
            only_splits = train_root is not None and all(map(role_of, folders))
            if only_splits or path.name in _ALWAYS_SPLITS or subfolders(path, found):
                raise DataError(
                    f"{root}: has {path.name}/ but no train/ with class folders; add it, or "
                    f"rename {path.name}/ if it is a class"
                )
    inside = {name: _roles(path, subfolders(path, found), found) for name, path in folders.items()}
    with_train = [name for name, of_class in inside.items() if of_class.get("train")]
    if with_train and len(with_train) < len(inside):
        without = next(name for name in inside if name not in with_train)
        raise DataError(f"{root}: {with_train[0]} has splits inside, but {without} has none; {LAYOUTS}")
    if not with_train:
        return Splits(_class_folders(root, found), None, root, None, (), "class folders", ())
    role = next((role for role in ("test", "val") if any(of_class.get(role) for of_class in inside.values())), None)
    test = {name: of_class[role][0] for name, of_class in inside.items() if of_class.get(role)} if role else None
    names = sorted(subfolders(folders[with_train[0]], found))
    train = {name: of_class["train"][0] for name, of_class in inside.items()}
    notes = (f"each class folder holds its own splits: {', '.join(names)}",)
    layout = f"class folders with {', '.join(names)} in each"
    return Splits(train, test, root, root if role else None, (), layout, notes)


def _beside_train(
    root: Place, folders: Mapping[str, Any], roles: Mapping[str, list[Any]], inner: Place, found: Found
) -> Splits:
    """The splits of a folder that has training images in class folders."""
    train_root, notes = roles["train"][0], []
    train = _class_folders(inner, found)
    known = {same_name(name) for name in train}
    chosen, flat = None, []
    for role in ("test", "val"):
        for path in roles.get(role, ()):
            place = unwrapped(path, found, role)
            classes = subfolders(place, found)
            if any(same_name(name) in known for name in classes) or len(classes) > 1:
                chosen = chosen or (path, place)
            elif classes or has_images(place, found):
                flat.append(path)
    test_root, test = (chosen[0], _class_folders(chosen[1], found)) if chosen else (None, None)
    if test_root is not None and test_root not in roles.get("test", ()):
        notes.append(f"no test folder: {test_root.name} is the test set")
    if test_root is not None:
        notes += [f"not read: {path.name}/ has no class folders, so no labels" for path in flat]
    used = [train_root, test_root, *flat]
    if unread := [name for name, path in folders.items() if path not in used]:
        notes.append(f"not read: folders {', '.join(unread)} next to {train_root.name}")
    found.others += [path for path in visible(root, found) if not path.is_dir()]
    layout = f"class folders in {train_root.name}/" + (f" and {test_root.name}/" if test_root is not None else "")
    return Splits(train, test, inner, test_root, () if chosen else tuple(flat), layout, tuple(notes))


def unwrapped(folder: Any, found: Found, role: str | None = None) -> Any:
    """Go down while a folder holds nothing but one folder with folders in it, which is no split itself.

    Files beside that folder, such as a README, do not count, if they are no images.

    Args:
        folder: where to begin.
        found: takes what else is found.
        role: of the folder, if it is a split itself: a folder of the same role in it is gone through, as in
            train/train/<class>.
    """
    for _ in range(_MAX_WRAPPED):
        paths = visible(folder, found)
        folders = [path for path in paths if path.is_dir()]
        if len(folders) != 1 or folders[0].is_symlink() or has_images(folder, found):
            break
        own = role_of(folders[0].name)
        if (own is not None and own != role) or not subfolders(folders[0], found):
            break
        found.others += [path for path in paths if not path.is_dir()]
        folder = folders[0]
    return folder


def _roles(folder: Place, folders: Mapping[str, Any], found: Found) -> dict[str, list[Any]]:
    """The folders that look like splits, by what they look like: train, test or val.

    If no name is a common spelling of train, other words may be in the names, the same in all: flowers_train and
    flowers_test.
    """
    named = {name: role_of(name) for name in folders}
    if "train" not in named.values():
        loose = {name: _role_and_others(name) for name in folders if subfolders(folders[name], found)}
        prefixes = [others for role, others in loose.values() if role == "train"]
        if len(prefixes) == 1 and sum(others == prefixes[0] for _, others in loose.values()) > 1:
            named |= {name: role for name, (role, others) in loose.items() if others == prefixes[0]}
    roles: dict[str, list[Any]] = {}
    for name, role in named.items():
        if role in roles and role != "val":
            raise DataError(f"{folder}: {roles[role][0].name}/ and {name}/ both look like the {role} images; keep one")
        if role is not None:
            roles.setdefault(role, []).append(folders[name])
    return roles


def _class_folders(root: Place, found: Found) -> dict[str, Any]:
    found.others += [path for path in visible(root, found) if not path.is_dir()]
    return subfolders(root, found)
