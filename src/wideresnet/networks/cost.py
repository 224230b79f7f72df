"""What a network costs, without running any arithmetic: parameters, multiply-accumulates, training memory."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.models import Network

MAX_SIZE = 2**16  # px and images: beyond any data, and the bytes of a batch still fit in 64 bits


@dataclass(frozen=True)
class StageCost:
    """One stage of a network, for one image.

    Attributes:
        name: as in `features`, then "fc".
        shape: of its output for one image: (channels, height, width) or (channels,).
        params: number of trained values.
        macs: multiply-accumulates of its convolutions and linear layers.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """What a network costs at an input size.

    Attributes:
        input_size: height and width, px.
        batch_size: the batch that `activation_bytes` is for.
        params: number of trained values.
        buffers: number of values in buffers: running statistics and counters.
        macs: multiply-accumulates of one image's forward pass: direct convolutions and linear layers.
        activation_bytes: what autograd keeps of the whole batch between forward and backward in float32.
        stages: the stages of a `Network` in order, empty for any other module; their params and macs add up.
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
        """Floating-point operations of one image's forward pass: a multiplication and an addition per MAC."""
        return 2 * self.macs

    @property
    def training_flops(self) -> int:
        """Forward and backward of one image: the gradients of inputs and weights cost a forward pass each."""
        return 3 * self.flops


def cost(model: nn.Module, input_size: int | tuple[int, int], batch_size: int = 128) -> Cost:
    """Counts parameters, multiply-accumulates and training memory from shapes; model and seed do not change.

    Args:
        model: a module that takes images (B, C, H, W); C is its `in_channels`, else its first convolution's.
        input_size: side, or (height, width), of the images, px.
        batch_size: images in the batch that the memory is for.

    Returns:
        The counts; FLOPs as properties.

    Raises:
        UsageError: a size that is no such number, or a model without convolution whose input is unknown.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(size) != 2 or not all(isinstance(n, int) and 1 <= n <= MAX_SIZE for n in (*size, batch_size)):
        raise UsageError(
            f"input size {input_size!r}, batch {batch_size!r}: a side or (height, width), and the batch, "
            f"are whole numbers from 1 to {MAX_SIZE}"
        )
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


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in float32 that has shapes but no values."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        twin = torch.empty_like(tensor, device="meta", dtype=dtype)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    return copy.deepcopy(model, memo)


def _in_channels(model: nn.Module) -> int:
    if isinstance(model, Network):
        return model.in_channels
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise UsageError(f"cost: {type(model).__name__} has no convolution to tell how many channels its input has")


def _measure(model: nn.Module, images: Tensor) -> tuple[dict[nn.Module, int], int]:
    """One forward pass: MACs an image of each module, and bytes of the distinct tensors autograd keeps."""
    macs: dict[nn.Module, int] = {}
    saved: dict[int, torch.UntypedStorage] = {}
    parameters = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs[module] = macs.get(module, 0) + output.numel() // inputs[0].shape[0] * weight[0].numel()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage  # kept alive, so that its address is not used again
        return tensor

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    # A dropout may draw even without values: the caller's seed must not notice.
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        model(images)
    return dict(macs), sum(storage.nbytes() for storage in saved.values())


def _stages(model: Network, images: Tensor, macs: dict[nn.Module, int]) -> tuple[StageCost, ...]:
    with torch.no_grad():
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
