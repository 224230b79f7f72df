"""Models of this process in each inference engine: a function from images to logits.

Exported files, which may come from anywhere, are opened by `runtimes`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.export.metadata import INPUT, LOGITS
from wideresnet.export.packages import need, without_telemetry

Run = Callable[[np.ndarray], np.ndarray]
"""From preprocessed images, float32 (B, C, H, W), to logits, float32 (B, num_classes)."""

ENGINE_IMAGES = 300
"""Images that engines are calibrated by, of those that ours is: NNCF's own default, which its documentation advises."""


def start_onnxruntime(model: bytes | Path, num_threads: int, batch_size: int | None = None) -> Run:
    """Start a model from `network_to_onnx` in ONNX Runtime.

    Args:
        model: the model, or its file.
        num_threads: that compute.
        batch_size: of every call; None for any.

    Raises:
        UsageError: the package is missing.
        Exception: whatever the engine raises.
    """
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    if batch_size is not None:
        options.add_free_dimension_override_by_name("batch", batch_size)
    source = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([LOGITS], {INPUT: images})[0]


def start_openvino(
    model: Any, shape: tuple[int, int, int, int], num_threads: int, precision: str = "f32", num_streams: int = 1
) -> Run:
    """Start a model in OpenVINO.

    Args:
        model: an `openvino.Model` whose batch is free; not modified.
        shape: (B, C, H, W) of every call; B is a multiple of `num_streams`.
        num_threads: that compute.
        precision: "f32" or "bf16", of what is not quantized.
        num_streams: parts of the batch that are computed at the same time.

    Raises:
        UsageError: the package is missing.
        Exception: whatever the engine raises.
    """
    openvino = need("openvino")
    batch_size, *image = shape
    part = batch_size // num_streams
    fixed = model.clone()
    fixed.reshape([part, *image])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": num_threads,
        **({"PERFORMANCE_HINT": "LATENCY"} if num_streams == 1 else {"NUM_STREAMS": str(num_streams)}),
    }
    compiled = openvino.Core().compile_model(fixed, "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(num_streams)]
    if num_streams == 1:
        return lambda images: requests[0].infer({0: images}, share_inputs=True)[0]

    def run(images: np.ndarray) -> np.ndarray:
        for place, request in enumerate(requests):
            request.start_async({0: images[place * part : (place + 1) * part]}, share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in requests])

    return run


def open_openvino(model: bytes | Path) -> Any:
    """Read an ONNX model, or OpenVINO's file, into an `openvino.Model`."""
    return need("openvino").Core().read_model(model)


def quantize_openvino(model: bytes, images: np.ndarray) -> Any:
    """Quantize a model for OpenVINO by NNCF as its documentation does: its own defaults, images one by one.

    Args:
        model: from `network_to_onnx`.
        images: preprocessed, float32 (N, C, H, W), to calibrate by.

    Returns:
        An `openvino.Model` in int8, whose batch is free.

    Raises:
        UsageError: a package is missing.
    """
    nncf = need("nncf")
    nncf.set_log_level("ERROR")
    with without_telemetry():
        dataset = nncf.Dataset([image[None] for image in images])
        return nncf.quantize(open_openvino(model), dataset, subset_size=len(images))
