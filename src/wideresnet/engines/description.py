"""The one description of a network that all engines interpret, and the one place that says why there is none.

`describe` reads the modules of a pre-activation network into a flat list of layers over numbered maps:

    maps[layer.writes] = conv(dropout(relu(norm(maps[layer.reads])))) + maps[layer.adds]

Map 0 is the output of the stem. A projection is a layer like any other: it reads the same map, through the same
normalization, as the first convolution of its block, and the last convolution adds what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from wideresnet.kernels import library
from wideresnet.kernels.ops import LANES
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.models import PostActNet, PreActNet

KNOWN_MODULES = {
    PreActNet, PreActBlock, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, nn.Sequential,
    nn.ModuleList,
}  # fmt: skip
"""Exact classes: a subclass may compute something else."""


class Ineligible(Exception):
    """The kernels would not compute what plain PyTorch does; the message, one line, says why."""


@dataclass(frozen=True)
class Layer:
    """A convolution with everything that is fused into it.

    Attributes:
        norm: normalizes the input.
        activation: name of the module class that follows the normalization.
        dropout: probability of dropout before the convolution, in training.
        conv: square and padded such that stride 1 keeps the resolution.
        reads: number of the map that is normalized.
        adds: number of the map that is added to the result, or None.
        writes: number of the result.
    """

    norm: nn.BatchNorm2d
    activation: str
    dropout: float
    conv: nn.Conv2d
    reads: int
    adds: int | None
    writes: int


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
        """All convolutions in the order of execution."""
        return self.convs if self.projection is None else (self.projection, *self.convs)

    def parameters(self) -> list[Tensor]:
        """Return scale, shift and weight of each convolution of the branch, then the projection's weight."""
        found = [tensor for layer in self.convs for tensor in (layer.norm.weight, layer.norm.bias, layer.conv.weight)]
        return found if self.projection is None else [*found, self.projection.conv.weight]


@dataclass(frozen=True)
class Description:
    """A pre-activation network for small images.

    Attributes:
        stem: writes map 0.
        blocks: the trunk.
        norm: normalizes the last map; ReLU and global average pooling follow.
        activation: name of the module class that follows `norm`.
        fc: the classifier.
    """

    stem: nn.Conv2d
    blocks: tuple[Block, ...]
    norm: nn.BatchNorm2d
    activation: str
    fc: nn.Linear

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All convolutions except the stem, in the order of execution."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    @cached_property
    def output(self) -> int:
        """The number of the last map."""
        return self.layers[-1].writes

    @cached_property
    def norms(self) -> dict[int, nn.BatchNorm2d]:
        """The normalization of each map that is read. Nothing reads the output of a projection."""
        return {**{layer.reads: layer.norm for layer in self.layers}, self.output: self.norm}

    @cached_property
    def added(self) -> set[int]:
        """The maps that a layer adds to its result."""
        return {layer.adds for layer in self.layers if layer.adds is not None}

    @cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the maps that nothing needs after it, so that their memory can be freed."""
        last = {number: i for i, layer in enumerate(self.layers) for number in (layer.reads, layer.adds)}
        return tuple(tuple(n for n in last if n is not None and last[n] == i) for i in range(len(self.layers)))


def describe(network: nn.Module) -> Description:
    """Describe a network for the kernels.

    Raises:
        Ineligible: the kernels do not know such a network, or not in its present state.
    """
    if type(network) is not PreActNet or network.stem_norm is not None:
        raise Ineligible("the kernels are for pre-activation networks for small images")
    blocks: list[Block] = []
    for group in network.groups:
        if type(group) is not nn.Sequential or any(type(block) is not PreActBlock for block in group):
            raise Ineligible("the kernels are for pre-activation blocks")
        for block in cast("Iterable[PreActBlock]", group):
            blocks.append(_read_block(block, first=blocks[-1].convs[-1].writes if blocks else 0))
    if not blocks:
        raise Ineligible("the kernels are for pre-activation blocks")
    norm, activation = cast("nn.BatchNorm2d", network.norm), type(network.activation).__name__
    description = Description(network.stem, tuple(blocks), norm, activation, network.fc)
    _check_options(description)
    _check_modules(network)
    _check_layers(description)
    _check_sharing(description)
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
    if reason := library.why_unavailable():
        raise Ineligible(reason)
    return description


def why_no_kernels(network: nn.Module, images: Tensor) -> str | None:
    """Return in one line why the kernels would not compute `network(images)` at this call, or None if they would.

    Args:
        network: any module; the kernels are for pre-activation networks for small images.
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
    # Compilers, tracers and transforms must see PyTorch's operations: what happens in C is invisible to them.
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    ):
        return "the kernels cannot be traced"
    return "there are no images" if x.numel() == 0 else None


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
    norms, convs = cast("list[nn.BatchNorm2d]", [*block.norms]), cast("list[nn.Conv2d]", [*block.convs])
    if block.preactivated or not convs or len(norms) != len(convs):
        raise Ineligible("the kernels are for pre-activation blocks")
    activation, dropout = type(block.activation).__name__, getattr(block.dropout, "p", 0.0)
    projection, shortcut, number = None, first, first
    if block.shortcut is not None:
        shortcut = number = first + 1
        projection = Layer(norms[0], activation, 0.0, block.shortcut, first, None, shortcut)
    layers: list[Layer] = []
    for i, (norm, conv) in enumerate(zip(norms, convs, strict=True)):
        reads = layers[-1].writes if layers else first
        adds = shortcut if i == len(convs) - 1 else None
        number += 1
        layers.append(Layer(norm, activation, dropout if i else 0.0, conv, reads, adds, number))
    return Block(projection, tuple(layers), block.survival)


def _check_options(description: Description) -> None:
    """Refuse options that no kernel implements."""
    if description.activation != "ReLU" or any(layer.activation != "ReLU" for layer in description.layers):
        raise Ineligible("the kernels are for ReLU")
    if any(block.survival != 1 for block in description.blocks):
        raise Ineligible("the kernels leave out no blocks")
    if any(layer.dropout >= 1 for layer in description.layers):
        raise Ineligible("the kernels are for dropout below 1")


def _check_modules(network: PreActNet) -> None:
    """Refuse modules that have been replaced, subclassed or hooked: the kernels would not call them."""
    for module in network.modules():
        if module.training != network.training:
            raise Ineligible("the kernels have all modules either in training or in evaluation mode")
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise Ineligible("the kernels would bypass the hooks of its modules")
        if type(module) not in KNOWN_MODULES:
            raise Ineligible(f"the kernels know no {type(module).__name__}")


def _check_layers(description: Description) -> None:
    """Refuse other kinds of normalization and convolution, and maps that do not match: C would read past their end."""
    maps = {0: (description.stem.out_channels, 1)}  # channels, and by how much the resolution is reduced
    _check_conv(description.stem)
    for layer in description.layers:
        conv, (channels, reduction) = layer.conv, maps[layer.reads]
        _check_norm(layer.norm)
        _check_conv(conv)
        maps[layer.writes] = result = (conv.out_channels, reduction * conv.stride[0])
        matches = layer.norm.num_features == conv.in_channels == channels
        if not matches or (layer.adds is not None and maps[layer.adds] != result):
            raise Ineligible("the kernels are for layers whose channels and resolutions match")
    _check_norm(description.norm)
    if description.norm.num_features != maps[description.output][0]:
        raise Ineligible("the kernels are for layers whose channels and resolutions match")


def _check_norm(norm: nn.Module) -> None:
    if type(norm) is nn.BatchNorm2d and norm.momentum is not None and norm.track_running_stats:
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        shape = (norm.num_features,)
        plain = all(t is not None and _is_plain(t) and t.is_contiguous() and t.shape == shape for t in tensors)
        if plain and norm.num_features % LANES == 0:
            return
    raise Ineligible(f"the kernels are for batch normalization of multiples of {LANES} channels")


def _check_conv(conv: nn.Module) -> None:
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.groups != 1 or conv.dilation != (1, 1):
        raise Ineligible("the kernels are for plain convolutions without bias")
    side, stride = conv.kernel_size[0], conv.stride[0]
    same = conv.padding == (side // 2, side // 2) and side % 2 == 1 and conv.padding_mode == "zeros"
    if not same or conv.kernel_size != (side, side) or conv.stride != (stride, stride):
        raise Ineligible("the kernels are for square convolutions with a border of zeros")
    if not _is_plain(conv.weight):
        raise Ineligible("the kernels are for fp32 on a CPU")
    if conv.weight.shape != (conv.out_channels, conv.in_channels, side, side):
        raise Ineligible("the kernels are for layers whose channels and resolutions match")


def _check_sharing(description: Description) -> None:
    """Refuse shared parameters: each layer returns its own gradient, and nothing would add them up."""
    norms = [layer.norm for block in description.blocks for layer in block.convs] + [description.norm]
    convs = [description.stem, *(layer.conv for layer in description.layers)]
    owners = (*norms, *convs, description.fc)
    parameters = [id(tensor) for module in owners for tensor in module._parameters.values() if tensor is not None]
    if len(set(parameters)) < len(parameters):
        raise Ineligible("the kernels are for layers that share no parameters")


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"
