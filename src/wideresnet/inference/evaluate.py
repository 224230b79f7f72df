"""Trained weights on a test set: the content of `wrn eval`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wideresnet.base import progress
from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.base.format import counted
from wideresnet.base.metrics import class_errors, confusion, expected_calibration_error, top_k_error
from wideresnet.data import Dataset
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.data.load import load_for
from wideresnet.engines import optimize, quantize
from wideresnet.engines.evaluate import evaluate
from wideresnet.engines.int8 import NUM_CALIBRATION_IMAGES, Quantized
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights, read_weights
from wideresnet.weights.matching import data_of_run, fit_images, load_matching, run_of
from wideresnet.weights.pretrained import weights_name

MIN_CLASSES_FOR_TOP5 = 10
"""With fewer classes, five guesses would be more than half of all classes. This package's choice."""


def evaluate_weights(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    skip_unreadable: bool = False,
    int8: bool = False,
) -> dict[str, Any]:
    """Evaluate trained weights on every test image once, with the preprocessing stored in them.

    On the data, device and precision of the run that produced the weights, the result is the run's own; on a GPU, up to
    rounding.

    Args:
        weights: a run folder, a weights folder, a `model.safetensors` or the name of a shipped network.
        data: as for `load_dataset`; its images are resized to the size that the weights were trained on. None for the
            data of the run that produced the weights.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16", or "auto" for that of the run, never a lower one; weights without a run are evaluated
            in fp32 on a CPU, and as `pick_precision` says on a GPU.
        skip_unreadable: leave out images that cannot be read, with a note.
        int8: quantize the network to int8 by training images of the data, and run it on the CPU.

    Returns:
        Values for JSON: weights, network, dataset, num_images, num_errors, error_pct, top5_error_pct (None below 10
        classes), loss (mean cross entropy, which is the negative log likelihood, nats), ece_pct (see
        `expected_calibration_error`), class_names, classes (for each: class, num_images, num_errors, error_pct; the
        error is None without images), confusion (number of images by true class, then by predicted class), device,
        precision ("int8" if asked for), seconds, images_per_s, notes.

    Raises:
        UsageError: weights and data do not fit each other (classes, channels), or int8 is not available for them.
        DataError: the weights or the data cannot be read.
    """
    if int8 and (device == "cuda" or precision == "bf16"):
        raise UsageError("int8=True: runs on a CPU and in no other precision; leave out device= and precision=")
    device = pick_device("cpu" if int8 else device)
    read = read_weights(weights)
    run = run_of(weights)
    data = data_of_run(weights) if data is None else data
    dataset, notes = load_matching(read, data, skip_unreadable=skip_unreadable)
    notes += _check_unseen(run, dataset)
    images, more = fit_images(read, dataset, dataset.test.images)
    network: nn.Module
    if int8:
        precision, quantized = "int8", _quantize(read, dataset)
        network = quantized
        more.append(quantized.how)
    else:
        network = optimize(read.network.to(device))
        precision = pick_precision(_precision_of_run(precision, device, run), device)
    started = time.monotonic()
    labels = dataset.test.labels
    with progress.task("evaluating", total=len(images)) as task:
        result = evaluate(
            network,
            images,
            labels,
            read.preprocessing,
            device=device,
            precision=precision,
            advance=lambda num: task.update(advance=num),
        )
    seconds = time.monotonic() - started
    if not result.logits.isfinite().all():
        raise DataError(f"{weights}: the outputs are not finite; these weights are damaged, so train again")
    names, logits = read.class_names, result.logits.numpy()
    matrix = confusion(labels, logits.argmax(axis=1), len(names))
    return {
        "weights": weights_name(weights),
        "network": str(read.network.name),
        "dataset": dataset.name,
        "num_images": result.num_images,
        "num_errors": result.num_errors,
        "error_pct": result.error_pct,
        "top5_error_pct": top_k_error(logits, labels, 5) if len(names) >= MIN_CLASSES_FOR_TOP5 else None,
        "loss": result.loss,
        "ece_pct": expected_calibration_error(logits, labels),
        "class_names": list(names),
        "classes": _classes(matrix, names),
        "confusion": matrix.tolist(),
        "device": device,
        "precision": precision,
        "seconds": round(seconds, 3),
        "images_per_s": round(result.num_images / max(seconds, 1e-9), 1),
        "notes": notes + more,
    }


def _check_unseen(run: RunFolder, dataset: Dataset) -> list[str]:
    """Say if test images are among those that the run was trained on, e.g. after files were added or moved.

    Published sets are left out: their splits are what they are.
    """
    if dataset.facts is not None or not run.is_run():
        return []
    try:
        recipe = run.read_recipe()
        if recipe.data == dataset.source:
            train = dataset.train.images
        elif Path(recipe.data).exists():
            train = load_for(recipe).train.images
        else:  # somewhere else, or a published set, which is not downloaded for this
            return []
    except WRNError:
        return []
    if train.shape[1:] != dataset.test.images.shape[1:]:
        return []
    seen = {_digest(image) for image in train}
    num_seen = sum(_digest(image) in seen for image in dataset.test.images)
    if not num_seen:
        return []
    return [f"{num_seen:,} of {counted(len(dataset.test), 'test image')} are among those that it was trained on"]


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _quantize(weights: Weights, dataset: Dataset) -> Quantized:
    """Quantize the network to int8 by training images that are spread evenly over the set."""
    chosen = spread(len(dataset.train), NUM_CALIBRATION_IMAGES)
    images, _ = fit_images(weights, dataset, dataset.train.images[chosen])
    batches = evaluation_batches(images, weights.preprocessing, device="cpu")
    return quantize(weights.network, torch.cat(list(batches)))


def _precision_of_run(wanted: str, device: str, folder: RunFolder) -> str:
    """For "auto", the precision of the run that produced the weights; bf16 if it ran on this kind of device alone."""
    if wanted == "auto" and folder.result.is_file():
        try:
            result = folder.read_result()
            if result["device"] == device or result["precision"] == "fp32":
                wanted = result["precision"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder.result}: cannot be read; give precision='fp32' or precision='bf16'") from None
    return wanted


def _classes(matrix: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The errors of each class, ready for JSON."""
    errors = class_errors(matrix)
    columns = (class_names, errors.num_images.tolist(), errors.num_errors.tolist(), errors.error_pct.tolist())
    return [
        {"class": name, "num_images": total, "num_errors": wrong, "error_pct": error_pct if total else None}
        for name, total, wrong, error_pct in zip(*columns, strict=True)
    ]
