"""CIFAR-10-C and CIFAR-100-C as published: a folder of `.npy` files, one per corruption, and `labels.npy`.

A file holds the corrupted test images of all severities after each other, uint8 (5 * N, H, W, C), and `labels.npy`
their labels. They are mapped into memory, so that only what is evaluated is read. Nothing is ever unpickled.
Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261); https://zenodo.org/records/2535967 and 3555552.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.corruptions import EXTRA, PUBLISHED, SEVERITIES
from wideresnet.data.dataset import Dataset, ImageSet
from wideresnet.data.facts import FACTS
from wideresnet.data.limits import damage_in_one_line

LABELS = "labels.npy"


@dataclass(frozen=True)
class CorruptedFiles:
    """The published files.

    Attributes:
        dataset: without training images; its test images are those of the first file at severity 1.
        images: corruption -> uint8 (5 * N, H, W, C), mapped into memory.
        missing: those of the fifteen that count which are not there.
    """

    dataset: Dataset
    images: dict[str, np.ndarray]
    missing: tuple[str, ...]

    def at(self, corruption: str, severity: int) -> np.ndarray:
        """Return the images of a corruption at a severity, uint8 (N, H, W, C), still on the disk."""
        num = len(self.dataset.test)
        return self.images[corruption][(severity - 1) * num : severity * num]


def holds_corrupted(path: Path) -> bool:
    """Tell whether a folder is one of these: labels, and a file that is named after a corruption."""
    return (path / LABELS).is_file() and any((path / f"{name}.npy").is_file() for name in (*PUBLISHED, *EXTRA))


def read_corrupted(path: Path) -> CorruptedFiles:
    """Open the files of a folder for which `holds_corrupted` is true.

    Raises:
        DataError: a file is damaged, holds something else, or does not belong to the others.
    """
    labels = _mapped(path / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES) or not len(labels):
        raise DataError(
            f"{path / LABELS}: {labels.dtype} {labels.shape}; must be a whole number per image, for "
            f"{len(SEVERITIES)} severities after each other"
        )
    num = len(labels) // len(SEVERITIES)
    labels = np.asarray(labels, np.int64)
    if labels.min() < 0 or labels.max() >= len(labels):
        raise DataError(f"{path / LABELS}: labels from {labels.min()} to {labels.max()}; must count classes from 0")
    if (labels.reshape(len(SEVERITIES), num) != labels[:num]).any():
        raise DataError(f"{path / LABELS}: differs between severities; must be the test labels, five times")
    images: dict[str, np.ndarray] = {}
    for name in (*PUBLISHED, *EXTRA):
        file = path / f"{name}.npy"
        if not file.is_file():
            continue
        found, first = _mapped(file), next(iter(images.values()), None)
        shape = (len(labels), *(found.shape[1:3] if first is None else first.shape[1:3]), 3)
        if found.dtype != np.uint8 or found.shape != shape or min(shape) < 1:
            raise DataError(
                f"{file}: {found.dtype} {found.shape}; must be uint8 {shape}: {num:,} images at each of "
                f"{len(SEVERITIES)} severities, as {LABELS} says"
            )
        images[name] = found
    first = next(iter(images.values()))
    facts = next(
        (facts for facts in FACTS.values() if facts.name in ("cifar10", "cifar100") and _has(facts, labels)), None
    )
    names = facts.class_names if facts else tuple(str(label) for label in range(int(labels.max()) + 1))
    nothing = ImageSet(first[:0], labels[:0])
    dataset = Dataset(
        path.resolve().name, str(path), nothing, ImageSet(first[:num], labels[:num]), names, facts, (), "npy"
    )
    return CorruptedFiles(dataset, images, tuple(name for name in PUBLISHED if name not in images))


def _has(facts: Any, labels: np.ndarray) -> bool:
    return len(facts.class_names) == int(labels.max()) + 1


def _mapped(path: Path) -> np.ndarray:
    with damage_in_one_line(f"{path}: not a complete .npy file of numbers"):
        return np.load(path, mmap_mode="r", allow_pickle=False)
