"""The one description of a network that all engines interpret; `checks` says why there is none.

`describe` reads the modules of a network into a flat list of layers over numbered maps:

    maps[layer.writes] = relu(after(conv(dropout(relu(norm(maps[layer.reads]))))) + maps[layer.adds])

Pre-activation networks normalize before the convolution, in `norm`, others after it, in `after`. Map 0 is the output of
the stem. A projection is a layer like any other: it reads the same map, through the same normalization, as the first
convolution of its block, and the last convolution adds what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from wideresnet.engines.checks import Ineligible, check
from wideresnet.kernels import library
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.models import PostActNet, PreActNet


@dataclass(frozen=True)
class Layer:
    """A convolution with everything that is fused into it.

    Attributes:
        before: normalizes the input, followed by an activation; None for neither.
        activation: name of the module class of the activations.
        dropout: probability of dropout before the convolution, in training.
        conv: square and padded such that stride 1 keeps the resolution.
        reads: number of the map that is normalized.
        adds: number of the map that is added to the result, or None.
        writes: number of the result.
        after: normalizes the result of the convolution: a normalization, or nothing if that is folded into it already;
            None in pre-activation blocks, whose convolutions have no bias.
        active: whether an activation follows the addition. Without one, but with `after`, the map is only added.
    """

    before: nn.BatchNorm2d | None
    activation: str
    dropout: float
    conv: nn.Conv2d
    reads: int
    adds: int | None
    writes: int
    after: nn.BatchNorm2d | nn.Identity | None = None
    active: bool = False

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The normalization of the input of a layer that has one."""
        assert self.before is not None
        return self.before


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        projection: the convolution of the shortcut; None for an identity shortcut.
        convs: the residual branch, in order.
        survival: probability that stochastic depth computes the branch in training.
    """

    projection: Layer | None
    convs: tuple[Layer, ...]
    survival: float

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All convolutions in the order of execution: those of one resolution after each other."""
        if self.projection is None:
            return self.convs
        strided = next((i for i, layer in enumerate(self.convs) if layer.conv.stride != (1, 1)), 0)
        return (*self.convs[:strided], self.projection, *self.convs[strided:])

    def parameters(self) -> list[Tensor]:
        """Return scale, shift and weight of each convolution of the branch, then the projection's weight."""
        found = [tensor for layer in self.convs for tensor in (layer.norm.weight, layer.norm.bias, layer.conv.weight)]
        return found if self.projection is None else [*found, self.projection.conv.weight]


@dataclass(frozen=True)
class Description:
    """A network.

    Attributes:
        stem: writes map 0.
        blocks: the trunk.
        norm: normalizes the last map, followed by an activation; None for neither. Global average pooling follows.
        activation: name of the module class of the activations outside of blocks.
        fc: the classifier.
        after: as of a layer: if not None, an activation and max pooling of 3x3 with stride 2 follow the stem.
    """

    stem: nn.Conv2d
    blocks: tuple[Block, ...]
    norm: nn.BatchNorm2d | None
    activation: str
    fc: nn.Linear
    after: nn.BatchNorm2d | nn.Identity | None = None

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All convolutions except the stem, in the order of execution."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    @property
    def stem_stride(self) -> int:
        """By how much the stem reduces the resolution, pooling included."""
        return self.stem.stride[0] * (1 if self.after is None else 2)

    @cached_property
    def output(self) -> int:
        """The number of the last map."""
        return self.layers[-1].writes

    @cached_property
    def norms(self) -> dict[int, nn.BatchNorm2d]:
        """The normalization of each map that is read through one. Nothing reads the output of a projection."""
        found = {**{layer.reads: layer.before for layer in self.layers}, self.output: self.norm}
        return {number: norm for number, norm in found.items() if norm is not None}

    @cached_property
    def added(self) -> set[int]:
        """The maps that a layer adds to its result."""
        return {layer.adds for layer in self.layers if layer.adds is not None}

    @cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the maps that nothing needs after it, so that their memory can be freed."""
        last = {number: i for i, layer in enumerate(self.layers) for number in (layer.reads, layer.adds)}
        return tuple(tuple(n for n in last if n is not None and last[n] == i) for i in range(len(self.layers)))


def describe(network: nn.Module, *, native: bool = True) -> Description:
    """Describe a network for the kernels.

    Args:
        network: any module.
        native: whether for the C kernels, which are for fp32 on a CPU.

    Raises:
        Ineligible: the kernels do not know such a network, or not in its present state.
    """
    if type(network) is PreActNet:
        stem, after = network.stem, network.stem_norm
        norm, activation = cast("nn.BatchNorm2d", network.norm), type(network.activation).__name__
    elif type(network) is PostActNet and type(network.maxpool) is nn.MaxPool2d:
        stem, after, norm, activation = network.conv1, network.bn1, None, type(network.activation).__name__
    else:
        raise Ineligible("the kernels are for pre-activation networks, and for ImageNet's")
    kind, read = (PreActBlock, _read_block) if type(network) is PreActNet else (PostActBlock, _read_post_block)
    blocks: list[Block] = []
    for group in network.trunk():
        if type(group) is not nn.Sequential or any(type(block) is not kind for block in group):
            raise Ineligible("the kernels are for networks of residual blocks")
        for block in group:
            blocks.append(read(cast("Any", block), first=blocks[-1].convs[-1].writes if blocks else 0))
    if not blocks:
        raise Ineligible("the kernels are for networks of residual blocks")
    description = Description(stem, tuple(blocks), norm, activation, network.fc, cast("Any", after))
    check(network, description, native=native)
    return description


def describe_for(network: nn.Module, images: Tensor) -> Description:
    """Describe a network for the kernels, if they can compute `network(images)` at this call.

    Raises:
        Ineligible: they cannot.
    """
    if reason := why_not_now(images):
        raise Ineligible(reason)
    if torch.is_grad_enabled() and not network.training:
        raise Ineligible("the kernels have no gradients in evaluation mode")
    if _has_any_global_hook():
        raise Ineligible("the kernels would bypass the hooks of all modules")
    description = describe(network)
    if network.training and not can_train(network):
        raise Ineligible("the kernels train pre-activation networks for small images alone")
    if reason := library.why_unavailable():
        raise Ineligible(reason)
    return description


def can_train(network: nn.Module) -> bool:
    """Return whether the kernels may also train such a network; they compute others in evaluation mode alone."""
    return type(network) is PreActNet and network.stem_norm is None


def why_no_kernels(network: nn.Module, images: Tensor) -> str | None:
    """Return in one line why the kernels would not compute `network(images)` at this call, or None if they would.

    Args:
        network: any module; in training the kernels are for pre-activation networks for small images.
        images: (B, C, H, W).
    """
    try:
        describe_for(network, images)
    except Ineligible as reason:
        return str(reason)
    return None


def why_not_now(images: Tensor) -> str | None:
    """Return why the kernels cannot take these images in the present context, whatever the network is, or None."""
    x = images
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "the kernels are for fp32 on a CPU"
    if is_traced():
        return "the kernels cannot be traced"
    return "there are no images" if x.numel() == 0 else None


def is_traced() -> bool:
    """Return whether compilers, tracers or transforms must see PyTorch's operations: kernels are invisible to them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def norms_to_fold(network: PostActNet) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield the parent and the names of each convolution and of the normalization that follows it."""
    yield network, "conv1", "bn1"
    for block in network.modules():
        if isinstance(block, PostActBlock):
            for i in range(1, block.num_convs + 1):
                yield block, f"conv{i}", f"bn{i}"
            if block.downsample is not None:
                yield block.downsample, "0", "1"


def _read_block(block: PreActBlock, first: int) -> Block:
    """Read a block whose input is the map numbered `first`."""
    norms: list[Any] = [None if type(norm) is nn.Identity else norm for norm in block.norms]
    convs = cast("list[nn.Conv2d]", [*block.convs])
    if (
        not convs
        or len(norms) != len(convs)
        or [norm is None for norm in norms] != [block.preactivated and i == 0 for i in range(len(norms))]
    ):
        raise Ineligible("the kernels are for networks of residual blocks")
    activation, dropout = type(block.activation).__name__, getattr(block.dropout, "p", 0.0)
    layers = [
        Layer(norm, activation, dropout if i else 0.0, conv, 0, None, 0)
        for i, (norm, conv) in enumerate(zip(norms, convs, strict=True))
    ]
    projection = None if block.shortcut is None else Layer(norms[0], activation, 0.0, block.shortcut, 0, None, 0)
    return _connect(layers, projection, first, block.survival)


def _read_post_block(block: PostActBlock, first: int) -> Block:
    """Like `_read_block`, for a block that normalizes after its convolutions."""
    if block.downsample is None and (block.stride != 1 or block.new_channels):
        raise Ineligible("the kernels have no shortcuts that are padded with zeros")
    activation, dropout = type(block.activation).__name__, getattr(block.dropout, "p", 0.0)
    layers = [
        Layer(
            None, activation, dropout if i > 1 else 0.0, getattr(block, f"conv{i}"), 0, None, 0,
            after=getattr(block, f"bn{i}"), active=True,
        )
        for i in range(1, block.num_convs + 1)
    ]  # fmt: skip
    projection = None
    if block.downsample is not None:
        if type(block.downsample) is not nn.Sequential or len(block.downsample) != 2:
            raise Ineligible("the kernels are for networks of residual blocks")
        conv, norm = cast("tuple[Any, Any]", tuple(block.downsample))
        projection = Layer(None, activation, 0.0, conv, 0, None, 0, after=norm)
    return _connect(layers, projection, first, block.survival)


def _connect(layers: list[Layer], projection: Layer | None, first: int, survival: float) -> Block:
    """Number the maps of a block: `first` is its input, the next one what a projection writes."""
    number = shortcut = first
    if projection is not None:
        number = shortcut = first + 1
        projection = replace(projection, reads=first, writes=shortcut)
    found: list[Layer] = []
    for i, layer in enumerate(layers):
        reads = found[-1].writes if found else first
        number += 1
        found.append(replace(layer, reads=reads, adds=shortcut if i == len(layers) - 1 else None, writes=number))
    return Block(projection, tuple(found), survival)
