"""Exported models as weights for `wrn predict` and `wrn eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.preprocess import Preprocessing
from wideresnet.export.metadata import read_texts
from wideresnet.export.runtimes import Run, read_bounded, run_onnx, run_openvino, run_torch
from wideresnet.networks.models import Network
from wideresnet.spec.names import NetworkName
from wideresnet.weights.hub import Weights

SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
"""The end of a file's name -> its format."""

RUNTIMES = {"onnx": "onnxruntime", "openvino": "OpenVINO"}


def read_exported(path: str | Path) -> Weights:
    """Read an exported model with its class names. It runs on the CPU, by the runtime that its format is for.

    Args:
        path: an .onnx file; or OpenVINO's .xml, with its .bin beside it.

    Returns:
        Weights whose network takes pixels and gives logits; it has no features and cannot be trained.

    Raises:
        UsageError: there is no such file, the runtime is not installed, or the format would run code.
        DataError: it is damaged, was not written by `wrn export`, or refers to anything outside of itself.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise UsageError(f"{path}: must be a file whose name ends in .onnx or .xml")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if format == "torch":
        raise UsageError(
            f"{path}: torch.export.load may run code that such a file holds, so it is not read; use the weights that "
            "it was made from, or an .onnx"
        )
    if format == "onnx":
        run, texts = run_onnx(read_bounded(path), str(path))
    else:
        run, texts = run_openvino(read_bounded(path), read_bounded(path.with_suffix(".bin")), str(path))
    about = read_texts(texts, str(path))
    network = ExportedNetwork(about.name, len(about.class_names), about.channels, run, path)
    note = f"{path}: {about.precision}, run by {RUNTIMES[format]} on the CPU"
    return Weights(
        network.eval(),
        Preprocessing("pixels"),
        about.class_names,
        about.input_size,
        (note,),
        precision=about.precision,
        resize=about.resize,
    )


def reopen_written(path: Path, weights: Weights) -> Weights:
    """Open a file of torch.export that this process has just written, so that its code is our own.

    Args:
        path: a .pt2 file.
        weights: what was exported.
    """
    program = run_torch(read_bounded(path))
    network = ExportedNetwork(
        weights.network.name, weights.network.num_classes, weights.network.in_channels,
        lambda images: program(images.transpose(0, 3, 1, 2)), path,
    )  # fmt: skip
    return Weights(
        network.eval(),
        Preprocessing("pixels"),
        weights.class_names,
        weights.input_size,
        precision="fp32",
        resize=weights.resize,
    )


class ExportedNetwork(Network):
    """A model in another runtime, with the `forward` of a network.

    Args:
        name, num_classes, in_channels: as its metadata has them.
        run: the model, of uint8 pixels NHWC.
        path: its file, for messages.
    """

    def __init__(self, name: NetworkName, num_classes: int, in_channels: int, run: Run, path: Path) -> None:
        super().__init__(name, num_classes, in_channels)
        self.run = run
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, float32 (B, num_classes) on the CPU.

        Args:
            x: pixels 0..255, whole numbers of a floating-point type (B, in_channels, H, W).
        """
        self.check(x)
        pixels = x.detach().cpu().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        logits = np.array(self.run(np.ascontiguousarray(pixels.numpy()))[0])  # a copy: runtimes reuse their memory
        if logits.dtype != np.float32 or logits.shape != (len(x), self.num_classes):
            raise DataError(
                f"{self.path}: gives {logits.dtype} {logits.shape}, its metadata promises logits of {self.num_classes} "
                "classes; export it again"
            )
        return torch.from_numpy(logits)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedNetwork:
        """Return itself: it does not change, and a runtime cannot be copied."""
        del memo
        return self

    def enter(self, x: Tensor) -> Tensor:
        del x
        self._refuse()

    def trunk(self) -> list[nn.Module]:
        self._refuse()

    def finish(self, x: Tensor) -> Tensor:
        del x
        self._refuse()

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self.path}: an exported model gives logits alone; use the weights that it was made from")
