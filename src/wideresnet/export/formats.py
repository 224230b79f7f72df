"""From trained weights to the bytes of each format."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes
from wideresnet.base.version import __version__
from wideresnet.export.metadata import INPUT, LOGITS, PROBABILITIES, to_texts
from wideresnet.export.packages import need
from wideresnet.export.portable import quiet, trace
from wideresnet.networks import Network
from wideresnet.weights.hub import Weights

OPSET = 18
"""Version of ONNX's operators: PyTorch's exporter writes it without a conversion. onnxruntime reads it since 1.14."""

MAX_ONNX_BYTES = 2**31 - 1
"""A protobuf message cannot be larger, and this package writes and reads no external data."""

OPENVINO_KEY = "wideresnet"
"""Under which OpenVINO's runtime information has the metadata."""

TORCH_METADATA = "wideresnet.json"
"""The extra file of a .pt2 archive with the metadata."""

CALIBRATION_BATCH_PX = 100 * 64 * 64
"""Pixels at once in calibration; at least one image."""


def to_onnx(
    weights: Weights,
    free: tuple[str, ...],
    metadata: Mapping[str, Any],
    calibration: np.ndarray | None,
    *,
    for_openvino: bool = False,
) -> bytes:
    """Convert to ONNX.

    Args:
        weights: what is exported.
        free: axes of the input that stay free.
        metadata: see `metadata.describe`.
        calibration: uint8 (N, H, W, C), to quantize by; None leaves it in fp32.
        for_openvino: quantize only what the convolutions read. onnxruntime has 8-bit kernels only for convolutions
            whose results are quantized, too, which costs accuracy.

    Raises:
        UsageError: a package is missing, or the network is too large for the format.
    """
    what = "format='onnx'"
    onnx = need("onnx", what)
    need("onnxscript", what)
    size = 4 * sum(p.numel() for p in weights.network.parameters())
    if size > MAX_ONNX_BYTES:
        raise UsageError(f"{what}: holds at most 2 GiB, the weights take {human_bytes(size)}; use format='torch'")
    model = _exported(trace(weights, "NHWC", free), [LOGITS, PROBABILITIES], free)
    if calibration is not None:
        batch = max(1, CALIBRATION_BATCH_PX // (calibration.shape[1] * calibration.shape[2]))
        model = _quantized(model, calibration, batch, onnx, for_openvino)
    onnx.helper.set_model_props(model, to_texts(metadata))
    model.producer_name, model.producer_version = "wideresnet", __version__
    return model.SerializeToString()


def network_to_onnx(
    network: Network, size: tuple[int, int], calibration: np.ndarray | None = None, what: str = ""
) -> bytes:
    """Convert a network alone, without preprocessing and softmax, to ONNX: what engines run.

    Args:
        network: in evaluation mode, on the CPU.
        size: (H, W) of its images, px.
        calibration: preprocessed images, float32 (N, C, H, W), to quantize by as `to_onnx` does; None: in fp32.
        what: what needs it, as for `need`.

    Returns:
        A model from images (B, C, H, W), named `INPUT`, to logits (B, num_classes), named `LOGITS`; B is free.

    Raises:
        UsageError: a package is missing.
    """
    onnx = need("onnx", what)
    need("onnxscript", what)
    example = torch.zeros(2, network.in_channels, *size)  # a batch of 1 would be taken for a constant
    with quiet(), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    model = _exported(program, [LOGITS], ("batch",))
    if calibration is not None:
        batch = max(1, CALIBRATION_BATCH_PX // (size[0] * size[1]))
        model = _quantized(model, calibration, batch, onnx, for_openvino=False)
    return model.SerializeToString()


def _exported(program: torch.export.ExportedProgram, outputs: list[str], free: tuple[str, ...]) -> Any:
    """Return the ONNX model of a traced program."""
    with quiet():
        exported = torch.onnx.export(
            program, input_names=[INPUT], output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
        )
    assert exported is not None
    return _plain(exported.model_proto, free)


def _plain(model: Any, free: tuple[str, ...]) -> Any:
    """Name the free axes, and leave out what the exporter notes for its developers, such as paths of this machine."""
    graph = model.graph
    for described in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        described.doc_string = ""
        del described.metadata_props[:]
    del graph.value_info[:]  # with names of axes that mean nothing
    for place, axis in enumerate(("batch", "height", "width")):
        if axis in free:
            graph.input[0].type.tensor_type.shape.dim[place].dim_param = axis
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def _quantized(model: Any, images: np.ndarray, batch: int, onnx: Any, for_openvino: bool) -> Any:
    """Quantize the convolutions to int8: activations per map, weights per channel, by the lowest and highest values.

    The stem stays in fp32, as in this package's own 8-bit engine. Weights have 7 bits: with 8, sums of products
    saturate on processors without VNNI instructions. See LOG.md for what else was measured.
    """
    quantization = need("onnxruntime.quantization", "int8=True")
    stem = next(node.name for node in model.graph.node if node.op_type == "Conv")
    extra = {"OpTypesToExcludeOutputQuantization": ["Conv"]} if for_openvino else {}

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            return None if start is None else {INPUT: images[start : start + batch]}

    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        quantization.quantize_static(
            source, target, Images(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=["Conv"],
            nodes_to_exclude=[stem], extra_options=extra, per_channel=True, reduce_range=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return onnx.load_model(str(target))


def to_openvino(model: bytes, metadata: Mapping[str, Any], shape: tuple[int, ...] = ()) -> tuple[bytes, bytes]:
    """Convert ONNX to OpenVINO's XML and its weights.

    Args:
        model: what `to_onnx` returned.
        metadata: see `metadata.describe`.
        shape: of the input, if it is to be fixed.

    Raises:
        UsageError: OpenVINO is not installed.
    """
    openvino = need("openvino", "format='openvino'")
    converted = openvino.Core().read_model(model)
    if shape:
        converted.reshape(list(shape))
    converted.inputs[0].get_node().set_layout(openvino.Layout("NHWC"))
    for key, text in to_texts(metadata).items():
        converted.set_rt_info(text, [OPENVINO_KEY, key])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(converted, str(path), compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def to_torch(weights: Weights, free: tuple[str, ...], metadata: Mapping[str, Any]) -> bytes:
    """Convert to an archive of torch.export; arguments as for `to_onnx`."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(
            trace(weights, "NCHW", free), file, extra_files={TORCH_METADATA: json.dumps(dict(metadata), indent=1)}
        )
    return file.getvalue()
