"""The published sets: digits from scikit-learn, CIFAR and SVHN through torchvision and its checksums."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wideresnet.base import progress
from wideresnet.base.errors import DataError
from wideresnet.base.paths import data_root, private_folder
from wideresnet.data.dataset import Dataset, ImageSet
from wideresnet.data.facts import FACTS, SVHN_WITH_EXTRA

log = logging.getLogger(__name__)

# The files that identify each layout, and the torchvision class that reads it.
_CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_MARKS = {"cifar10": ("data_batch_1",), "cifar100": ("train", "meta"), "svhn": ("train_32x32.mat",)}
_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}


@dataclass(frozen=True)
class Layout:
    """A folder with torchvision's files: the name of the set, and the folder that directly contains the files."""

    name: str
    folder: Path


def read_digits(source: str) -> Dataset:
    """Read scikit-learn's 1,797 digits: uint8 (N, 8, 8, 1); every fifth image is a test image."""
    rows = _rows_of_digits()
    facts = FACTS["digits"]
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = rows[:, -1].astype(np.int64)
    is_test = np.arange(len(labels)) % 5 == 0
    train, test = ImageSet(images[~is_test], labels[~is_test]), ImageSet(images[is_test], labels[is_test])
    return Dataset(facts.name, source, train, test, facts.class_names, facts, ())


def _rows_of_digits() -> np.ndarray[Any, Any]:
    """Return an image and its label per row. scikit-learn's file is read without it: its import takes over a second."""
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin if package and package.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version that has it elsewhere

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])


def find_layout(path: Path) -> Layout | None:
    """Find torchvision's files in a folder; `path` may also be the inner folder that torchvision makes.

    Raises:
        DataError: the folder has several sets.
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
        raise DataError(f"{path}: has several data sets ({names}); use the folder of one of them")
    return found[0] if found else None


def read_layout(layout: Layout, source: str, *, extra: bool) -> Dataset:
    """Read a folder with torchvision's files after verifying their checksums.

    Args:
        layout: from `find_layout`.
        source: what the user asked for.
        extra: SVHN only: read the extra images, too.

    Raises:
        DataError: the checksums do not match.
    """
    try:
        return _read(layout.name, layout.folder, source, extra=extra, fetch=False)
    except RuntimeError as error:
        raise DataError(
            f"{layout.folder}: files of {FACTS[layout.name].title} are missing or do not have the published "
            f"checksums; remove the folder and use data='{layout.name}' to download them again"
        ) from error


def download(name: str, source: str, *, extra: bool) -> Dataset:
    """Read a published set from the data root, after downloading it if it is not there.

    Args:
        name: "cifar10", "cifar100" or "svhn".
        source: what the user asked for.
        extra: SVHN only: read the extra images, too.

    Raises:
        DataError: it cannot be downloaded.
    """
    root = data_root()
    folder = root / _CIFAR_FOLDERS[name] if name in _CIFAR_FOLDERS else root
    try:
        private_folder(root)
        return _read(name, folder, source, extra=extra, fetch=True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: could not be downloaded into {root} ({reason}); check the network, set WRN_DATA to a "
            "folder that has it, or use the path of a folder as data="
        ) from error


def _read(name: str, folder: Path, source: str, *, extra: bool, fetch: bool) -> Dataset:
    """Let torchvision verify and read the files. It opens none before its checksum has matched."""
    import torchvision.datasets

    reader = getattr(torchvision.datasets, _CLASSES[name])
    with _quiet(FACTS[name].title):
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
def _download_bar(description: str, total: int | None = None, **_: object) -> Iterator[SimpleNamespace]:
    """Stand in for `tqdm` in torchvision's downloader: what would be a bar on stderr becomes progress."""
    with progress.task(description, total) as task:
        yield SimpleNamespace(update=lambda num_bytes: task.update(advance=num_bytes))


@contextlib.contextmanager
def _quiet(title: str) -> Iterator[None]:
    """Log what torchvision prints, turn its bars into progress, and drop NumPy's warning about CIFAR's old pickles."""
    import torchvision.datasets.utils as downloader

    printed = io.StringIO()
    own_bar = getattr(downloader, "tqdm", None)
    try:
        if own_bar is not None:  # else this version of torchvision does not use it
            downloader.tqdm = partial(_download_bar, f"downloading {title}")  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore", category=np.exceptions.VisibleDeprecationWarning)
            yield
    finally:
        if own_bar is not None:
            downloader.tqdm = own_bar  # type: ignore[attr-defined]
        for line in printed.getvalue().splitlines():
            log.info(line)
