"""`create`: from a name and its options to a network with initial weights.

Initialization:

| layer | distribution | source |
|---|---|---|
| convolution, init="fan_in" | N(0, 2 / fan_in), a variance | He et al. 2015; the authors' code since 2016-09 |
| convolution, init="fan_out" | N(0, 2 / fan_out), a variance | the authors' code before 2016-09 |
| normalization scale, bn_scale="one" | 1 | the authors' code before 2016-05-17; PyTorch |
| normalization scale, bn_scale="uniform" | U(0, 1) | the authors' code since 2016-05-17 |
| normalization shift | 0 | the authors' code; PyTorch |
| linear weight | U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) | Torch's default, which PyTorch kept |
| linear bias | 0 | the authors' code |

Convolution: fan_in = input channels / groups * kernel area, fan_out = output channels * kernel area.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes, human_count, nearest
from wideresnet.machine.host_memory import available_host_memory_bytes
from wideresnet.networks.blocks import Style
from wideresnet.networks.models import Network, PostActNet, PreActNet
from wideresnet.spec.names import NetworkName, parse
from wideresnet.spec.options import NetworkOptions

MAX_COUNT = 10**7  # classes or channels: far beyond any data set; products of sizes still fit in 64 bits


def create(
    name: str | NetworkName,
    num_classes: int = 10,
    *,
    family: str | None = None,
    in_channels: int = 3,
    **options: Any,
) -> Network:
    """Build a network by name. Its initial weights are a function of PyTorch's seed.

    Args:
        name: for example `WRN-28-10`; see `wideresnet.parse`.
        num_classes: number of outputs, at least 1.
        family: "cifar" or "imagenet", for names that exist in both.
        in_channels: channels of the images, at least 1.
        options: fields of `spec.options.NetworkOptions`:
            dropout: probability in [0, 1) before each convolution of a block except the first. The paper uses 0.3 on
                CIFAR and 0.4 on SVHN (Section 3, "Dropout in residual blocks").
            activation: "relu" (the paper), "leaky_relu" (slope 0.1) or "silu".
            norm: "batch" (the paper) or "group" (the largest number of groups, at most 16, that divides the channels).
            bn_momentum: weight of the current batch in the running statistics, in (0, 1].
            bn_eps: added to the variance, above 0.
            init: "fan_in" or "fan_out", initialization of the convolutions: see the table above.
            bn_scale: "one" or "uniform", initial scale of the normalizations: see there.
            stochastic_depth: probability in (0, 1] that the last block's branch is computed for a training batch. It
                decreases linearly with depth from 1 (Huang et al. 2016, who use 0.5). None: every branch is computed.

    Returns:
        The network in training mode, float32.

    Raises:
        UsageError: an unknown name or option, an option outside its range, or more parameters than fit in memory.
    """
    if isinstance(name, NetworkName):
        name, family = str(name), family or name.family
    parsed = parse(name, family)
    _check_count("num_classes", num_classes)
    _check_count("in_channels", in_channels)
    known = [field.name for field in fields(NetworkOptions)]
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(f"{unknown[0]}=: no option of a network; {nearest(unknown[0], known)}")
    _check_memory(parsed, num_classes, in_channels)
    chosen = NetworkOptions(**options)
    if chosen.norm == "group" and chosen.bn_momentum != NetworkOptions().bn_momentum:
        warnings.warn(f"bn_momentum {chosen.bn_momentum:g} has no effect with norm group", stacklevel=2)
    if chosen.dropout and parsed.convs_per_block == 1:
        warnings.warn(
            f"dropout {chosen.dropout:g} has no effect in {parsed}: its blocks have one convolution", stacklevel=2
        )
    style = Style(chosen.activation, chosen.norm, chosen.bn_momentum, chosen.bn_eps, chosen.dropout)
    kind = PreActNet if parsed.preactivation else PostActNet
    survival = _survival(sum(parsed.num_blocks), chosen.stochastic_depth)
    network = kind(parsed, num_classes, in_channels, style, survival)
    if not network.fc.weight.is_meta:  # shapes alone have no values, and drawing none would import half of PyTorch
        _initialize(network, chosen.init, chosen.bn_scale)
    network.options = {"family": parsed.family, "in_channels": in_channels, **chosen.to_json()}
    return network


def _check_memory(name: NetworkName, num_classes: int, in_channels: int) -> None:
    """Refuse a network whose parameters do not fit in memory, unless only its shapes are asked for."""
    if torch.get_default_device().type != "cpu":
        return
    stem, last = name.stem_channels * in_channels * 9, name.group_widths[-1][-1] * num_classes
    params, available = stem + name.num_block_weights + last, available_host_memory_bytes()
    if available and 4 * params > available:  # float32
        raise UsageError(
            f"{name}: {human_count(params)} parameters need {human_bytes(4 * params)} of memory, available are "
            f"{human_bytes(available)}; use fewer or narrower blocks"
        )


def _survival(num_blocks: int, last: float | None) -> list[float]:
    """Return each block's survival probability: 1 - l/L * (1 - last). Source: Huang et al. 2016, Equation 4."""
    return [1 - (i + 1) / num_blocks * (1 - (1 if last is None else last)) for i in range(num_blocks)]


def _initialize(network: Network, init: str, bn_scale: str) -> None:
    """Apply the table above; PyTorch's constructors have already set what is not mentioned here."""
    mode = "fan_in" if init == "fan_in" else "fan_out"
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and bn_scale == "uniform":
            nn.init.uniform_(module.weight)
    nn.init.zeros_(network.fc.bias)


def _check_count(option: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
        raise UsageError(f"{option}={value!r}: must be a whole number from 1 to {MAX_COUNT}")
