"""What the kernels refuse, each with a reason in one line: what they would compute otherwise, or read out of bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wideresnet.distributed.sync_norm import SyncBatchNorm2d
from wideresnet.kernels.ops import LANES
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.models import PostActNet, PreActNet

if TYPE_CHECKING:
    from wideresnet.engines.description import Description

NORMS = (nn.BatchNorm2d, SyncBatchNorm2d)
"""Exact classes; in training the second one exchanges its statistics with other processes."""

KNOWN_MODULES = {
    PreActNet, PreActBlock, PostActNet, PostActBlock, nn.Conv2d, *NORMS, nn.Linear, nn.ReLU, nn.Dropout,
    nn.MaxPool2d, nn.Identity, nn.Sequential, nn.ModuleList,
}  # fmt: skip
"""Exact classes: a subclass may compute something else."""


MISMATCH = "the kernels are for layers whose channels and resolutions match"
OTHER_NORM = f"the kernels are for batch normalization of multiples of {LANES} channels"


class Ineligible(Exception):
    """The kernels would not compute what plain PyTorch does; the message, one line, says why."""


def check(network: PreActNet | PostActNet, description: Description, *, native: bool) -> None:
    """Check everything that a description relies on.

    Args:
        native: whether the C kernels will interpret it, which take less than PyTorch's convolutions do.

    Raises:
        Ineligible: the kernels would not compute what the network does.
    """
    _check_options(description)
    _check_modules(network)
    if native:
        _check_native(description)
    _check_layers(description)
    _check_stem(network, description)
    _check_sharing(description)


def _check_options(description: Description) -> None:
    """Refuse options that no kernel implements."""
    if description.activation != "ReLU" or any(layer.activation != "ReLU" for layer in description.layers):
        raise Ineligible("the kernels are for ReLU")
    if any(block.survival != 1 for block in description.blocks):
        raise Ineligible("the kernels leave out no blocks")
    if any(layer.dropout >= 1 for layer in description.layers):
        raise Ineligible("the kernels are for dropout below 1")


def _check_modules(network: nn.Module) -> None:
    """Refuse modules that have been replaced, subclassed or hooked: the kernels would not call them."""
    for module in network.modules():
        if module.training != network.training:
            raise Ineligible("the kernels have all modules either in training or in evaluation mode")
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise Ineligible("the kernels would bypass the hooks of its modules")
        if type(module) not in KNOWN_MODULES:
            raise Ineligible(f"the kernels know no {type(module).__name__}")


def _check_native(description: Description) -> None:
    """Refuse what C has no kernels for: other types and devices, groups, other numbers of channels."""
    for conv in _convs(description):
        if type(conv) is nn.Conv2d and conv.groups != 1:
            raise Ineligible("the kernels are for plain convolutions")
        if not all(_is_plain(tensor) for tensor in conv.parameters()):
            raise Ineligible("the kernels are for fp32 on a CPU")
    for norm in _norms(description):
        if isinstance(norm, NORMS):
            tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            if norm.num_features % LANES or not all(t is None or _is_plain(t) for t in tensors):
                raise Ineligible(OTHER_NORM)


def _check_layers(description: Description) -> None:
    """Refuse other kinds of normalization and convolution, and maps that do not match: C would read past their end."""
    maps = {0: (description.stem.out_channels, 1)}  # channels, and by how much the resolution is reduced
    _check_conv(description.stem, description.after)
    for layer in description.layers:
        conv, (channels, reduction) = layer.conv, maps[layer.reads]
        _check_conv(conv, layer.after)
        maps[layer.writes] = result = (conv.out_channels, reduction * conv.stride[0])
        matches = conv.in_channels == channels and (layer.adds is None or maps[layer.adds] == result)
        if not matches:
            raise Ineligible(MISMATCH)
        if layer.before is not None:
            _check_norm(layer.before, channels)
    channels, fc = maps[description.output][0], description.fc
    if description.norm is not None:
        _check_norm(description.norm, channels)
    if fc.weight.shape != (fc.out_features, channels) or fc.in_features != channels:
        raise Ineligible(MISMATCH)


def _check_stem(network: PreActNet | PostActNet, description: Description) -> None:
    """Refuse a stem of other images, and what follows it unless it is ImageNet's max pooling or nothing."""
    pool, stride = network.maxpool, description.stem.stride
    if network.in_channels != description.stem.in_channels:
        raise Ineligible(MISMATCH)
    if description.after is None and type(pool) is nn.Identity:
        return
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    found = [getattr(pool, option, None) for option in options]
    if description.after is None or found != [3, 2, 1, 1, False, False] or stride not in ((1, 1), (2, 2)):
        raise Ineligible("the kernels are for max pooling of 3x3 with stride 2 after a stem of stride 1 or 2")


def _check_norm(norm: nn.Module, channels: int) -> None:
    if not isinstance(norm, NORMS) or type(norm) not in NORMS or norm.momentum is None or not norm.track_running_stats:
        raise Ineligible(OTHER_NORM)
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if not all(t is not None and t.is_contiguous() and t.shape == (norm.num_features,) for t in tensors):
        raise Ineligible(OTHER_NORM)
    if norm.num_features != channels:
        raise Ineligible(MISMATCH)


def _check_conv(conv: nn.Module, after: nn.Module | None) -> None:
    """Refuse other convolutions. Only before a normalization, or with one folded in, may they have a bias."""
    if type(conv) is not nn.Conv2d or conv.dilation != (1, 1):
        raise Ineligible("the kernels are for plain convolutions")
    if conv.bias is not None and after is None:
        raise Ineligible("the kernels are for plain convolutions without bias")
    side, stride = conv.kernel_size[0], conv.stride[0]
    same = conv.padding == (side // 2, side // 2) and side % 2 == 1 and conv.padding_mode == "zeros"
    if not same or conv.kernel_size != (side, side) or conv.stride != (stride, stride):
        raise Ineligible("the kernels are for square convolutions with a border of zeros")
    if conv.weight.shape != (conv.out_channels, conv.in_channels // conv.groups, side, side):
        raise Ineligible(MISMATCH)
    if conv.bias is not None and conv.bias.shape != (conv.out_channels,):
        raise Ineligible(MISMATCH)
    if after is not None and type(after) is not nn.Identity:
        _check_norm(after, conv.out_channels)


def _check_sharing(description: Description) -> None:
    """Refuse shared parameters: each layer returns its own gradient, and nothing would add them up."""
    owners = (*_norms(description), *_convs(description), description.fc)
    parameters = [id(tensor) for module in owners for tensor in module._parameters.values() if tensor is not None]
    if len(set(parameters)) < len(parameters):
        raise Ineligible("the kernels are for layers that share no parameters")


def _convs(description: Description) -> list[nn.Conv2d]:
    return [description.stem, *(layer.conv for layer in description.layers)]


def _norms(description: Description) -> list[nn.Module]:
    """Return all normalizations, once each. A projection is normalized as the first convolution of its block is."""
    found: list[nn.Module | None] = [layer.before for block in description.blocks for layer in block.convs]
    found += [description.norm, *(layer.after for layer in description.layers), description.after]
    return [norm for norm in found if norm is not None]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"
