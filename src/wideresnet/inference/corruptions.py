"""How trained weights bear corrupted images: the content of `wrn eval --corruptions`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.base.format import nearest
from wideresnet.base.metrics import expected_calibration_error
from wideresnet.data import Dataset
from wideresnet.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from wideresnet.engines.evaluate import EVALUATION_BATCH, Evaluation
from wideresnet.inference.evaluate import Subject, measure, prepare
from wideresnet.weights.hub import Weights

BATCHES_AT_ONCE = 32
"""Batches that are corrupted together: enough for all CPUs, and a small part of a set. This package's choice."""

NUM_PUBLISHED = 15
"""Corruptions of CIFAR-10-C that count. Source: Hendrycks & Dietterich 2019, Section 4.1."""

NOTE = (
    "corrupted by this package with the definitions and constants of CIFAR-10-C, {} of its {} corruptions: these are "
    "not its files, and published means are over all {}"
)


def corruption_errors(
    weights: str | Path | Weights,
    data: str | Path | Dataset | None = None,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_unreadable: bool = False,
    int8: bool = False,
) -> dict[str, Any]:
    """Evaluate trained weights on corrupted test images, at five severities each.

    The images are corrupted at the size and with the channels that the network takes. They are always the same ones,
    whatever the batch, the device and `limit`.

    Args:
        weights, data, limit, device, precision, skip_unreadable, int8: as for `evaluate_weights`.
        corruptions: which ones, see `data.corruptions`.

    Returns:
        Values for JSON: clean (what `evaluate_weights` returns), severities, corruptions (name -> error at each
        severity, percent), loss and ece_pct (likewise: negative log likelihood, nats; expected calibration error,
        percent), mean_error_pct (the mean corruption error, over all corruptions and severities; not divided by that of
        another network, as usual for CIFAR), mean_loss, mean_ece_pct, seconds, images_per_s (corrupting included),
        notes.

    Raises:
        UsageError: as for `evaluate_weights`; or there is no such corruption, or images are neither gray nor RGB.
        DataError: the weights or the data cannot be read.
    """
    names = _known(corruptions)
    subject = prepare(
        weights, data, limit=limit, device=device, precision=precision, skip_unreadable=skip_unreadable, int8=int8
    )
    return measure_corruptions(subject, names)


def measure_corruptions(subject: Subject, corruptions: Sequence[str] = CORRUPTIONS) -> dict[str, Any]:
    """Evaluate what `prepare` returned; the result is that of `corruption_errors`.

    Args:
        subject: weights and images.
        corruptions: which ones.
    """
    names, started, num_images = _known(corruptions), time.monotonic(), len(subject.images)
    num_sets = len(names) * len(SEVERITIES)
    with progress.task("clean images", total=num_images * (1 + num_sets), fields=("error",)) as task:

        def corrupted(name: str, severity: int, part: slice) -> np.ndarray:
            return corrupt(np.asarray(subject.images[part]), name, severity, subject.index[part])

        clean = measure(subject, lambda num: task.update(advance=num))
        tables = measure_each(subject, names, corrupted, task)
    seconds = time.monotonic() - started
    return {
        "clean": clean,
        "severities": list(SEVERITIES),
        **tables,
        "seconds": round(seconds, 3),
        "images_per_s": round(num_images * (1 + num_sets) / max(seconds, 1e-9), 1),
        "notes": [NOTE.format(len(names), NUM_PUBLISHED, NUM_PUBLISHED)],
    }


def measure_each(
    subject: Subject, names: Sequence[str], corrupted: Callable[[str, int, slice], np.ndarray], task: progress.Task
) -> dict[str, Any]:
    """Evaluate on each corruption and severity, a piece of the set at a time.

    Args:
        subject: weights and labels.
        names: of the corruptions.
        corrupted: returns the images of a part of the set, given corruption, severity and part.
        task: is brought up to date.

    Returns:
        corruptions, loss, ece_pct and their means, as `corruption_errors` returns them.
    """
    errors, losses, eces = ({name: list[float]() for name in names} for _ in range(3))
    size, text = BATCHES_AT_ONCE * EVALUATION_BATCH[subject.device], "-"
    try:
        for name in names:
            for severity in SEVERITIES:
                task.update(description=f"{name} {severity}/{SEVERITIES[-1]}", error=text)
                parts = []
                for start in range(0, len(subject.labels), size):
                    part = slice(start, start + size)
                    images = corrupted(name, severity, part)
                    parts.append(subject.run(images, part, lambda num: task.update(advance=num)))
                result = Evaluation.of(torch.cat(parts), subject.labels)
                text = f"{result.error_pct:.2f} %"
                errors[name].append(result.error_pct)
                losses[name].append(result.loss)
                eces[name].append(expected_calibration_error(result.logits.numpy(), subject.labels))
    except KeyboardInterrupt:
        progress.report(_interrupted(errors, len(names) * len(SEVERITIES)))
        raise
    means = {"mean_error_pct": _mean(errors), "mean_loss": _mean(losses), "mean_ece_pct": _mean(eces)}
    return {"corruptions": errors, "loss": losses, "ece_pct": eces, **means}


def _mean(table: dict[str, list[float]]) -> float:
    return float(np.mean(list(table.values())))


def _known(corruptions: Sequence[str]) -> list[str]:
    """Return different names, all of them known."""
    names = [corruptions] if isinstance(corruptions, str) else list(dict.fromkeys(corruptions))
    if not names:
        raise UsageError(f"corruptions={corruptions}: name at least one of {', '.join(CORRUPTIONS)}")
    for name in names:
        if name not in CORRUPTIONS:
            raise UsageError(f"corruptions={name!r}: {nearest(name, CORRUPTIONS)}")
    return names


def _interrupted(errors: dict[str, list[float]], num_sets: int) -> str:
    """Say how far a run came, and what it found."""
    means = [f"{name} {np.mean(row):.2f} %" for name, row in errors.items() if len(row) == len(SEVERITIES)]
    text = f"interrupted after {sum(map(len, errors.values()))} of {num_sets} corrupted sets, so there is no result"
    return f"{text}; mean errors of the corruptions that are complete: {', '.join(means)}" if means else text
