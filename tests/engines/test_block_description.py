"""The description of a network: what engines read off it, and the one-line reasons why there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import random_unstructured
from twins import SMALL, a_network, off

from wideresnet.engines import accelerate, optimize, why_no_kernels
from wideresnet.engines.description import Ineligible, Layer, describe
from wideresnet.networks import Network, create


def row(layer: Layer) -> tuple[Any, ...]:
    conv = layer.conv
    return (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], layer.dropout, layer.reads,
            layer.adds, layer.writes)  # fmt: skip


def test_a_network_is_a_flat_list_of_convolutions_over_numbered_maps() -> None:
    network = create("WRN-10-1-B(3,1,3)", dropout=0.3)
    found = describe(network)
    assert found.stem is network.stem
    assert [row(layer) for layer in found.layers] == [
        # in, out, kernel, stride, dropout, reads, adds, writes
        (16, 16, 3, 1, 0.0, 0, None, 1),
        (16, 16, 1, 1, 0.3, 1, None, 2),
        (16, 16, 3, 1, 0.3, 2, 0, 3),  # an identity shortcut
        (16, 32, 1, 2, 0.0, 3, None, 4),  # a projection
        (16, 32, 3, 2, 0.0, 3, None, 5),
        (32, 32, 1, 1, 0.3, 5, None, 6),
        (32, 32, 3, 1, 0.3, 6, 4, 7),
        (32, 64, 1, 2, 0.0, 7, None, 8),
        (32, 64, 3, 2, 0.0, 7, None, 9),
        (64, 64, 1, 1, 0.3, 9, None, 10),
        (64, 64, 3, 1, 0.3, 10, 8, 11),
    ]
    assert (found.output, found.norms[11]) == (11, network.norm)
    assert [block.projection is None for block in found.blocks] == [True, False, False]
    projection, first, *_ = found.blocks[1].layers
    assert projection.norm is first.norm is network.groups[1][0].norms[0]  # type: ignore[index]
    assert found.added == {0, 4, 8}
    freed = [set(), {1}, {0, 2}, set(), {3}, {5}, {4, 6}, set(), {7}, {9}, {8, 10}]
    assert list(map(set, found.last_uses)) == freed


def test_every_parameter_belongs_to_one_layer() -> None:
    network = create("WRN-16-2")
    found = describe(network)
    listed = [parameter for block in found.blocks for parameter in block.parameters()]
    listed += [*found.stem.parameters(), *found.norms[found.output].parameters(), *found.fc.parameters()]
    assert sorted(map(id, listed)) == sorted(map(id, network.parameters()))


def add_a_hook(network: Any) -> None:
    network.groups[1][0].register_forward_hook(lambda *_: None)


def freeze_norms(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def cut_a_block(network: Any) -> None:
    network.groups[0] = nn.Sequential(nn.Identity())


def cut_a_group(network: Any) -> None:
    network.groups[0] = nn.Identity()


def empty_all_groups(network: Any) -> None:
    network.groups = nn.ModuleList()
    network.norm, network.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)


def change_an_activation(network: Any) -> None:
    network.groups[0][0].activation = nn.Identity()


def change_the_last_activation(network: Any) -> None:
    network.activation = nn.Identity()


def parametrize(network: Any) -> None:
    nn.utils.parametrizations.weight_norm(network.groups[0][0].convs[1])


def prune(network: Any) -> None:
    network.to(memory_format=torch.contiguous_format)
    random_unstructured(network.groups[0][0].convs[1], "weight", 0.5)


def stride_the_scale(network: Any) -> None:
    network.norm.weight = nn.Parameter(torch.rand(128)[::2])


def ignore_running_statistics(network: Any) -> None:
    network.norm.track_running_stats = False


def subclass_the_network(network: Any) -> None:
    network.__class__ = type("Other", (type(network),), {})


def share_a_weight(network: Any) -> None:
    block = network.groups[0][0]
    block.convs[1].weight = block.convs[0].weight


def share_a_module(network: Any) -> None:
    block = network.groups[0][0]
    block.norms[1] = block.norms[0]


def share_a_block(network: Any) -> None:
    network.groups[0].append(network.groups[0][0])


def widen_a_kernel(network: Any) -> None:
    block = network.groups[0][0]
    block.convs[0] = nn.Conv2d(16, 16, (3, 5), padding=(1, 2), bias=False)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("name", "options", "change", "reason"),
    [
        ("WRN-10-1", {"norm": "group"}, None, "GroupNorm"),
        ("WRN-10-1", {"activation": "silu"}, None, "for ReLU"),
        ("WRN-10-1", {"activation": "leaky_relu"}, None, "for ReLU"),
        ("WRN-10-1", {"stochastic_depth": 0.5}, None, "leave out no blocks"),
        ("WRN-10-1.5", {}, None, "multiples of 16 channels"),
        ("ResNet-8", {}, None, "pre-activation networks, and for ImageNet's"),
        ("PreActResNet-18", {}, None, "train pre-activation networks for small images alone"),
        ("WRN-18-0.25", {}, None, "train pre-activation networks for small images alone"),
        ("WRN-10-1", {}, subclass_the_network, "pre-activation networks, and for ImageNet's"),
        ("WRN-10-1", {}, add_a_hook, "hooks"),
        ("WRN-10-1", {"dropout": 0.3}, freeze_norms, "either in training or in evaluation"),
        ("WRN-10-1", {}, change_an_activation, "for ReLU"),
        ("WRN-10-1", {}, change_the_last_activation, "for ReLU"),
        ("WRN-10-1", {}, cut_a_block, "residual blocks"),
        ("WRN-10-1", {}, cut_a_group, "residual blocks"),
        ("WRN-10-1", {}, empty_all_groups, "residual blocks"),
        ("WRN-10-1", {}, parametrize, "Parametrized"),
        ("WRN-10-1", {}, prune, "hooks"),
        ("WRN-10-1", {}, stride_the_scale, "batch normalization"),
        ("WRN-10-1", {}, ignore_running_statistics, "batch normalization"),
        ("WRN-10-1", {}, share_a_weight, "share no parameters"),
        ("WRN-10-1", {}, share_a_module, "share no parameters"),
        ("WRN-10-1", {}, share_a_block, "share no parameters"),
        ("WRN-10-1", {}, widen_a_kernel, "square convolutions"),
    ],
)
def test_what_the_kernels_do_not_know_is_computed_by_pytorch(
    name: str, options: dict[str, Any], change: Callable[[Network], None] | None, reason: str
) -> None:
    network = a_network(name, **options)
    x = torch.randn(2, 3, 32, 32)
    if change is not None:
        assert why_no_kernels(network, x) is None
        change(network)
    found = why_no_kernels(network, x) or ""
    assert reason in found
    assert "\n" not in found
    results = []
    for of in (accelerate(network), network):
        network.zero_grad()
        torch.manual_seed(1)
        results.append(of(x))
        results[-1].square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert off(results[0], results[2]) < 1e-6
    assert off(results[1], results[3]) < 1e-6


def narrow_a_norm(network: Any) -> None:
    network.groups[0][0].norms[1] = nn.BatchNorm2d(32)


def widen_a_convolution(network: Any) -> None:
    network.groups[0][0].convs[0] = nn.Conv2d(16, 32, 3, padding=1, bias=False)


def stride_under_an_identity_shortcut(network: Any) -> None:
    network.groups[0][0].convs[0].stride = (2, 2)


def replace_a_weight(network: Any) -> None:
    network.groups[0][0].convs[0].weight = nn.Parameter(torch.zeros(16, 32, 3, 3))


@pytest.mark.parametrize(
    "change", [narrow_a_norm, widen_a_convolution, stride_under_an_identity_shortcut, replace_a_weight]
)
def test_maps_that_do_not_match_are_pytorchs_error_not_memory_out_of_bounds(change: Callable[[Any], None]) -> None:
    network = create("WRN-10-1")
    change(network)
    with pytest.raises(Ineligible, match="channels and resolutions match"):
        describe(network)
    with pytest.raises((RuntimeError, ValueError)):
        accelerate(network)(torch.randn(SMALL))


def test_a_network_that_shares_parameters_gets_the_sum_of_their_gradients() -> None:
    network = a_network()
    share_a_weight(network)
    plain, x = copy.deepcopy(network), torch.randn(SMALL)
    for of in (accelerate(network), plain):
        of(x).square().sum().backward()
    assert torch.equal(network.groups[0][0].convs[1].weight.grad, plain.groups[0][0].convs[1].weight.grad)  # type: ignore
    assert not optimize(network).has_kernels
