"""A network made ready for inference in 8 bits, by what its activations are on training images."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.engines.winograd import layers_of, why_not_for
from wideresnet.kernels import ops, quantised
from wideresnet.kernels.library import why_unavailable
from wideresnet.kernels.quantised import QuantisedConv, Quantiser
from wideresnet.networks.blocks import PreActBlock
from wideresnet.networks.models import Network, PreActNet

BATCH_SIZE = 100
"""Of calibration: enough to fill a processor."""


class Quantised(nn.Module):
    """A snapshot of a pre-activation network for inference on a CPU, in 8 bits; later changes do not reach it.

    What a convolution takes, the normalised and activated maps, is rounded to 8 bits; the sums that run along the
    shortcuts, the stem and the classifier stay in fp32. Outputs are close to the network's, not equal.

    Args:
        network: a pre-activation network for small images with batch normalisation and ReLU.
        images: preprocessed training images (N, C, H, W); a few hundred do. A channel's highest activation on them
            becomes its 255.

    Attributes:
        how: what was done, in words.

    Raises:
        UsageError: this network or machine has no such kernels, there are no images, or activations are not finite.
    """

    def __init__(self, network: Network, images: Tensor) -> None:
        super().__init__()
        network.check(images)
        if not len(images):
            raise UsageError(f"{network.name}: no images to quantise by; give a few hundred of the training images")
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        if (problem := _problem(frozen, images)) is not None:
            raise UsageError(f"{network.name} cannot be quantised here: {problem}; use it in fp32")
        self.network = cast("PreActNet", frozen.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.steps = _steps(self.network, images)
        self._transform()
        self.how = f"8-bit kernels, calibrated on {len(images):,} images"
        self.eval()

    def train(self, mode: bool = True) -> Quantised:
        """Stays in evaluation mode: there is nothing in it that learns."""
        del mode
        return super().train(False)

    def _transform(self) -> None:
        """Weights in the form that the kernels take on this machine."""
        blocks = [cast("PreActBlock", block) for group in self.network.groups for block in cast("nn.Sequential", group)]
        self.blocks = [_Block(block, self.steps) for block in blocks]
        self.last = ops.normalise_running(cast("nn.BatchNorm2d", self.network.norm))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: other weights need a calibration of their own.

        Raises:
            UsageError: always.
        """
        del args, kwargs
        raise UsageError(f"{self.network.name} in 8 bits keeps its weights; load others into a network, quantise that")

    def __getstate__(self) -> dict[str, Any]:
        """Without what another machine may have in another form."""
        return {name: value for name, value in self.__dict__.items() if name not in ("blocks", "last")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (problem := why_unavailable()) is not None:
            raise UsageError(f"{self.network.name} in 8 bits cannot run here: {problem}; use it in fp32")
        self._transform()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, C, H, W), as `Network.forward` gives them; also under autocast.

        An image that is not finite has scores that are no numbers.

        Raises:
            UsageError: the images have another shape, are not float32 on the CPU, or the call is traced.
        """
        self.network.check(x)
        with torch.autocast("cpu", enabled=False):
            if not len(x):
                return self.network(x)
            if (problem := why_not_for(x)) is not None:
                raise UsageError(f"{self.network.name} in 8 bits, {x.dtype} on {x.device}: {problem}; use it in fp32")
            lost = ~x.flatten(1).sum(1, keepdim=True).isfinite()  # bytes would make numbers of them
            return self._forward(x).masked_fill_(lost, torch.nan)

    def _forward(self, x: Tensor) -> Tensor:
        x = ops.channels_last(self.network.stem(x.contiguous(memory_format=torch.channels_last)))
        values, q = cast("Tensor | None", x), self.blocks[0].first(x)
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            values, q = block(values, q, following)
        x = ops.activate(cast("Tensor", values), self.last)
        return self.network.fc(x.mean((2, 3)))


class _Block:
    """A pre-activation block in 8 bits."""

    def __init__(self, block: PreActBlock, steps: dict[nn.Module, Tensor]) -> None:
        layers = layers_of(block)
        self.quantisers = [Quantiser.after(ops.normalise_running(norm), steps[norm]) for norm, _ in layers]
        self.first = self.quantisers[0]
        self.convs = [QuantisedConv(conv, steps[norm]) for norm, conv in layers]
        self.projection = None if block.shortcut is None else QuantisedConv(block.shortcut, steps[layers[0][0]])

    def __call__(
        self, x: Tensor | None, q: Tensor | None, following: _Block | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The block's output: values where the shortcut of the following block takes them, bytes for its convolution.

        Args:
            x, q: the same of this block's input.
            following: None behind the last block, whose output is needed as values only.
        """
        assert q is not None
        shortcut = x if self.projection is None else self.projection(q)[0]
        for conv, quantiser in zip(self.convs[:-1], self.quantisers[1:], strict=True):
            q = cast("Tensor", conv(q, quantiser=quantiser, values=False)[1])
        values = following is None or following.projection is None
        return self.convs[-1](q, add=shortcut, quantiser=following and following.first, values=values)


@torch.no_grad()
def _problem(network: Network, images: Tensor) -> str | None:
    """Why the kernels cannot run; None where they can."""
    if reason := network.why_no_kernels(images):
        return reason
    convs = [conv for block in network.modules() if isinstance(block, PreActBlock) for conv in block.modules()]
    if not all(quantised.fits(conv) for conv in convs if isinstance(conv, nn.Conv2d)):
        return f"the kernels are for 1x1 and 3x3 convolutions of multiples of {ops.LANES} channels"
    return None


@torch.no_grad()
def _steps(network: PreActNet, images: Tensor) -> dict[nn.Module, Tensor]:
    """For each normalisation, float64 (C,): a 255th of the highest activation of each channel.

    A channel that is never active on these images may be on others: it gets the highest step of its layer.
    """
    highest: dict[nn.Module, Tensor] = {}

    def watch(norm: nn.Module, _: object, output: Tensor) -> None:
        found = output.amax((0, 2, 3)).double()
        highest[norm] = torch.maximum(highest[norm], found) if norm in highest else found

    norms = [norm for group in network.groups for norm in group.modules() if isinstance(norm, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(watch) for norm in norms]
    for batch in images.split(BATCH_SIZE):
        network(batch)
    for handle in handles:
        handle.remove()
    if not all(found.isfinite().all() for found in highest.values()):
        raise UsageError(f"{network.name} cannot be quantised: its activations are not finite; are these its weights?")
    steps = {}
    for norm, found in highest.items():
        most = found.max() if found.max() > 0 else 1.0
        steps[norm] = torch.where(found > 0, found, most) / quantised.MAX_BYTE
    return steps
