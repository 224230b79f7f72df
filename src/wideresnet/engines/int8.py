"""Inference in 8 bits: a snapshot of a network, calibrated on training images."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.engines.description import Description, Ineligible, describe, describe_for, why_not_now
from wideresnet.kernels import library, ops, quantized
from wideresnet.kernels.quantized import QuantizedConv, Quantizer
from wideresnet.networks.models import Network

BATCH_SIZE = 100  # images at once in calibration; enough to keep a processor busy


def quantize(network: Network, images: Tensor) -> Quantized:
    """Prepare a network for inference in 8 bits on a CPU: faster than `optimize`, but not exact.

    The inputs of the convolutions (normalized and activated maps) are rounded to 8 bits. The sums along the shortcuts,
    the stem and the classifier stay in fp32. The result is a snapshot: later changes to the network do not affect it.

    Args:
        network: a pre-activation network for small images with batch normalization and ReLU; not modified.
        images: preprocessed training images (N, C, H, W); a few hundred suffice. The highest activation of each channel
            on them becomes its byte 255.

    Returns:
        A module with the `forward` of the network in evaluation mode, approximately, without gradients.

    Raises:
        UsageError: this network or this machine has no 8-bit kernels, there are no images, or activations are not
            finite.
    """
    return Quantized(network, images)


class Quantized(nn.Module):
    """See `quantize`.

    Attributes:
        network: the copy that was calibrated, in fp32.
        steps: for each map that is quantized, float64 (C,): the value of one unit of its bytes.
        how: what was done, in words.
    """

    def __init__(self, network: Network, images: Tensor) -> None:
        super().__init__()
        network.check(images)
        if not len(images):
            raise UsageError(f"{network.name}: no images to quantize by; give a few hundred of the training images")
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        try:
            with torch.no_grad():
                description = describe_for(frozen, images)
            _check(description)
        except Ineligible as reason:
            raise UsageError(f"{network.name} cannot be quantized here: {reason}; use it in fp32") from None
        self.network = cast("Network", frozen.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.steps = _calibrate(self.network, description, images)
        self._prepare()
        self.how = f"8-bit kernels, calibrated on {len(images):,} images"
        self.eval()

    def train(self, mode: bool = True) -> Quantized:
        """Stay in evaluation mode, whatever `mode` is: a snapshot does not train."""
        del mode
        return super().train(False)

    def _prepare(self) -> None:
        """Quantize the weights, in the layout of the kernels of this machine."""
        self._program = Program(describe(self.network), self.steps)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: other weights need another calibration.

        Raises:
            UsageError: always.
        """
        del args, kwargs
        raise UsageError(f"{self.network.name} in 8 bits keeps its weights; load others into a network, quantize that")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the quantized weights, whose layout depends on the machine."""
        return {name: value for name, value in self.__dict__.items() if name != "_program"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (problem := library.why_unavailable()) is not None:
            raise UsageError(f"{self.network.name} in 8 bits cannot run here: {problem}; use it in fp32")
        self._prepare()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, C, H, W), like `Network.forward`; autocast has no effect.

        The logits of an image that is not finite are NaN.

        Raises:
            UsageError: x has another shape, is not float32 on the CPU, or the call is traced.
        """
        self.network.check(x)
        with torch.autocast("cpu", enabled=False):
            if not len(x):
                return self.network(x)
            if (problem := why_not_now(x)) is not None:
                raise UsageError(f"{self.network.name} in 8 bits, {x.dtype} on {x.device}: {problem}; use it in fp32")
            lost = ~x.flatten(1).sum(1, keepdim=True).isfinite()  # quantization would turn NaN into numbers
            return self._program(x).masked_fill_(lost, torch.nan)


class Program:
    """A described network in 8 bits.

    A layer's result is quantized for the layer that reads it, and kept as values if a shortcut adds it: the two go out
    of the same kernel, and what nobody needs is not written.
    """

    def __init__(self, description: Description, steps: dict[int, Tensor]) -> None:
        self.description = description
        norms = {number: ops.normalize_running(norm) for number, norm in description.norms.items()}
        self.quantizers = {number: Quantizer.after(norms[number], step) for number, step in steps.items()}
        self.convs = [QuantizedConv(layer.conv, steps[layer.reads]) for layer in description.layers]
        self.last = norms[description.output]

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of float32 images (B, C, H, W)."""
        description = self.description
        x = ops.channels_last(description.stem(x.contiguous(memory_format=torch.channels_last)))
        values: dict[int, Tensor | None] = {0: x}
        q: dict[int, Tensor | None] = {0: self.quantizers[0](x)}
        for layer, conv, unused in zip(description.layers, self.convs, description.last_uses, strict=True):
            values[layer.writes], q[layer.writes] = conv(
                cast("Tensor", q[layer.reads]),
                add=None if layer.adds is None else values[layer.adds],  # overwritten: this is its last use
                quantizer=self.quantizers.get(layer.writes),
                values=layer.writes in description.added or layer.writes == description.output,
            )
            for number in unused:
                del values[number], q[number]
        x = ops.activate(cast("Tensor", values[description.output]), self.last)
        return description.fc(x.mean((2, 3)))


def _check(description: Description) -> None:
    """Refuse convolutions that have no 8-bit kernel."""
    if not all(quantized.fits(layer.conv) for layer in description.layers):
        raise Ineligible(f"the kernels are for 1x1 and 3x3 convolutions of multiples of {ops.LANES} channels")


@torch.no_grad()
def _calibrate(network: Network, description: Description, images: Tensor) -> dict[int, Tensor]:
    """Measure, for each map that layers read, float64 (C,): the highest activation of each channel divided by 255.

    A channel that is never active on these images may be on others: it gets the largest step of its layer.
    """
    highest: dict[nn.Module, Tensor] = {}

    def watch(norm: nn.Module, _: object, output: Tensor) -> None:
        found = output.amax((0, 2, 3)).double()
        highest[norm] = torch.maximum(highest[norm], found) if norm in highest else found

    norms = {layer.reads: layer.norm for layer in description.layers}
    handles = [norm.register_forward_hook(watch) for norm in norms.values()]
    for batch in images.split(BATCH_SIZE):
        network(batch)
    for handle in handles:
        handle.remove()
    if not all(found.isfinite().all() for found in highest.values()):
        raise UsageError(f"{network.name} cannot be quantized: its activations are not finite; are these its weights?")
    steps = {}
    for number, norm in norms.items():
        found = highest[norm]
        most = found.max() if found.max() > 0 else 1.0
        steps[number] = torch.where(found > 0, found, most) / quantized.MAX_BYTE
    return steps
