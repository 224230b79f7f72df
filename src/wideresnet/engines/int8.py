"""Inference in 8 bits: a snapshot of a network, calibrated on training images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import UsageError
from wideresnet.engines.description import Description, Ineligible, describe, describe_for, why_not_now
from wideresnet.kernels import library, ops, quantized, threads
from wideresnet.kernels.quantized import QuantizedConv, Quantizer
from wideresnet.networks.models import Network

BATCH_SIZE = 100  # images at once in calibration; enough to keep a processor busy

ONE_THREAD_BATCH = 16  # at most so many images: PyTorch's threads would cost the kernels more than they bring

NUM_CALIBRATION_IMAGES = 1000
"""Images by which a network is quantized, at most. With more nothing changes.

Measured on a WRN-16-2: its logits on CIFAR-10's test set change by 0.8 %, as with 2,000 images; with 100 by 1.9 %.
"""

FEW_IMAGES = 50
"""With fewer images a note says so. Digits, WRN-16-1: logits change by 0.4 % with 1,000, 1 % with 100, 6 % with 16."""

MAX_RATIO = 2.0
"""See `steps_of`. Own measurement, by ratio: changes of the test images' logits, in percent, for a WRN-16-1 calibrated
on 1,000 images, and if one of them is constant 1e4. Errors by 2: 19.31 and 19.27 % on CIFAR-10 (fp32 19.36).

| data | no limit | 3 | 2 | 1.5 |
|---|---|---|---|---|
| CIFAR-10 | 0.60, 124 | 0.60, 1.14 | 0.62, 0.79 | 1.11, 1.12 |
| digits | 0.36, 158 | 0.36, 0.66 | 0.37, 0.46 | 0.85, 0.87 |
"""

MIN_ACTIVE = 10
"""Images from which on a channel's usual activation is known: nine in ten of fewer would be all or all but one."""

MAX_CHANGE = 0.05
"""How much the logits of nine in ten calibration images may change, relative to their norm. This package's choice.

The networks of `MAX_RATIO`: 0.010 and 0.005; without a limit for outliers, 1.6 and 1.9.
"""


def quantize(network: Network, images: Tensor) -> Quantized:
    """Prepare a network for inference in 8 bits on a CPU: faster than `optimize`, but not exact.

    The inputs of the convolutions (normalized and activated maps) are rounded to 8 bits. The sums along the shortcuts,
    the stem and the classifier stay in fp32. The result is a snapshot: later changes to the network do not affect it.

    Args:
        network: a pre-activation network for small images with batch normalization and ReLU; not modified.
        images: preprocessed training images (N, C, H, W); a few hundred suffice. Of more than 1,000, as many are
            taken, evenly spread. They decide what the highest byte of each channel stands for.

    Returns:
        A module with the `forward` of the network in evaluation mode, approximately, without gradients.

    Raises:
        UsageError: this network or this machine has no 8-bit kernels, there are no images, activations are not finite,
            or the logits of the images in 8 bits are not those in fp32.
    """
    return Quantized(network, images)


class Quantized(nn.Module):
    """See `quantize`.

    Attributes:
        network: the copy that was calibrated, in fp32.
        steps: for each map that is quantized, float64 (C,): the value of one unit of its bytes.
        change: how much the logits of nine in ten calibration images change at most, relative to their norm.
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
        images = images[spread(len(images), NUM_CALIBRATION_IMAGES)]
        self.steps, logits = _calibrate(self.network, description, images)
        self._prepare()
        self.eval()
        self.change, self.how = self._compare(images, logits)

    def _compare(self, images: Tensor, logits: Tensor) -> tuple[float, str]:
        """Compare the calibration images in 8 bits with their fp32 logits; returns `change` and `how`."""
        found = torch.cat([self(batch) for batch in images.split(BATCH_SIZE)])
        # Of each image by itself, and not of the worst ones: an outlier may be far off without harm to the others.
        changes = (found - logits).norm(dim=1) / logits.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        change = float(changes.nan_to_num(torch.inf).quantile(0.9))
        num, num_changed = len(images), int((found.argmax(1) != logits.argmax(1)).sum())
        if change > MAX_CHANGE:
            raise UsageError(
                f"{self.network.name} in 8 bits changes the logits of the {num:,} images by {change:.0%}, more than "
                f"{MAX_CHANGE:.0%}; give more and typical training images, preprocessed as for training, or use fp32"
            )
        few = ", few: give some hundred" if num < FEW_IMAGES else ""
        how = f"8-bit kernels, calibrated on {num:,} images{few}; {num_changed:,} of their answers change"
        return change, how

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
            with threads.pytorch_on_one(len(x) <= ONE_THREAD_BATCH):
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
def _calibrate(network: Network, description: Description, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Run images in fp32; returns the steps, float64 (C,), of each map that layers read, and logits (N, classes)."""
    highest: dict[int, list[Tensor]] = {layer.reads: [] for layer in description.layers}
    norms = {layer.reads: layer.norm for layer in description.layers}

    def watch(number: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: highest[number].append(output.amax((2, 3)))

    handles = [norm.register_forward_hook(watch(number)) for number, norm in norms.items()]
    logits = torch.cat([network(batch) for batch in images.split(BATCH_SIZE)])
    for handle in handles:
        handle.remove()
    maxima = {number: torch.cat(found).double() for number, found in highest.items()}
    if not all(found.isfinite().all() for found in maxima.values()):
        raise UsageError(f"{network.name} cannot be quantized: its activations are not finite; are these its weights?")
    return {number: steps_of(found) for number, found in maxima.items()}, logits


def steps_of(highest: Tensor) -> Tensor:
    """Choose the value of one unit of a map's bytes, for each channel.

    The highest byte stands for the highest activation on any image, but for at most `MAX_RATIO` times what nine in ten
    images stay below, of those that activate the channel at all. One image that is not like the others would leave them
    few bytes. A channel that is active on too few images to tell is limited by the most active channel of its map. One
    that is never active on these images may be on others: it gets the largest step of its map.

    Args:
        highest: float64 (N, C), the highest activation of each channel on each image.

    Returns:
        float64 (C,).
    """
    num, ordered = len(highest), highest.sort(0).values
    num_active = (ordered > 0).sum(0)
    usual = ordered.gather(0, (num - num_active + (num_active - 1).clamp(min=0) * 9 // 10).clamp(max=num - 1)[None])[0]
    is_known = num_active >= MIN_ACTIVE
    limit = torch.where(is_known, usual, usual[is_known].max() if is_known.any() else torch.inf)
    top = torch.minimum(ordered[-1], MAX_RATIO * limit).clamp(min=0)
    most = top.max() if top.max() > 0 else 1.0
    return torch.where(top > 0, top, most) / quantized.MAX_BYTE
