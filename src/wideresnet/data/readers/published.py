"""The published sets: digits from scikit-learn, CIFAR and SVHN through torchvision and its checksums."""

from __future__ import annotations

import contextlib
import sys
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.paths import data_root
from wideresnet.data.dataset import Dataset, ImageSet
from wideresnet.data.facts import FACTS, SVHN_WITH_EXTRA

# The files that mark each layout, and the torchvision class that reads it.
_CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_MARKS = {"cifar10": ("data_batch_1",), "cifar100": ("train", "meta"), "svhn": ("train_32x32.mat",)}
_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}


@dataclass(frozen=True)
class Layout:
    """A folder in torchvision's own layout: which set, and the folder that directly holds its files."""

    name: str
    folder: Path


def read_digits(source: str) -> Dataset:
    """Scikit-learn's 1,797 digits: uint8 (N, 8, 8, 1), every fifth image is a test image."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    facts = FACTS["digits"]
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # stored as 0..16
    labels = bunch.target.astype(np.int64)
    is_test = np.arange(len(labels)) % 5 == 0
    train, test = ImageSet(images[~is_test], labels[~is_test]), ImageSet(images[is_test], labels[is_test])
    return Dataset(facts.name, source, train, test, facts.class_names, facts, ())


def find_layout(path: Path) -> Layout | None:
    """Find torchvision's files in a folder, or the folder itself among them.

    Raises:
        DataError: the folder holds several sets.
    """
    if not path.is_dir():
        return None
    found = []
    for name, marks in _MARKS.items():
        candidates = [path / _CIFAR_FOLDERS[name], path] if name in _CIFAR_FOLDERS else [path]
        whole = [folder for folder in candidates if all((folder / mark).is_file() for mark in marks)]
        found += [Layout(name, folder) for folder in whole[:1]]
    if len(found) > 1:
        names = ", ".join(layout.name for layout in found)
        raise DataError(f"{path}: holds several data sets ({names}); give the folder of one")
    return found[0] if found else None


def read_layout(layout: Layout, source: str, *, extra: bool) -> Dataset:
    """Read a folder in torchvision's layout, after its checksums. Raises DataError if they do not match."""
    try:
        return _read(layout.name, layout.folder, source, extra=extra, fetch=False)
    except RuntimeError as error:
        raise DataError(
            f"{layout.folder}: files of {FACTS[layout.name].title} are missing or do not have the published "
            f"checksums; remove the folder and give --data {layout.name} to fetch it again"
        ) from error


def download(name: str, source: str, *, extra: bool) -> Dataset:
    """Read a published set from the data root, fetching it first if it is not there.

    Raises:
        DataError: it cannot be fetched.
    """
    root = data_root()
    folder = root / _CIFAR_FOLDERS[name] if name in _CIFAR_FOLDERS else root
    try:
        root.mkdir(parents=True, exist_ok=True)
        return _read(name, folder, source, extra=extra, fetch=True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: could not be fetched into {root} ({reason}); check the network, set WRN_DATA to a "
            "folder that holds it, or give --data FOLDER"
        ) from error


def _read(name: str, folder: Path, source: str, *, extra: bool, fetch: bool) -> Dataset:
    """Let torchvision verify and read; it opens no file before its checksum has matched."""
    import torchvision.datasets

    reader = getattr(torchvision.datasets, _CLASSES[name])
    with _quiet():
        if name == "svhn":
            parts = [_svhn_part(reader, folder, split, fetch) for split in (["train", "extra"] if extra else ["train"])]
            train = parts[0]
            if extra:
                images, labels = ([getattr(part, field) for part in parts] for field in ("images", "labels"))
                train = ImageSet(np.concatenate(images), np.concatenate(labels))
            test = _svhn_part(reader, folder, "test", fetch)
        else:
            # The user may have renamed the folder; torchvision takes its name from this attribute.
            reader = type(reader.__name__, (reader,), {"base_folder": folder.name})
            train, test = (_cifar_part(reader, folder.parent, is_train, fetch) for is_train in (True, False))
    facts = SVHN_WITH_EXTRA if extra else FACTS[name]
    return Dataset(name, source, train, test, facts.class_names, facts, ())


def _cifar_part(reader: Any, root: Path, is_train: bool, fetch: bool) -> ImageSet:
    part = reader(str(root), train=is_train, download=fetch)
    return ImageSet(np.ascontiguousarray(part.data), np.asarray(part.targets, dtype=np.int64))


def _svhn_part(reader: Any, root: Path, split: str, fetch: bool) -> ImageSet:
    part = reader(str(root), split=split, download=fetch)
    images = np.ascontiguousarray(part.data.transpose(0, 2, 3, 1))  # torchvision gives (N, C, H, W)
    return ImageSet(images, np.asarray(part.labels, dtype=np.int64))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what torchvision prints to stderr, and drop NumPy's word on how CIFAR's files were written."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", category=np.exceptions.VisibleDeprecationWarning)
        yield
