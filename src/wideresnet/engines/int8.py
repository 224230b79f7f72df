"""Inference in 8 bits: a snapshot of a network, calibrated on training images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import ceil_div, spread
from wideresnet.base.errors import UsageError
from wideresnet.engines.description import Description, Ineligible, describe, describe_for, why_not_now
from wideresnet.engines.program import check_convs, lower
from wideresnet.kernels import library, quantized
from wideresnet.networks.models import Network

FEW_TILES = 7
"""A 3x3 convolution of stride 1 with at most this many tiles of 4x4 outputs is computed directly.

For each pair of channels the products of T tiles take 36 T / 32 instructions and read 72 bytes of weights; those of
the definition take 144 T / 64 and read 9. Weights arrive at 8 to 10 bytes per cycle.
"""

BATCH_SIZE, BATCH_PIXELS = 100, 100 * 32 * 32  # at once in calibration; enough to keep a processor busy

NUM_CALIBRATION_IMAGES = 1000
"""Images by which a network is quantized, at most. With more nothing changes.

Measured on a WRN-16-2: its logits on CIFAR-10's test set change by 0.8 %, as with 2,000 images; with 100 by 1.9 %.
"""

CALIBRATION_PIXELS = 300 * 224**2
"""Pixels of these images, at most: large ones are many places each, and take longer. Other engines take 300 images."""

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


def quantize(network: Network, images: Tensor, *, batch_size: int = 64) -> Quantized:
    """Prepare a network for inference in 8 bits on a CPU: faster than `optimize`, but not exact.

    The inputs of the convolutions (normalized and activated maps) are rounded to 8 bits. The stem, the classifier and
    the sums along the shortcuts stay in fp32; sums that ReLU follows have 16 bits in memory. The result is a snapshot:
    later changes to the network do not affect it.

    Args:
        network: a pre-activation network, or one for ImageNet, with batch normalization and ReLU; not modified.
        images: preprocessed training images (N, C, H, W); a few hundred suffice. Of more than 1,000 (300 of
            224 px), as many are taken, evenly spread. They decide what the highest byte of each channel stands for.
        batch_size: of the calls it is for, which decides how layers are computed: 1 for the lowest latency. Any batch
            can be given later, and an image has the same logits in all of them.

    Returns:
        A module with the `forward` of the network in evaluation mode, approximately, without gradients.

    Raises:
        UsageError: this network or this machine has no 8-bit kernels, there are no images, activations are not finite,
            or the logits of the images in 8 bits are not those in fp32.
    """
    return Quantized(network, images, batch_size=batch_size)


class Quantized(nn.Module):
    """See `quantize`.

    Attributes:
        network: the copy that was calibrated, in fp32.
        steps: for each map that is quantized, float64 (C,): the value of one unit of its bytes.
        direct: for each layer whether its weights have 8 bits and are used as they are.
        change: how much the logits of nine in ten calibration images change at most, relative to their norm.
        how: what was done, in words.
    """

    def __init__(self, network: Network, images: Tensor, *, batch_size: int = 64) -> None:
        super().__init__()
        network.check(images)
        if not len(images):
            raise UsageError(f"{network.name}: no images to quantize by; give a few hundred of the training images")
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        try:
            with torch.no_grad():
                description = describe_for(frozen, images)
            check_convs(description)
        except Ineligible as reason:
            raise UsageError(f"{network.name} cannot be quantized here: {reason}; use it in fp32") from None
        self.network = cast("Network", frozen.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        images = images[spread(len(images), num_to_calibrate(*images.shape[2:]))]
        self.direct = choose_direct(description, batch_size, *images.shape[2:])
        steps, logits = _calibrate(self.network, description, images)
        self.steps = balance(description, steps, self.direct)
        self._prepare()
        self.eval()
        self.change, self.how = self._compare(images, logits)

    def _compare(self, images: Tensor, logits: Tensor) -> tuple[float, str]:
        """Compare the calibration images in 8 bits with their fp32 logits; returns `change` and `how`."""
        found = torch.cat([self(batch) for batch in batches(images)])
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
        self._program = lower(describe(self.network), self.steps, self.direct)

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
            return self._program(x)


def choose_direct(description: Description, batch_size: int, height: int, width: int) -> list[bool]:
    """Choose for each layer whether 8 bits are used as they are, instead of 16 in tiles.

    Where the processor multiplies bytes in one instruction, the definition takes fewer instructions for 1x1 and for
    strided convolutions. For 3x3 of stride 1 tiles take half as many, but read eight times as many weights: see
    `FEW_TILES`. The choice depends on shapes alone, so that results are reproducible.

    Args:
        description: of the network.
        batch_size, height, width: of the images it is for.
    """
    fast, chosen = quantized.direct_is_fast(), []
    sizes = {0: (ceil_div(height, description.stem_stride), ceil_div(width, description.stem_stride))}
    for layer in description.layers:
        conv, (height, width) = layer.conv, sizes[layer.reads]
        sizes[layer.writes] = ceil_div(height, conv.stride[0]), ceil_div(width, conv.stride[0])
        is_tiled = conv.kernel_size == (3, 3) and conv.stride == (1, 1)
        few = batch_size * ceil_div(height, 4) * ceil_div(width, 4) <= FEW_TILES
        exact = conv.weight[0].numel() * quantized.MAX_BYTE * quantized.MAX_SIGNED_BYTE <= quantized.MAX_SUM
        chosen.append(fast and exact and (few or not is_tiled))
    return chosen


def num_to_calibrate(height: int, width: int) -> int:
    """Return by how many images of a size a network is quantized, at most."""
    return max(FEW_IMAGES, min(NUM_CALIBRATION_IMAGES, CALIBRATION_PIXELS // (height * width)))


def batches(images: Tensor) -> Sequence[Tensor]:
    """Divide images for calibration, so that large ones do not fill the memory."""
    return images.split(max(1, min(BATCH_SIZE, BATCH_PIXELS // images[0, 0].numel())))


@torch.no_grad()
def _calibrate(network: Network, description: Description, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Run images in fp32; returns the steps, float64 (C,), of each map that layers read, and logits (N, classes)."""
    highest: dict[int, list[Tensor]] = {layer.reads: [] for layer in description.layers}
    readers = {layer.reads: layer.conv for layer in description.layers}  # one of each map

    def watch(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: highest[number].append(inputs[0].amax((2, 3)))

    handles = [conv.register_forward_pre_hook(watch(number)) for number, conv in readers.items()]
    logits = torch.cat([network(batch) for batch in batches(images)])
    for handle in handles:
        handle.remove()
    maxima = {number: torch.cat(found).double() for number, found in highest.items()}
    if not all(found.isfinite().all() for found in maxima.values()):
        raise UsageError(f"{network.name} cannot be quantized: its activations are not finite; are these its weights?")
    return {number: steps_of(found) for number, found in maxima.items()}, logits


def balance(description: Description, steps: dict[int, Tensor], direct: Sequence[bool]) -> dict[int, Tensor]:
    """Make the steps of the channels of a map more alike, where weights of 8 bits take them in.

    Steps are folded into the weights. After a normalization channels are alike. But where ReLU follows a sum, a few are
    many times as large as the others, whose weights would then round to nothing. So the ratios of steps are reduced to
    their square roots. Own measurement, WRN-50-0.25-bottleneck trained to 50 % on CIFAR-10 at 64 px, change of the
    logits by exponent: 0 (one step for the map) 0.22, 0.25 0.08, 0.5 0.05, 0.75 0.09, 1 (as they are) 0.35.

    Source: Xiao et al. 2023 (arXiv 2211.10438), Section 4, for activations and weights that share the difficulty.
    """
    folded = {layer.reads for layer, is_direct in zip(description.layers, direct, strict=True) if is_direct}
    unlike = folded - description.norms.keys()
    return {number: (step * step.max()).sqrt() if number in unlike else step for number, step in steps.items()}


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
