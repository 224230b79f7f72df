"""Export: files of a format with a golden input and output, checked before they are written."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import DAMAGED, DataError, UsageError
from wideresnet.data import Dataset
from wideresnet.engines.int8 import BATCH_SIZE, FEW_IMAGES, num_to_calibrate
from wideresnet.export.check import compare, require
from wideresnet.export.formats import to_onnx, to_openvino, to_torch
from wideresnet.export.metadata import INPUT, LAYOUTS, LOGITS, PROBABILITIES, describe
from wideresnet.export.packages import need
from wideresnet.export.portable import free_axes
from wideresnet.export.runtimes import Run, run_onnx, run_openvino, run_torch
from wideresnet.spec.files import write_atomic
from wideresnet.weights.hub import Weights
from wideresnet.weights.matching import fit_images

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"), "torch": ()}
"""What a format needs, without int8."""

NUM_GOLDEN = 4
"""Images of the golden example, at most."""


def export_weights(
    weights: Weights,
    format: str,
    out: str | Path,
    *,
    calibration: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write a trained network for another runtime, with preprocessing, softmax, metadata, and a golden example.

    The model is run by its runtime on the golden input before anything is written.

    Args:
        weights: what `read_weights` returned; not modified.
        format: "onnx", "openvino" or "torch".
        out: a file whose name ends in .onnx, .xml (a .bin is written beside it) or .pt2; else a folder, which gets a
            file `model.onnx` and so on.
        calibration: uint8 (N, H, W, C), images to quantize to int8 by; see `calibration_images`.

    Returns:
        Values for JSON: format, file, files (all that were written), metadata, golden (see `compare`).

    Raises:
        UsageError: a package is missing, or the format has no int8.
        DataError: the outputs are not finite, or the exported model does not give what the network gives.
    """
    check_format(format, int8=calibration is not None)
    path = target(out, format, int8=calibration is not None)
    _check_finite(weights)
    precision = "fp32" if calibration is None else "int8"
    free = free_axes(weights, format, int8=calibration is not None)
    metadata = describe(weights, format, precision, free)
    contents: dict[Path, bytes] = {}
    if format == "torch":
        contents[path] = to_torch(weights, free, metadata)
        run = run_torch(contents[path])
    elif format == "onnx":
        contents[path] = to_onnx(weights, free, metadata, calibration)
        run, _ = run_onnx(contents[path], str(path))
    else:
        # traced with a free batch all the same: a fixed one of 1 could be folded into constants
        model = to_onnx(weights, free_axes(weights, "onnx", int8=False), metadata, calibration, for_openvino=True)
        shape = () if free else (1, *weights.input_size, weights.network.in_channels)
        xml, values = to_openvino(model, metadata, shape)
        contents = {path.with_suffix(".bin"): values, path: xml}
        run, _ = run_openvino(xml, values, str(path))
    golden, comparison = _golden(weights, format, run, precision, calibration)
    require(comparison, str(path))
    contents[path.with_name(f"{path.name}.golden.npz")] = golden
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write_atomic(file, content)
    files = [str(path), *(str(file) for file in contents if file != path)]
    return {"format": format, "file": str(path), "files": files, "metadata": metadata, "golden": comparison}


def _check_finite(weights: Weights) -> None:
    """Refuse damaged weights, which quantization fails on or turns into some that look sound."""
    network = copy.deepcopy(weights.network).cpu().eval()
    with torch.no_grad():
        logits = network(torch.zeros(1, network.in_channels, *weights.input_size))
    if not logits.isfinite().all():
        raise DataError(f"{network.name}: {DAMAGED}")


def check_format(format: str, *, int8: bool) -> None:
    """Refuse what cannot be exported, before any work.

    Raises:
        UsageError: there is no such format, it has no int8, or a package is missing.
    """
    if format not in ENDINGS:
        raise UsageError(f"format={format!r}: must be one of {', '.join(ENDINGS)}")
    if int8 and format == "torch":
        raise UsageError(
            "int8=True: format='torch' has floating-point weights alone; use format='onnx' or format='openvino'"
        )
    for package in PACKAGES[format]:
        need(package, f"format={format!r}")
    if int8:
        need("onnxruntime.quantization", "int8=True")


def target(out: str | Path, format: str, *, int8: bool = False) -> Path:
    """Return the file to write.

    Raises:
        UsageError: the name of the file is that of another format.
    """
    out, ending = Path(out), ENDINGS[format]
    if out.is_dir() or not out.suffix:
        return out / f"model{'.int8' * int8}{ending}"
    if out.suffix.lower() != ending:
        raise UsageError(f"out={out}: must be a folder, or for format={format!r} a file whose name ends in {ending}")
    return out


def calibration_images(weights: Weights, dataset: Dataset) -> tuple[np.ndarray, list[str]]:
    """Choose training images to quantize by, spread evenly over the set, and notes.

    Args:
        weights: what is exported.
        dataset: from `load_matching`.

    Returns:
        uint8 (N, H, W, C), as many as `num_to_calibrate` allows, evenly spread; and what the reader should know.
    """
    chosen, notes = spread(len(dataset.train), num_to_calibrate(*weights.input_size)), list[str]()
    images, _ = fit_images(weights, dataset, dataset.train.images[chosen])
    if len(images) < FEW_IMAGES:
        notes.append(f"only {len(images)} images to calibrate by; with {FEW_IMAGES} or more int8 is more exact")
    return images, notes


def _golden(
    weights: Weights, format: str, run: Run, precision: str, calibration: np.ndarray | None
) -> tuple[bytes, dict[str, Any]]:
    """Compare the exported model with the network; return the archive of input and output, and the comparison.

    In fp32 the images are noise, and the output is that of the network in PyTorch. In int8 the images are those of the
    calibration, since noise is not what it was quantized for, and the output is that of the exported model.
    """
    images = calibration
    if images is None:
        shape = (NUM_GOLDEN, *weights.input_size, weights.network.in_channels)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
    given = [batch if LAYOUTS[format] == "NHWC" else batch.transpose(0, 3, 1, 2) for batch in batches]
    theirs = [tuple(map(np.array, run(np.ascontiguousarray(batch)))) for batch in given]
    with torch.no_grad():
        ours = torch.cat([weights.network(weights.preprocessing(weights.preprocessing.resident(b))) for b in batches])
    logits, probabilities = (np.concatenate(values) for values in zip(*theirs, strict=True))
    comparison = compare(ours, torch.from_numpy(logits), precision)
    if precision == "fp32":
        logits, probabilities = ours.numpy(), ours.softmax(1).numpy()
    chosen, file = spread(len(images), NUM_GOLDEN), io.BytesIO()
    arrays = {INPUT: np.concatenate(given)[chosen], LOGITS: logits[chosen], PROBABILITIES: probabilities[chosen]}
    np.savez(file, **arrays)
    return file.getvalue(), comparison
