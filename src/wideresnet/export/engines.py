"""A network run by an inference engine that the user has installed: `wrn predict --engine` and `wrn eval --engine`.

At batch 1 and 224 px such engines are 1.7 to 1.9 times as fast as PyTorch on a CPU; at 32 px this package's own kernels
are faster.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from wideresnet.base import progress
from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import DAMAGED, DataError, UsageError, WRNError
from wideresnet.base.format import counted
from wideresnet.base.streams import muted
from wideresnet.engines.int8 import FEW_IMAGES
from wideresnet.export.check import compare
from wideresnet.export.formats import network_to_onnx
from wideresnet.export.kept import kept_or_made
from wideresnet.export.packages import need
from wideresnet.export.portable import quiet
from wideresnet.export.sessions import (
    ENGINE_IMAGES,
    Run,
    open_openvino,
    quantize_openvino,
    start_onnxruntime,
    start_openvino,
)
from wideresnet.machine.cpu import BF16_FLAGS, cpu_flags
from wideresnet.networks import Network

NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""The engines, each called like its package."""

MAX_IMAGES = 64
MAX_PX = 16 * 224 * 224
"""Images at once, at most, and their pixels: more gains nothing and takes memory. WRN-50-2-bottleneck at 224 px by
OpenVINO: 106 ms per image at batch 1, 107 at batch 16 (own measurement, 2 threads)."""

MAX_COMPILED = 2
"""Batch sizes that are compiled at the same time: that of a set, and what is left at its end."""


def check_engine(engine: str, *, device: str = "auto", precision: str = "auto", int8: bool = False) -> None:
    """Refuse what an engine cannot do here, before any work.

    Args:
        engine: one of `NAMES`.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32" or "bf16".
        int8: whether the network is to be quantized.

    Raises:
        UsageError: there is no such engine, it is not installed, or it does not do that.
    """
    if engine not in NAMES:
        raise UsageError(f"engine={engine!r}: must be one of {', '.join(NAMES)}")
    what = f"engine={engine!r}"
    if device == "cuda":
        raise UsageError(f"device='cuda': {what} runs on the CPU; leave out one of them")
    if precision == "bf16":
        if engine != "openvino":
            raise UsageError(f"precision='bf16': {NAMES[engine]} has no bf16 on CPUs; use engine='openvino'")
        if not BF16_FLAGS & cpu_flags():
            raise UsageError("precision='bf16': this CPU has no instructions for bf16; use precision='fp32'")
    with quiet(), muted():
        need(engine, what)
        if int8:
            need("nncf" if engine == "openvino" else "onnxruntime.quantization", f"int8=True with {what}")


def run_with(
    network: Network, engine: str, size: tuple[int, int], *, precision: str = "fp32", images: Tensor | None = None
) -> EngineNetwork:
    """Convert a network for an inference engine, to be run by it on the CPU.

    In fp32 and bf16 the converted network is kept on the disk, so that the next call starts at once.

    Args:
        network: in any mode; not modified.
        engine: "onnxruntime" or "openvino", which is to be installed.
        size: (H, W) of the images, px; no others are taken.
        precision: "fp32", "bf16" (OpenVINO, on CPUs that have it), or "int8".
        images: for int8, preprocessed training images (N, C, H, W) to calibrate by; 300 of them are used.

    Returns:
        A module with the `forward` of the network in evaluation mode, without gradients: equal up to rounding in fp32,
        which is checked on the first image, approximately in bf16 and int8.

    Raises:
        UsageError: the engine is missing or does not do that, or cannot take this network.
        DataError: in int8 the logits are not those of the network.
    """
    if precision not in ("fp32", "bf16", "int8"):
        raise UsageError(f"precision={precision!r}: must be one of fp32, bf16, int8")
    check_engine(engine, precision="auto" if precision == "int8" else precision, int8=precision == "int8")
    return EngineNetwork(network, engine, size, precision, images)


class EngineNetwork(nn.Module):
    """See `run_with`.

    Attributes:
        how: the engine, its version, precision and threads, in words.
    """

    def __init__(
        self, network: Network, engine: str, size: tuple[int, int], precision: str, images: Tensor | None
    ) -> None:
        super().__init__()
        twin = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        self.name, self.num_classes, self.channels = network.name, network.num_classes, network.in_channels
        self.engine, self.size, self.precision = engine, size, precision
        self.num_threads = torch.get_num_threads()
        threads = counted(self.num_threads, "thread")
        self.how = f"{NAMES[engine]} {version(engine)}, {precision}, {threads}"
        logits = None
        if precision == "int8":
            if images is None or not len(images):
                raise UsageError(f"{self.name}: no images to quantize by; give a few hundred of the training images")
            images = images[spread(len(images), ENGINE_IMAGES)].float().cpu().contiguous()
            few = ", few: give some hundred" if len(images) < FEW_IMAGES else ""
            self.how += f", calibrated on {counted(len(images), 'image')}{few}"
            logits = _logits(twin, images)
            if not logits.isfinite().all():  # engines would quantize such weights to some that look sound
                raise DataError(f"{self.name}: {DAMAGED}")
        self._started: OrderedDict[int, Run] = OrderedDict()
        try:
            with progress.status(f"converting {self.name} for {NAMES[engine]}"), quiet(), muted():
                self._model = self._convert(twin, images)
        except WRNError:
            raise
        except Exception as error:  # exporters and engines raise their own classes
            raise self._refusal(error) from None
        self._twin = [twin]  # in a list: its weights are not this module's, and it is dropped once it agrees
        if images is not None and logits is not None:
            self._check(images, logits)
        self.eval()

    def _convert(self, twin: Network, images: Tensor | None) -> object:
        """Return the model of the engine: the bytes of ONNX, or an `openvino.Model`."""
        what = f"engine={self.engine!r}"
        if self.precision != "int8" or images is None:
            model = kept_or_made(twin, self.size, lambda: network_to_onnx(twin, self.size, what=what))
            return open_openvino(model) if self.engine == "openvino" else model
        if self.engine == "openvino":
            return quantize_openvino(network_to_onnx(twin, self.size, what=what), images.numpy())
        return network_to_onnx(twin, self.size, images.numpy(), what)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, float32 (B, num_classes) on the CPU, of preprocessed images (B, in_channels, H, W).

        Raises:
            UsageError: x has another type or shape than the model takes.
            DataError: the logits of the first image are not those of the network.
        """
        if x.dim() != 4 or x.shape[1:] != (self.channels, *self.size) or not x.is_floating_point():
            raise UsageError(
                f"{self.name}: the input is {x.dtype} {tuple(x.shape)}, and {NAMES[self.engine]} was given a model of "
                f"floating-point images (B, {self.channels}, {self.size[0]}, {self.size[1]})"
            )
        if self._twin and len(x):
            self._check(x[:1], _logits(self._twin[0], x[:1]))
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        at_once = max(1, min(MAX_IMAGES, MAX_PX // (self.size[0] * self.size[1])))
        logits = [np.zeros((0, self.num_classes), np.float32)]
        for part in x.float().cpu().split(at_once):
            try:
                # a copy: engines reuse their memory
                logits.append(np.array(self._start(len(part))(np.ascontiguousarray(part.numpy()))))
            except Exception as error:
                raise self._refusal(error) from None
        return torch.from_numpy(np.concatenate(logits))

    def _start(self, batch_size: int) -> Run:
        """Return the model that is ready for a batch: OpenVINO computes wrong logits in int8 if the batch is free."""
        if self.engine == "onnxruntime":
            batch_size = 0  # any
        if batch_size not in self._started:
            if len(self._started) == MAX_COMPILED:
                self._started.popitem(last=False)
            self._started[batch_size] = self._new_session(batch_size)
        self._started.move_to_end(batch_size)
        return self._started[batch_size]

    def _new_session(self, batch_size: int) -> Run:
        if self.engine == "onnxruntime":
            assert isinstance(self._model, bytes)
            return start_onnxruntime(self._model, self.num_threads)
        hint = "bf16" if self.precision == "bf16" else "f32"
        shape = (batch_size, self.channels, self.size[0], self.size[1])
        return start_openvino(self._model, shape, self.num_threads, hint)

    def _check(self, images: Tensor, logits: Tensor) -> None:
        """Compare with the network's logits of images, until it has been found to agree."""
        # logits that are not finite come from damaged weights, which the caller reports
        if logits.isfinite().all() and (failure := compare(logits, self._run(images), self.precision)["failure"]):
            advice = "; leave out engine=" if self.precision == "fp32" else ""  # the others come with theirs
            raise DataError(f"{self.name}, {self.how}: {failure}{advice}")
        self._twin.clear()

    def _refusal(self, error: Exception) -> UsageError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return UsageError(
            f"engine={self.engine!r}: {NAMES[self.engine]} does not take {self.name} ({reason}); leave it out"
        )


def _logits(network: Network, images: Tensor) -> Tensor:
    """Compute the logits in fp32, in parts that fit in memory."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.cat([network(part) for part in images.float().cpu().split(MAX_IMAGES)])
