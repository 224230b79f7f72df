"""ImageNet's networks by the kernels: the logits of float64 at any size, an image's bits in any batch the same."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from twins import a_network, off

from wideresnet.engines import accelerate, optimize, why_no_kernels
from wideresnet.engines.description import Ineligible, Layer, describe
from wideresnet.engines.program import lower
from wideresnet.networks import create

pytestmark = pytest.mark.usefixtures("needs_kernels")

NETWORKS = ["WRN-18-0.5", "ResNet-34", "ResNet-50", "PreActResNet-18"]
CASES = [*itertools.product(NETWORKS, [(64, 64), (33, 47), (1, 1)]), ("WRN-50-2-bottleneck", (39, 33))]


def errors(name: str, x: Tensor, **options: Any) -> tuple[float, float]:
    """Distance to the logits of float64: of the kernels, and of PyTorch."""
    network = a_network(name, **options).eval()
    with torch.no_grad():
        wanted, plain = copy.deepcopy(network).double()(x.double()), network(x)
    optimized = optimize(network)
    assert optimized.has_kernels
    return off(optimized(x), wanted), off(plain, wanted)


@pytest.mark.parametrize(("name", "size"), CASES, ids=str)
def test_logits_are_those_of_float64(name: str, size: tuple[int, int]) -> None:
    found, plain = errors(name, torch.randn(2, 3, *size))
    assert found < 1e-6 + 5 * plain


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(["WRN-18-0.25", "WRN-18-0.5", "ResNet-18"]), st.integers(1, 3), st.integers(1, 75),
    st.integers(1, 75), st.sampled_from([1, 3, 4]),
)  # fmt: skip
def test_every_size_gives_the_logits_of_float64(name: str, batch: int, height: int, width: int, channels: int) -> None:
    torch.manual_seed(height * width)
    found, plain = errors(name, torch.randn(batch, channels, height, width), in_channels=channels)
    assert found < 2e-6 + 5 * plain


@pytest.mark.parametrize("name", ["WRN-18-0.5", "ResNet-50", "PreActResNet-18"])
def test_an_image_has_the_same_bits_in_any_batch_on_any_number_of_threads_and_in_any_memory(name: str) -> None:
    x, before = torch.randn(19, 3, 45, 70), torch.get_num_threads()
    network = optimize(a_network(name).eval())
    together = network(x)
    assert torch.equal(torch.cat([network(image[None]) for image in x]), together)
    assert torch.equal(torch.cat([network(part) for part in x.split(7)]), together)
    assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), together)
    try:
        for num in (1, 3, 4):
            torch.set_num_threads(num)
            assert torch.equal(network(x), together)
    finally:
        torch.set_num_threads(before)


def row(layer: Layer) -> tuple[Any, ...]:
    conv = layer.conv
    return (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], layer.active, layer.reads,
            layer.adds, layer.writes)  # fmt: skip


def test_bottlenecks_are_rows_of_the_same_list_and_run_resolution_by_resolution() -> None:
    network = create("ResNet-50")
    found = describe(network)
    assert (found.stem, found.after, found.norm) == (network.conv1, network.bn1, None)
    first = [row(layer) for layer in found.layers[:7]]
    assert first == [
        # in, out, kernel, stride, active, reads, adds, writes
        (64, 256, 1, 1, False, 0, None, 1),  # a projection
        (64, 64, 1, 1, True, 0, None, 2),
        (64, 64, 3, 1, True, 2, None, 3),
        (64, 256, 1, 1, True, 3, 1, 4),
        (256, 64, 1, 1, True, 4, None, 5),
        (64, 64, 3, 1, True, 5, None, 6),
        (64, 256, 1, 1, True, 6, 4, 7),  # an identity shortcut
    ]
    strides = [layer.conv.stride[0] for layer in found.blocks[3].layers]
    assert strides == [1, 2, 2, 1]  # the projection after the convolution that still has the full resolution
    assert all(layer.before is None and layer.after is not None for layer in found.layers)


def test_a_folded_network_and_its_original_have_the_same_program() -> None:
    network, x = a_network("WRN-18-0.25").eval(), torch.randn(2, 3, 40, 40)
    once = optimize(network)
    assert off(lower(describe(network))(x), once(x)) < 1e-5
    assert torch.equal(optimize(once.network)(x), once(x))


def test_nan_and_inf_stay_in_their_own_image() -> None:
    network, x = optimize(a_network("WRN-18-0.25").eval()), torch.randn(4, 3, 37, 37)
    expected = network(x)
    x[1, 0, 3, 3], x[2, 1, 30, 0] = torch.nan, torch.inf
    found = network(x)
    assert found[1:3].isnan().all()
    assert torch.equal(found[::3], expected[::3])


def add_a_hook(network: Any) -> None:
    network.layer2[0].register_forward_hook(lambda *_: None)


def pool_by_means(network: Any) -> None:
    network.maxpool = nn.AvgPool2d(3, 2, 1)


def pool_otherwise(network: Any) -> None:
    network.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)


def pool_nothing(network: Any) -> None:
    network.maxpool = nn.Identity()


def drop_a_normalization(network: Any) -> None:
    network.layer1[0].bn1 = nn.ReLU()


def lengthen_a_projection(network: Any) -> None:
    network.layer2[0].downsample.append(nn.Identity())


def stride_a_stem_by_three(network: Any) -> None:
    network.conv1.stride = (3, 3)


def share_a_normalization(network: Any) -> None:
    network.layer1[1].bn2 = network.layer1[1].bn1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_a_hook, "hooks"),
        (pool_by_means, "for ImageNet's"),
        (pool_otherwise, "max pooling of 3x3"),
        (pool_nothing, "for ImageNet's"),
        (drop_a_normalization, "batch normalization"),
        (lengthen_a_projection, "residual blocks"),
        (stride_a_stem_by_three, "max pooling of 3x3"),
        (share_a_normalization, "share no parameters"),
    ],
)
def test_what_the_kernels_do_not_know_is_computed_by_pytorch(change: Callable[[Any], None], reason: str) -> None:
    network, x = a_network("WRN-18-0.25").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert why_no_kernels(network, x) is None
        change(network)
        network.eval()
        assert reason in (why_no_kernels(network, x) or "")
        assert off(accelerate(network)(x), network(x)) < 1e-6


def widen_a_normalization(network: Any) -> None:
    network.layer1[0].bn1 = nn.BatchNorm2d(32)


def shorten_a_bias(network: Any) -> None:
    network.layer1[0].conv1.bias = nn.Parameter(torch.zeros(1))


def read_other_images(network: Any) -> None:
    network.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)


def widen_the_classifier(network: Any) -> None:
    network.fc = nn.Linear(160, 10)


@pytest.mark.parametrize("change", [widen_a_normalization, shorten_a_bias, read_other_images, widen_the_classifier])
def test_maps_that_do_not_match_never_reach_c(change: Callable[[Any], None]) -> None:
    network = create("WRN-18-0.25").eval()
    change(network)
    network.eval()
    with pytest.raises(Ineligible, match="channels and resolutions match"):
        describe(network)


def test_groups_dropped_blocks_and_zero_padded_shortcuts_are_computed_by_pytorch() -> None:
    for name, options in [("ResNeXt-50-32x4d", {}), ("ResNet-18", {"stochastic_depth": 0.5}), ("ResNet-20", {})]:
        assert not optimize(a_network(name, **options).eval()).has_kernels


def test_a_bias_before_a_normalization_is_folded_too() -> None:
    network, x = a_network("WRN-18-0.25").eval(), torch.randn(2, 3, 33, 33)
    network.layer1[0].conv2.bias = nn.Parameter(torch.randn(16))  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert why_no_kernels(network, x) is None
        assert off(lower(describe(network))(x), network(x)) < 1e-5


def test_training_is_pytorchs() -> None:
    network, x = a_network("WRN-18-0.25").train(), torch.randn(2, 3, 32, 32)
    assert "train pre-activation networks for small images alone" in (why_no_kernels(network, x) or "")
