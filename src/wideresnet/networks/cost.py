"""Parameters, multiply-accumulates and training memory of a network, from shapes alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.models import Network
from wideresnet.networks.shapes import ShapesAlone

MAX_SIZE = 2**16  # px and images: beyond any data set; the bytes of a batch still fit in 64 bits


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage of a network, for one image.

    Attributes:
        name: as in `features`, then "fc".
        shape: shape of the output for one image: (channels, height, width) or (channels,).
        params: number of trainable values.
        macs: multiply-accumulates of the convolutions and linear layers.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """The cost of a network at an input size.

    Attributes:
        input_size: height and width, px.
        batch_size: images in the batch for `activation_bytes`.
        params: number of trainable values.
        buffers: number of values in buffers: running statistics and counters.
        macs: multiply-accumulates of one image's forward pass: direct convolutions and linear layers.
        activation_bytes: tensors that autograd saves for the backward pass of the whole batch, float32.
        stages: the stages of a `Network` in order; empty for any other module. Their params and macs add up.
    """

    input_size: tuple[int, int]
    batch_size: int
    params: int
    buffers: int
    macs: int
    activation_bytes: int
    stages: tuple[StageCost, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of one image's forward pass: one multiplication and one addition per MAC."""
        return 2 * self.macs

    @property
    def training_flops(self) -> int:
        """FLOPs of one image's forward and backward pass: input and weight gradients cost one forward pass each."""
        return 3 * self.flops


def cost(model: nn.Module, input_size: int | tuple[int, int], batch_size: int = 128) -> Cost:
    """Count parameters, multiply-accumulates and training memory from shapes. Model and seed do not change.

    Args:
        model: a module that takes images (B, C, H, W). C is that of a `Network`, or of the first convolution.
        input_size: side, or (height, width), of the images, px.
        batch_size: images in the batch for `activation_bytes`.

    Returns:
        The counts; FLOPs are properties.

    Raises:
        UsageError: a size out of range, or a model without a convolution, whose input channels are unknown.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(size) != 2 or not all(map(_is_size, size)):
        raise UsageError(
            f"input_size={input_size!r}: a side, or (height, width), in whole pixels from 1 to {MAX_SIZE:,}"
        )
    if not _is_size(batch_size):
        raise UsageError(f"batch_size={batch_size!r}: must be a whole number from 1 to {MAX_SIZE:,}")
    height, width = size
    twin = _on_meta(model).train()
    for module in twin.modules():
        if isinstance(module, PreActBlock | PostActBlock):
            module.survival = 1.0  # every block counts
    images = torch.empty(batch_size, _in_channels(twin), height, width, device="meta")
    macs, activation_bytes = _measure(twin, images)
    stages = _stages(twin, images, macs) if isinstance(twin, Network) else ()
    return Cost(
        input_size=(height, width),
        batch_size=batch_size,
        params=sum(p.numel() for p in twin.parameters()),
        buffers=sum(b.numel() for b in twin.buffers()),
        macs=sum(macs.values()),
        activation_bytes=activation_bytes,
        stages=stages,
    )


def _is_size(number: object) -> bool:
    return isinstance(number, int) and 1 <= number <= MAX_SIZE


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a float32 copy with shapes but no values."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        twin = torch.empty(tensor.shape, device="meta", dtype=dtype)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    return copy.deepcopy(model, memo)


def _in_channels(model: nn.Module) -> int:
    if isinstance(model, Network):
        return model.in_channels
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise UsageError(f"cost: {type(model).__name__} has no convolution to tell how many channels its input has")


def saved_bytes(forward: Callable[[], object], model: nn.Module) -> int:
    """Count the bytes of the distinct tensors that autograd saves for the backward pass, without the model's own.

    Args:
        forward: runs a forward pass, of any implementation, on any device (also "meta").
        model: its parameters and buffers do not count.
    """
    # Storages are compared by identity, since tensors on the meta device all have the address 0.
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage  # kept alive, so that its identity is not reused
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


def _measure(model: nn.Module, images: Tensor) -> tuple[dict[nn.Module, int], int]:
    """Run one forward pass. Return the MACs per image of each module, and the bytes that autograd saves."""
    macs: dict[nn.Module, int] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs[module] = macs.get(module, 0) + output.numel() // inputs[0].shape[0] * weight[0].numel()

    counted = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(count) for module in counted]
    # Dropout may draw even from meta tensors: the caller's seed must not change.
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), ShapesAlone():
        activation_bytes = saved_bytes(lambda: model(images), model)
    for handle in handles:
        handle.remove()
    return macs, activation_bytes


def _stages(model: Network, images: Tensor, macs: dict[nn.Module, int]) -> tuple[StageCost, ...]:
    with torch.no_grad(), ShapesAlone():
        shapes = {name: tuple(t.shape[1:]) for name, t in model.features(images).items()}
    shapes["fc"] = (model.num_classes,)
    return tuple(
        StageCost(
            name=name,
            shape=shapes[name],
            params=sum(math.prod(p.shape) for module in modules for p in module.parameters()),
            macs=sum(macs.get(child, 0) for module in modules for child in module.modules()),
        )
        for name, modules in model.stage_modules().items()
    )
