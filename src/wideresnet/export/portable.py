"""The module that is exported: preprocessing, the plain network in evaluation mode, softmax."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wideresnet.data.preprocess import GCN_SCALE, Preprocessing
from wideresnet.weights.hub import Weights

TRACED_SIZE = (64, 72)
"""An example's (H, W) if both are free: different from each other, and such that no map of a network has a side of 1,
which tracing would take for a constant."""


class Portable(nn.Module):
    """From uint8 pixels to logits and probabilities.

    Args:
        weights: copied; its network is plain PyTorch.
        layout: of the pixels, "NHWC" or "NCHW".
    """

    def __init__(self, weights: Weights, layout: str) -> None:
        super().__init__()
        self.network = copy.deepcopy(weights.network).cpu().eval()
        self.preprocessing = PreprocessingModule(weights.preprocessing)
        self.layout = layout
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and probabilities, float32 (B, num_classes), of uint8 images in the layout."""
        pixels = images.permute(0, 3, 1, 2) if self.layout == "NHWC" else images
        logits = self.network(self.preprocessing(pixels.to(torch.float32)))
        return logits, logits.softmax(1)


class PreprocessingModule(nn.Module):
    """`Preprocessing` as operations that every runtime has, in float32; equal up to rounding."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.kind = preprocessing.kind
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(1, -1, 1, 1))
        for name, tensor in preprocessing.tensors().items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Preprocess pixels 0..255, float32 (B, C, H, W)."""
        buffers: dict[str, Any] = dict(self.named_buffers())
        if self.kind == "scale":
            return x / 255
        if self.kind == "mean_std":
            return (x - buffers["mean"]) / buffers["std"]
        num, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(num, height * width * channels)
        # Times the number of values, which the norm takes out again: whole numbers below 2^24, so float32 is exact. A
        # constant image gives zeros, and one with the least contrast is not drowned in the rounding of its mean.
        rows = rows * rows.shape[1] - rows.sum(1, keepdim=True)
        norms = rows.square().sum(1, keepdim=True).sqrt()
        rows = rows * (GCN_SCALE / torch.where(norms == 0, 1.0, norms))
        white = (rows - buffers["zca_mean"]) @ buffers["zca_matrix"]
        return white.view(num, height, width, channels).permute(0, 3, 1, 2)


def free_axes(weights: Weights, format: str, *, int8: bool) -> tuple[str, ...]:
    """Return the axes of the input whose length stays free.

    Whitening is for one size. torch.export guards sizes by what its tracing assumed: an exported WRN-10-1 took no side
    below 5 px, and a ResNet-20 no odd height. So its sizes are fixed. In int8 with a free batch, OpenVINO 2026.4
    computed wrong logits on an AVX-512 CPU, by 37 to 140 %; with everything fixed it does not.
    """
    if format == "openvino" and int8:
        return ()
    free_size = format != "torch" and weights.preprocessing.kind != "zca"
    return ("batch", "height", "width") if free_size else ("batch",)


def trace(weights: Weights, layout: str, free: tuple[str, ...]) -> torch.export.ExportedProgram:
    """Trace the module for an exporter.

    Args:
        weights: what is exported.
        layout: of the pixels.
        free: see `free_axes`.
    """
    height, width = TRACED_SIZE if "height" in free else weights.input_size
    channels = weights.network.in_channels
    axes = {"N": 2, "H": height, "W": width, "C": channels}  # a batch of 1 would be taken for a constant
    example = torch.zeros([axes[axis] for axis in layout], dtype=torch.uint8)
    names = {"batch": "N", "height": "H", "width": "W"}
    dynamic = {layout.index(names[name]): torch.export.Dim.DYNAMIC for name in free}
    with quiet(), torch.no_grad():
        return torch.export.export(Portable(weights, layout), (example,), dynamic_shapes={"images": dynamic})


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters log and warn of: deprecations among themselves, advice to their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
