"""Trained weights on a test set: the content of `wrn eval`."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from wideresnet.base import progress
from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import DAMAGED, DataError, UsageError, WRNError
from wideresnet.base.format import counted
from wideresnet.base.metrics import (
    MIN_CLASSES_FOR_TOP5,
    class_errors,
    confusion,
    expected_calibration_error,
    top_k_error,
)
from wideresnet.data import Dataset, ImageSet
from wideresnet.data.feeds.lazy import lazy
from wideresnet.data.load import load_for
from wideresnet.engines import optimize, quantize
from wideresnet.engines.evaluate import Evaluation, evaluate
from wideresnet.export.engines import check_engine, run_with
from wideresnet.inference.calibrate import calibration_images, check_int8
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights, read_weights
from wideresnet.weights.matching import data_of_run, fit_images, load_matching, run_of
from wideresnet.weights.pretrained import weights_name


@dataclass(frozen=True)
class Subject:
    """Trained weights and the test images that they are measured on, ready to run.

    Attributes:
        where: the path of the weights, or the network's name.
        weights: classes, preprocessing, and the network as it was trained.
        network: optimized or quantized, on the device.
        dataset: name of the data.
        images: uint8 (N, H, W, C), as the network takes them before preprocessing.
        labels: int64 (N,).
        index: of each image among all test images.
        device, precision: as the result names them.
        notes: what the reader of the numbers should know, one line each.
        engine: the inference engine that computes, in words; "" for this package's own.
    """

    where: str
    weights: Weights
    network: nn.Module
    dataset: str
    images: np.ndarray
    labels: np.ndarray
    index: Sequence[int]
    device: str
    precision: str
    notes: list[str]
    engine: str = ""

    @property
    def network_name(self) -> str:
        """As the result names the network."""
        return str(self.weights.network.name)

    @property
    def arithmetic(self) -> dict[str, str]:
        """What computes, as the result has it."""
        engine = {"engine": self.engine} if self.engine else {}
        return {"device": self.device, "precision": self.precision, **engine}

    def run(
        self, images: np.ndarray, part: slice = slice(None), advance: Callable[[int], object] | None = None
    ) -> Tensor:
        """Compute logits, float32 (B, classes) on the CPU.

        Args:
            images: uint8 (B, H, W, C), those of `part` or what was made of them.
            part: which images they are. If they begin at a multiple of the batch, the logits have the same bits as in
                one run over all images.
            advance: called after each batch with its number of images.

        Raises:
            DataError: a logit is not finite.
        """
        result = evaluate(
            self.network,
            images,
            self.labels[part],
            self.weights.preprocessing,
            device=self.device,
            precision=self.precision,
            advance=advance,
        )
        if not result.logits.isfinite().all():
            raise DataError(f"{self.where}: {DAMAGED}")
        return result.logits


def prepare(
    weights: str | Path | Weights,
    data: str | Path | Dataset | None = None,
    *,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_unreadable: bool = False,
    int8: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    engine: str | None = None,
) -> Subject:
    """Read weights and data, and optimize the network; arguments and errors are those of `evaluate_weights`."""
    if int8:
        check_int8(device, precision)
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit}: must be at least 1")
    if engine is not None:
        check_engine(engine, device=device, precision=precision, int8=int8)
    device = pick_device("cpu" if int8 or engine else device)
    run, read, where = None, weights, ""
    if isinstance(read, Weights):
        where = str(read.network.name)
    else:
        where, run, read = weights_name(read), run_of(read), read_weights(read)
    if data is None:
        if isinstance(weights, Weights):
            raise UsageError(f"{where}: weights in memory know no data; name it with data=")
        data = data_of_run(weights)
    dataset, notes = load_matching(
        read, data, run=run, skip_unreadable=skip_unreadable, image_column=image_column, label_column=label_column
    )
    if run is not None:
        notes += _check_unseen(run, dataset)
    num_all, test = len(dataset.test), dataset.test
    index: Sequence[int] = range(num_all)
    if limit is not None and limit < num_all:
        index = spread(num_all, limit)
        test = ImageSet(test.images[index], test.labels[index])
        notes.append(f"{limit:,} of {num_all:,} test images, spread evenly over the set")
    images, more = fit_images(read, dataset, test.images)
    network: nn.Module
    how = ""
    if engine is not None:
        precision = "int8" if int8 else "bf16" if precision == "bf16" else "fp32"
        calibration = calibration_images(read, dataset) if int8 else None
        network = run_with(read.network, engine, read.input_size, precision=precision, images=calibration)
        how = network.how
    elif int8:
        with progress.status(f"calibrating {read.network.name} in 8 bits"):
            precision, network = "int8", quantize(read.network, calibration_images(read, dataset))
        more.append(network.how)
    else:
        network = optimize(copy.deepcopy(read.network).to(device))  # the caller's own network stays where it is
        precision = read.precision or pick_precision(_precision_of_run(precision, device, run), device)
    return Subject(
        where, read, network, dataset.name, images, test.labels, index, device, precision, [*notes, *more],
        how,
    )  # fmt: skip


def evaluate_weights(
    weights: str | Path | Weights,
    data: str | Path | Dataset | None = None,
    *,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_unreadable: bool = False,
    int8: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Evaluate trained weights on every test image once, with the preprocessing stored in them.

    On the data, device and precision of the run that produced the weights, the result is the run's own; on a GPU, up to
    rounding.

    Args:
        weights: a run folder, a weights folder, a `model.safetensors` or the name of a shipped network; or what
            `read_weights` returned.
        data: as for `load_dataset`, or what that returned; its images are resized to the size that the weights were
            trained on. None for the data of the run that produced the weights.
        limit: number of test images, spread evenly over the set; None for all.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16", or "auto" for that of the run, never a lower one; weights without a run are evaluated
            in fp32 on a CPU, and as `pick_precision` says on a GPU.
        skip_unreadable: leave out images that cannot be read, with a note.
        int8: quantize the network to int8 by training images of the data, and run it on the CPU.
        image_column, label_column: as for `load_dataset`; None for those of the run, if it is the run's data.
        engine: an inference engine that runs the network on the CPU, as for `export.run_with`, in fp32 unless precision
            or int8 say otherwise; None for this package's own.

    Returns:
        Values for JSON: weights, network, dataset, num_images, num_errors, error_pct, top5_error_pct (None below 10
        classes), loss (mean cross entropy, which is the negative log likelihood, nats), ece_pct (see
        `expected_calibration_error`), class_names, classes (for each: class, num_images, num_errors, error_pct; the
        error is None without images), confusion (number of images by true class, then by predicted class), device,
        precision ("int8" if asked for), engine (in words, if one was asked for), seconds, images_per_s, notes.

    Raises:
        UsageError: weights and data do not fit each other (classes, channels), or int8 is not available for them.
        DataError: the weights or the data cannot be read.
    """
    subject = prepare(
        weights, data, limit=limit, device=device, precision=precision, skip_unreadable=skip_unreadable, int8=int8,
        image_column=image_column, label_column=label_column, engine=engine,
    )  # fmt: skip
    with progress.task("evaluating", total=len(subject.images)) as task:
        return measure(subject, lambda num: task.update(advance=num))


def measure(subject: Subject, advance: Callable[[int], object] | None = None) -> dict[str, Any]:
    """Evaluate what `prepare` returned; the result is that of `evaluate_weights`.

    Args:
        subject: weights and images.
        advance: called after each batch with its number of images.
    """
    return measure_logits(subject, advance)[0]


def measure_logits(
    subject: Subject, advance: Callable[[int], object] | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Do the work of `measure`; return also the logits, float32 (N, classes)."""
    started = time.monotonic()
    logits = subject.run(subject.images, advance=advance)
    return document(subject, logits, time.monotonic() - started), logits.float().cpu().numpy()


def document(subject: Subject, found: Tensor, seconds: float) -> dict[str, Any]:
    """Compare logits with labels; the result is that of `evaluate_weights`.

    Args:
        subject: weights and images.
        found: logits, float32 (N, classes), or logarithms of probabilities.
        seconds: that they took.
    """
    labels, result = subject.labels, Evaluation.of(found, subject.labels)
    names, logits = subject.weights.class_names, result.logits.numpy()
    matrix = confusion(labels, logits.argmax(axis=1), len(names))
    return {
        "weights": subject.where,
        "network": subject.network_name,
        "dataset": subject.dataset,
        "num_images": result.num_images,
        "num_errors": result.num_errors,
        "error_pct": result.error_pct,
        "top5_error_pct": top_k_error(logits, labels, 5) if len(names) >= MIN_CLASSES_FOR_TOP5 else None,
        "loss": result.loss,
        "ece_pct": expected_calibration_error(logits, labels),
        "class_names": list(names),
        "classes": _classes(matrix, names),
        "confusion": matrix.tolist(),
        **subject.arithmetic,
        "seconds": round(seconds, 3),
        "images_per_s": round(result.num_images / max(seconds, 1e-9), 1),
        "notes": list(subject.notes),
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
    if lazy(train) is not None or lazy(dataset.test.images) is not None:  # too many to compare
        return ["a stream is not searched for test images that it was trained on; wrn check looks for copies"]
    if train.shape[1:] != dataset.test.images.shape[1:]:
        return []
    seen = {_digest(image) for image in train}
    num_seen = sum(_digest(image) in seen for image in dataset.test.images)
    if not num_seen:
        return []
    return [f"{num_seen:,} of {counted(len(dataset.test), 'test image')} are among those that it was trained on"]


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _precision_of_run(wanted: str, device: str, folder: RunFolder | None) -> str:
    """For "auto", the precision of the run that produced the weights; bf16 if it ran on this kind of device alone."""
    if wanted == "auto" and folder is not None and folder.result.is_file():
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
