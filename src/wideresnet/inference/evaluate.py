"""How trained weights do on a test set: the content of `wrn eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wideresnet.base.console import bar
from wideresnet.base.errors import DataError, UsageError
from wideresnet.data import Dataset, load_dataset
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.data.images import fit_to_size
from wideresnet.engines import optimize, quantize
from wideresnet.engines.evaluate import Evaluation, evaluate, pick_inference_precision
from wideresnet.engines.int8 import Quantized
from wideresnet.machine.device import pick_device
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights, read_weights

MIN_CLASSES_FOR_TOP5 = 10
"""With fewer classes, five guesses are half of all."""


NUM_CALIBRATION_IMAGES = 1000
"""Training images, evenly spread, by which a network is quantised.

The logits of a WRN-16-2 on CIFAR-10's test set then move by 0.8 %, as with 2,000 images; with 100 by 1.9 %.
"""


def evaluate_weights(
    weights: str | Path,
    data: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    skip_unreadable: bool = False,
    int8: bool = False,
) -> dict[str, Any]:
    """Run trained weights over every test image once, with the preprocessing that they carry.

    On the data, device and precision of the run that left the weights, the result is that run's; on a GPU up to
    rounding.

    Args:
        weights: a run folder, a weights folder or a `model.safetensors`.
        data: as for `wrn train`; its images are brought to the size that the weights were trained on.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16", or "auto": what the run was evaluated in, else as `pick_inference_precision` says.
        skip_unreadable: leave out images that cannot be read, with a note.
        int8: quantise the network to 8 bits by the data's training images, and run that on the CPU.

    Returns:
        JSON-ready: weights, network, dataset, num_images, num_errors, error_pct, top5_error_pct (None below 10
        classes), loss (mean cross entropy, nats), class_names, classes (for each: class, num_images, num_errors,
        error_pct, which is None without images), confusion (images by true class, then by predicted class), device,
        precision ("int8" where that was asked for), seconds, images_per_s, notes.

    Raises:
        UsageError: weights and data do not fit each other: classes, channels; or there is no int8 for them here.
        DataError: the weights or the data cannot be read.
    """
    if int8 and (device == "cuda" or precision == "bf16"):
        raise UsageError("--int8: is for a CPU and no other precision; leave out --device and --precision")
    device = pick_device("cpu" if int8 else device)
    read = read_weights(weights)
    dataset = load_dataset(data, skip_unreadable=skip_unreadable)
    height, width = read.input_size
    if dataset.test.images.shape[1:3] != (height, width) and height == width:
        dataset = load_dataset(data, image_size=height, skip_unreadable=skip_unreadable)
    notes = [*dataset.notes, *_check_names(read, dataset)]
    images, more = _fit(read, dataset, dataset.test.images)
    network: nn.Module
    if int8:
        precision, quantized = "int8", _quantize(read, dataset)
        network = quantized
        more.append(quantized.how)
    else:
        network = optimize(read.network.to(device))
        precision = pick_inference_precision(_precision_of_run(precision, device, Path(weights)), network, device)
    started = time.monotonic()
    labels = dataset.test.labels
    with bar() as progress:
        task = progress.add_task("evaluating", total=len(images))
        result = evaluate(
            network,
            images,
            labels,
            read.preprocessing,
            device=device,
            precision=precision,
            advance=lambda num: progress.advance(task, num),
        )
    seconds = time.monotonic() - started
    if not result.logits.isfinite().all():
        raise DataError(f"{weights}: its outputs are not finite; these weights are damaged, train again")
    return {
        "weights": str(weights),
        "network": str(read.network.name),
        "dataset": dataset.name,
        "num_images": result.num_images,
        "num_errors": result.num_errors,
        "error_pct": result.error_pct,
        "top5_error_pct": _top5_error_pct(result, labels),
        "loss": result.loss,
        **_by_class(result, labels, read.class_names),
        "device": device,
        "precision": precision,
        "seconds": round(seconds, 3),
        "images_per_s": round(result.num_images / max(seconds, 1e-9), 1),
        "notes": notes + more,
    }


def _check_names(weights: Weights, dataset: Dataset) -> list[str]:
    """Refuse data with other classes than the weights'; one's own data whose classes are only numbers is accepted."""
    known, found = weights.class_names, dataset.class_names
    if known == found:
        return []
    if len(known) != len(found):
        raise UsageError(
            f"{dataset.source}: {len(found)} classes ({_listed(found)}), the weights know {len(known)} "
            f"({_listed(known)}); evaluate on data with the classes that they were trained on"
        )
    if dataset.facts is None and found == tuple(str(label) for label in range(len(found))):
        return [f"the data's classes are only numbered; taken to be the weights' in order: {_listed(known)}"]
    place = next(place for place, pair in enumerate(zip(known, found, strict=True)) if pair[0] != pair[1])
    raise UsageError(
        f"{dataset.source}: class {place} is {found[place]!r}, in the weights it is {known[place]!r}; names and order "
        "must be the same"
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _quantize(weights: Weights, dataset: Dataset) -> Quantized:
    """The network in 8 bits, by training images evenly spread over the set."""
    every = max(1, len(dataset.train) // NUM_CALIBRATION_IMAGES)
    images, _ = _fit(weights, dataset, dataset.train.images[::every][:NUM_CALIBRATION_IMAGES])
    batches = evaluation_batches(images, weights.preprocessing, device="cpu")
    return quantize(weights.network, torch.cat(list(batches)))


def _fit(weights: Weights, dataset: Dataset, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Images of the set, uint8 (N, H, W, C), in the weights' size and channels, and what was done to them."""
    notes: list[str] = []
    channels, wanted = images.shape[3], weights.network.in_channels
    if channels == 1 and wanted == 3:
        images = np.repeat(images, 3, axis=3)
        notes.append("the images are grayscale, the network takes RGB: gray repeated in all three channels")
    elif channels != wanted:
        raise UsageError(f"{dataset.source}: images of {channels} channels, the weights take {wanted}; convert them")
    if images.shape[1:3] != weights.input_size:
        height, width = weights.input_size
        notes.append(f"test images brought from {images.shape[2]} x {images.shape[1]} to {width} x {height} px")
        images = np.stack([fit_to_size(image, weights.input_size) for image in images])
    return images, notes


def _precision_of_run(wanted: str, device: str, weights: Path) -> str:
    """What is wanted; for "auto" the precision of the run which left the weights, if it ran on such a device."""
    folder = RunFolder(weights if weights.is_dir() else weights.parent)
    if wanted == "auto" and folder.result.is_file():
        try:
            result = folder.read_result()
            if result["device"] == device:
                wanted = result["precision"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder.result}: cannot be read; give --precision fp32 or bf16") from None
    return wanted


def _top5_error_pct(result: Evaluation, labels: np.ndarray) -> float | None:
    if result.logits.shape[1] < MIN_CLASSES_FOR_TOP5:
        return None
    best = result.logits.topk(5).indices.numpy()
    return 100 * float((best != labels[:, None]).all(axis=1).mean())


def _by_class(result: Evaluation, labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    num = len(class_names)
    predicted = result.logits.argmax(1).numpy()
    confusion = np.bincount(labels * num + predicted, minlength=num * num).reshape(num, num)
    totals = confusion.sum(axis=1)
    errors = totals - confusion.diagonal()
    classes = [
        {
            "class": name,
            "num_images": total,
            "num_errors": wrong,
            "error_pct": 100 * wrong / total if total else None,
        }
        for name, total, wrong in zip(class_names, totals.tolist(), errors.tolist(), strict=True)
    ]
    return {"class_names": list(class_names), "classes": classes, "confusion": confusion.tolist()}
