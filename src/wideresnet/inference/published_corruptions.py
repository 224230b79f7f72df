"""Trained weights on the published files of CIFAR-10-C or CIFAR-100-C: the content of `wrn eval --data CIFAR-10-C/`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.data.corruptions import EXTRA, SEVERITIES
from wideresnet.data.readers.corrupted import CorruptedFiles, read_corrupted
from wideresnet.inference.corruptions import NUM_PUBLISHED, measure_each
from wideresnet.inference.evaluate import Subject, prepare
from wideresnet.weights.hub import Weights
from wideresnet.weights.matching import fit_images


def published_corruption_errors(
    weights: str | Path | Weights, folder: str | Path, *, limit: int | None = None, device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Evaluate trained weights on the published corrupted test images.

    Args:
        weights, limit, device, precision: as for `evaluate_weights`; `limit` counts images per corruption and severity.
        folder: the `.npy` files, see `data.readers.corrupted`.

    Returns:
        As `corruption_errors`, but without clean images, which the folder has not: clean is None, and about has
        weights, network, dataset, num_images (per corruption and severity), device, precision and notes. The means are
        over the fifteen corruptions that count, as published ("mean corruption error", not divided by another
        network's). extra has corruptions, loss, ece_pct and means of the others; None if there are none. missing lists
        those of the fifteen that are not there.

    Raises:
        UsageError: weights and images do not fit each other.
        DataError: a file is damaged or does not belong to the others.
    """
    files = read_corrupted(Path(folder))
    subject = prepare(weights, files.dataset, limit=limit, device=device, precision=precision)
    return measure_published(subject, files)


def measure_published(subject: Subject, files: CorruptedFiles) -> dict[str, Any]:
    """Evaluate what `prepare` returned for the files' data set; the result is that of `published_corruption_errors`."""
    counting = [name for name in files.images if name not in EXTRA]
    others = [name for name in files.images if name in EXTRA]
    if not counting:
        raise UsageError(f"{files.dataset.source}: none of the {NUM_PUBLISHED} corruptions that count is there")
    started, index = time.monotonic(), np.array(subject.index)
    num_sets = (len(counting) + len(others)) * len(SEVERITIES)

    def published(name: str, severity: int, part: slice) -> np.ndarray:
        images = np.array(files.at(name, severity)[index[part]])  # read from the disk now
        return fit_images(subject.weights, files.dataset, images)[0]

    with progress.task("corrupted images", total=len(index) * num_sets, fields=("error",)) as task:
        tables = measure_each(subject, counting, published, task)
        extra = measure_each(subject, others, published, task) if others else None
    seconds, notes = time.monotonic() - started, []
    if files.missing:
        notes.append(
            f"{len(files.missing)} of the {NUM_PUBLISHED} corruptions that count are missing "
            f"({', '.join(files.missing)}): the mean is over the others, and not the published one"
        )
    return {
        "clean": None,
        "about": {
            "weights": subject.where,
            "network": subject.network_name,
            "dataset": subject.dataset,
            "num_images": len(index),
            **subject.arithmetic,
            "notes": list(subject.notes),
        },
        "severities": list(SEVERITIES),
        **tables,
        "extra": extra,
        "missing": list(files.missing),
        "seconds": round(seconds, 3),
        "images_per_s": round(len(index) * num_sets / max(seconds, 1e-9), 1),
        "notes": notes,
    }
