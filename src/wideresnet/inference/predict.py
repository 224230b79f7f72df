"""Classes of image files: the content of `wrn predict`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideresnet.base import progress
from wideresnet.base.errors import DAMAGED, DataError, UsageError
from wideresnet.data import Dataset
from wideresnet.data.decode import Encoded, measure
from wideresnet.data.depth import WHITE, white_of
from wideresnet.data.feeds.decoder import fitted
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.data.formats import EXTENSIONS
from wideresnet.data.images import UnreadableError, decode_quietly, kept_size, silent_pillow
from wideresnet.data.readers.walk import image_files
from wideresnet.engines import optimize, quantize
from wideresnet.export.engines import check_engine, run_with
from wideresnet.inference.calibrate import check_int8, read_calibration
from wideresnet.machine.cpu import usable_cpus
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.spec.record import MODEL
from wideresnet.weights.hub import Weights, holds_weights, read_weights
from wideresnet.weights.pretrained import Card, default_name, read_card, shipped_name

NUM_LISTED = 10

MANY_IMAGES = 32
"""From this number on, optimizing the network takes less time than it saves. This package's choice."""

LARGE_PX, MANY_LARGE_IMAGES = 128, 8
"""The same for images of at least this side: WRN-50-2-bottleneck takes 0.8 s to optimize, and 0.1 s less per image."""

WEIGHTS_EXTENSIONS = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".xml", ".pt2"}
"""Of files that are weights, if only of another program: they are not tried as images."""

_NOTES = {
    "16-bit": "scaled from 16 to 8 bits",
    "EXIF rotation": "turned upright by EXIF",
    "alpha": "transparency laid over white",
    "color": "converted from color to grayscale",
    "first frame": "first of several frames",
    "grayscale": "converted from grayscale to RGB",
}


def split_weights(paths: Sequence[str | Path]) -> tuple[str | Path | None, Sequence[str | Path]]:
    """Tell the weights of `wrn predict [WEIGHTS] IMAGE...` from the images.

    Args:
        paths: at least one. The first one is an image if it is a file other than weights, a pattern, a folder with
            image files, or called like an image file.

    Returns:
        The weights, None if the first path is an image; and the images.

    Raises:
        UsageError: the first path is a folder that has neither weights nor image files.
    """
    first, path = paths[0], Path(paths[0])
    if path.is_dir():
        if holds_weights(path):
            return first, paths[1:]
        if not any(inner.suffix.lower() in EXTENSIONS for inner in path.rglob("*")):
            raise UsageError(f"{path}: has neither weights ({MODEL}) nor image files; name a folder with one of them")
        return None, paths
    suffix = path.suffix.lower()
    if path.is_file():
        is_image = suffix not in WEIGHTS_EXTENSIONS
    else:
        is_image = suffix in EXTENSIONS or (has_magic(str(first)) and shipped_name(first) is None)
    return (None, paths) if is_image else (first, paths[1:])


def predict_files(
    weights: str | Path | Weights | None,
    images: Sequence[str | Path],
    *,
    top: int = 5,
    device: str = "auto",
    skip_unreadable: bool = False,
    engine: str | None = None,
    precision: str = "auto",
    int8: bool = False,
    data: str | Path | Dataset | None = None,
) -> list[dict[str, Any]]:
    """Classify image files, resized and center-cropped to the size that the weights were trained on.

    Args:
        weights: a run folder, a weights folder, a `model.safetensors`, the name of a shipped network, or what
            `read_weights` returned. None for the shipped network `weights.pretrained.DEFAULT`.
        images: image files; a folder stands for all image files in and below it, in the order of their paths, and a
            pattern such as "photos/*.jpg" for the files that match.
        top: number of classes per image, the most probable first; fewer if the network knows fewer.
        device: "auto", "cpu" or "cuda".
        skip_unreadable: continue without images that cannot be read; they get a note and no predictions.
        engine: an inference engine that runs the network on the CPU, as for `export.run_with`; None for this package's
            own.
        precision: "fp32", "bf16", or "auto" for fp32, whatever the weights were trained in.
        int8: quantize the network to int8 by training images, and run it on the CPU.
        data: what the training images for int8 are from, as for `load_dataset`, or what that returned; None for the
            data of the run that produced the weights.

    Returns:
        Values for JSON, for each image in order: `file`, `predictions` (a list of `class` and `probability`, 0..1) and
        `notes` (what was done to the image); `engine` in words, if one was asked for; `precision`, "bf16" or "int8",
        if that was asked for. If the network is a shipped one, also `pretrained`: its `name`, the `dataset` that it was
        trained on, its `test_error_pct` there, its `class_names`, and `own_classes`, a command that trains it on other
        classes.

    Raises:
        UsageError: a path does not exist, a folder has no images, or there are no weights; int8 is not available for
            them, or its data is not known or does not fit.
        DataError: images cannot be read; the message counts them and names the first ten. Nothing is predicted.
    """
    if top < 1:
        raise UsageError(f"top={top}: must be at least 1")
    if int8:
        check_int8(device, precision)
    elif data is not None:
        raise UsageError("data=: is for int8=True, which is calibrated on it; add it, or leave data= out")
    if engine is not None:
        check_engine(engine, device=device, precision=precision, int8=int8)
    device = pick_device("cpu" if engine or int8 else device)
    precision = "int8" if int8 else "fp32" if precision == "auto" else pick_precision(precision, device)
    if isinstance(weights, str | Path) and not images:
        read_weights(weights)  # a misspelled image is taken for weights: name that, rather than the lack of images
    files = image_files(images)
    weights = default_name() if weights is None else weights
    read = weights if isinstance(weights, Weights) else read_weights(weights)
    card = None if isinstance(weights, Weights) else read_card(weights)
    about: dict[str, Any] = {"pretrained": _about(card, read)} if card else {}
    if precision != "fp32":
        about["precision"] = precision
    for note in read.notes:
        progress.report(f"note: {note}")
    pixels, notes, failures = _read(files, read, skip_unreadable=skip_unreadable)
    calibration, more = None, []
    if int8:
        calibration, more = read_calibration(weights, read, data, skip_unreadable=skip_unreadable)
    hosted: nn.Module | None = None
    if engine is not None:
        hosted = run_with(read.network, engine, read.input_size, precision=precision, images=calibration)
        about["engine"] = hosted.how
    elif calibration is not None:
        with progress.status(f"calibrating {read.network.name} in 8 bits"):
            hosted = quantize(read.network, calibration)
        more.append(hosted.how)
    for note in more:
        progress.report(f"note: {note}")
    probabilities = iter(_logits(read, pixels, device, weights, hosted, precision).softmax(1))
    answers: list[dict[str, Any]] = []
    for file, note, failure in zip(files, notes, failures, strict=True):
        best = [] if failure else _best(next(probabilities), read.class_names, top)
        said = [f"skipped: {failure}"] if failure else note
        answers.append({"file": str(file), "predictions": best, "notes": said, **about})
    return answers


def _about(card: Card, weights: Weights) -> dict[str, Any]:
    """Return what a reader of a shipped network's answers should know, ready for JSON."""
    return {
        "name": card.name,
        "dataset": card.dataset,
        "test_error_pct": card.test_error_pct,
        "class_names": list(weights.class_names),
        "own_classes": f"wrn train {card.network} --data FOLDER --from {card.name}",
    }


def predict_logits(
    weights: Weights, images: Sequence[str | Path], *, others: Sequence[Weights] = ()
) -> tuple[Tensor, ...]:
    """Compute on the CPU the logits whose softmax `predict_files` returns.

    Args:
        weights: decide how images are read.
        images: as for `predict_files`.
        others: more weights for images of the same size and channels, such as exported models.

    Returns:
        float64 (N, classes) for each of the weights.

    Raises:
        UsageError, DataError: as for `predict_files`.
    """
    pixels, _, _ = _read(image_files(images), weights)
    return tuple(_logits(each, pixels, "cpu", each) for each in (weights, *others))


def read_images(weights: Weights, images: Sequence[str | Path]) -> Tensor:
    """Read image files into what a network takes, as `wrn predict` does.

    With `weights = read_weights("runs/mine")`, the logits are `weights.network(read_images(weights, ["photo.jpg"]))`.

    Args:
        weights: the network, its preprocessing and its input size.
        images: image files; a folder stands for all image files in and below it, in the order of their paths.

    Returns:
        float32 (N, C, H, W), resized, center-cropped to `weights.input_size` and preprocessed, on the CPU.

    Raises:
        UsageError: a path does not exist, or a folder has no images.
        DataError: images cannot be read; the message counts them and names the first ten.
    """
    pixels, _, _ = _read(image_files(images), weights)
    return torch.cat(list(evaluation_batches(pixels, weights.preprocessing, device="cpu")))


def _read(
    files: list[Path], weights: Weights, *, skip_unreadable: bool = False
) -> tuple[np.ndarray, list[list[str]], list[str]]:
    """Read files as uint8 (N, H, W, C); returns also what `_decode` says of each file."""
    channels = weights.network.in_channels
    if channels not in (1, 3):
        raise UsageError(f"{weights.network.name}: takes images of {channels} channels, but image files have 1 or 3")
    pixels, notes, failures = _decode(files, weights, channels)
    unreadable = [f"{file} ({failure})" for file, failure in zip(files, failures, strict=True) if failure]
    if unreadable and (not skip_unreadable or len(unreadable) == len(files)):
        advice = "" if skip_unreadable else "; remove them, or leave them out with skip_unreadable=True"
        listed = ", ".join(unreadable[:NUM_LISTED]) + (", ..." if len(unreadable) > NUM_LISTED else "")
        raise DataError(f"{len(unreadable)} of {len(files)} images cannot be read: {listed}{advice}")
    return np.stack(pixels), notes, failures


def _decode(files: list[Path], weights: Weights, channels: int) -> tuple[list[np.ndarray], list[list[str]], list[str]]:
    """Decode files to images of a size, uint8 (height, width, channels).

    Returns:
        The readable images; for every file its notes; for every file why it cannot be read, or "".
    """

    size = weights.input_size

    def decode_one(file: Path) -> tuple[np.ndarray | None, list[str], str]:
        try:
            image, conversions = decode_quietly(file, channels, used)
        except UnreadableError as error:
            return None, [], str(error)
        notes = [_NOTES.get(name, f"converted from {name}") for name in sorted(conversions)]
        if image.shape[:2] != size:
            notes.append(_resizing(image.shape, size, weights.resize))
        return fitted(image, size, weights.resize), notes, ""

    with silent_pillow(), ThreadPoolExecutor(usable_cpus()) as pool:
        used = white_for(files, weights)
        decoded = list(progress.track(pool.map(decode_one, files), "reading images", len(files)))
    images, notes, failures = zip(*decoded, strict=True)
    return [image for image in images if image is not None], list(notes), list(failures)


def white_for(files: Sequence[Path], weights: Weights) -> int:
    """Return the value of 16-bit images that becomes 255, inside `silent_pillow`.

    It is that of training; if there were none, such images have as many bits as these files use.
    """
    if (white := weights.preprocessing.white) is not None:
        return white
    with ThreadPoolExecutor(usable_cpus()) as pool:
        measured = pool.map(measure, (Encoded("", file) for file in files))
        return white_of(peak for each in measured if each is not None and (peak := each[1]) is not None) or WHITE


def _resizing(shape: tuple[int, ...], size: tuple[int, int], resize: int | None) -> str:
    """Say how `fitted` fits an image of a shape (H, W, C) to a size (height, width)."""
    if resize is None:
        height, width = map(round, kept_size(shape, size))
    else:
        scale = min(shape[:2]) / resize
        height, width = (round(side * scale) for side in size)
    cropped = f", center crop of {width} x {height}" if (height, width) != shape[:2] else ""
    return f"resized from {shape[1]} x {shape[0]} to {size[1]} x {size[0]} px{cropped}"


@torch.inference_mode()
def _logits(
    weights: Weights,
    images: np.ndarray,
    device: str,
    where: str | Path | Weights,
    hosted: nn.Module | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Compute logits, float64 (N, classes) on the CPU, of images, uint8 (N, H, W, C).

    Args:
        hosted: computes in place of the network, in whatever precision: an engine, or the network in 8 bits.
        precision: "bf16" for autocast of the network itself.
    """
    network: nn.Module = hosted or weights.network.to(device)
    many = MANY_LARGE_IMAGES if min(images.shape[1:3]) >= LARGE_PX else MANY_IMAGES
    if len(images) >= many and not hosted:
        network = optimize(weights.network)
    batches = evaluation_batches(images, weights.preprocessing, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16" and not hosted):
        logits = torch.cat([network(batch).double().cpu() for batch in batches])
    if not logits.isfinite().all():
        name = weights.network.name if isinstance(where, Weights) else where
        raise DataError(f"{name}: {DAMAGED}")
    return logits


def _best(probabilities: Tensor, class_names: Sequence[str], top: int) -> list[dict[str, Any]]:
    values, labels = probabilities.topk(min(top, len(class_names)))
    pairs = zip(values.tolist(), labels.tolist(), strict=True)
    return [{"class": class_names[label], "probability": value} for value, label in pairs]
