"""Exported models at work: each runtime as a function from pixels to logits and probabilities."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideresnet.base.errors import DataError
from wideresnet.base.format import human_bytes
from wideresnet.export.formats import MAX_ONNX_BYTES, OPENVINO_KEY
from wideresnet.export.metadata import INPUT, LOGITS, PROBABILITIES
from wideresnet.export.packages import need
from wideresnet.machine.host_memory import available_host_memory_bytes

OUTPUTS = [LOGITS, PROBABILITIES]

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From uint8 images in the layout of the format to logits and probabilities, float32 (B, num_classes)."""

COPIES = 3
"""Of a model's file that reading it holds: its bytes, the parsed message, the runtime's weights."""

DOMAINS = {"", "ai.onnx"}
"""Of ONNX's own operators; all others come from libraries."""

CONTROL_FLOW = {"If", "Loop", "TensorIterator"}


def run_onnx(content: bytes, where: str) -> tuple[Run, dict[str, str]]:
    """Open an ONNX model with onnxruntime.

    Args:
        content: of a file of unknown origin.
        where: the file, for messages.

    Returns:
        The model as a function, and its metadata.

    Raises:
        UsageError: a package is missing.
        DataError: it is damaged, or refers to anything outside of itself.
    """
    onnx, runtime = need("onnx", where), need("onnxruntime", where)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own class
        raise _refusal(where, "not a complete ONNX model", error) from None
    _check_onnx(model, where)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each of its errors has its own class, without a common one
        raise _refusal(where, "onnxruntime cannot read it", error) from None
    texts = {entry.key: entry.value for entry in model.metadata_props}
    del model

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            logits, probabilities = session.run(OUTPUTS, {INPUT: images})
        except Exception as error:
            raise _refusal(where, "onnxruntime cannot run it", error) from None
        return logits, probabilities

    return run, texts


def _check_onnx(model: Any, where: str) -> None:
    """Refuse what `wrn export` never writes: other files, operators of libraries, loops and calls."""
    if model.functions:
        raise DataError(f"{where}: has functions of its own; only what wrn export writes is read")
    for tensor in _tensors(model.graph):
        if tensor.external_data or tensor.data_location:
            raise DataError(f"{where}: {tensor.name or 'a tensor'} is in another file; a model must be in one file")
    for node in model.graph.node:
        if node.domain not in DOMAINS:
            raise DataError(f"{where}: the operator {node.op_type} is from {node.domain}; only ONNX's own are run")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise DataError(f"{where}: {node.op_type} has a graph of its own; only what wrn export writes is read")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def run_openvino(xml: bytes, weights: bytes, where: str) -> tuple[Run, dict[str, str]]:
    """Open an OpenVINO model, in fp32 also on processors for which OpenVINO would take bf16.

    Args:
        xml, weights: the content of the two files, of unknown origin.
        where: the .xml file, for messages.

    Returns, Raises: as `run_onnx`.
    """
    openvino = need("openvino", where)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        core = openvino.Core()
        model = core.read_model(xml, weights)
        if loops := CONTROL_FLOW & {node.get_type_name() for node in model.get_ops()}:
            raise DataError(f"{where}: has {loops.pop()}; only what wrn export writes is read")
        info = model.get_rt_info()
        stored = model.get_rt_info([OPENVINO_KEY]).value if OPENVINO_KEY in info else {}
        texts = {key: str(getattr(value, "value", value)) for key, value in dict(stored).items()}
        batch = model.inputs[0].partial_shape[0]
        step = batch.get_length() if batch.is_static else None
        compiled = core.compile_model(model, "CPU", settings)
    except DataError:
        raise
    except Exception as error:  # RuntimeError, TypeError and its own
        raise _refusal(where, "OpenVINO cannot read it", error) from None

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, len(images), step or len(images))
        try:
            results = [compiled({INPUT: images[start : start + step] if step else images}) for start in starts]
            logits, probabilities = (np.concatenate([np.array(r[name]) for r in results]) for name in OUTPUTS)
            return logits, probabilities
        except Exception as error:
            raise _refusal(where, "OpenVINO cannot run it", error) from None

    return run, texts


def run_torch(content: bytes) -> Run:
    """Open an archive of torch.export, which runs code that it holds: only for content that this process wrote."""
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            logits, probabilities = module(torch.from_numpy(np.ascontiguousarray(images)))
        return logits.numpy(), probabilities.numpy()

    return run


def read_bounded(path: Path) -> bytes:
    """Read a model's file, if it is no larger than such files may be, and fits in memory.

    Raises:
        DataError: it is too large, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_ONNX_BYTES:
            raise DataError(f"{path}: {human_bytes(size)}; a model has at most 2 GiB")
        available = available_host_memory_bytes()
        if available and COPIES * size > available:
            raise DataError(
                f"{path}: needs {human_bytes(COPIES * size)} of memory, {human_bytes(available)} is available"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _refusal(where: str, what: str, error: Exception) -> DataError:
    return DataError(" ".join(f"{where}: {what} ({type(error).__name__}: {error})".split())[:500])
