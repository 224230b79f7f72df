from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.networks.blocks import PostActBlock, PreActBlock, Style

PAPER_BLOCKS = [(1, 3, 1), (3, 1), (1, 3), (3, 1, 1), (3, 3), (3, 1, 3), (3,), (3, 3, 3), (3, 3, 3, 3)]
State = dict[str, Tensor]


def slow_norm(x: Tensor, state: State, prefix: str, training: bool) -> Tensor:
    """Batch normalization, by its definition."""
    mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    scaled = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
    return scaled * state[f"{prefix}.weight"][:, None, None] + state[f"{prefix}.bias"][:, None, None]


def slow_relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def slow_preact(
    x: Tensor,
    state: State,
    kernels: Sequence[int],
    stride: int,
    stride_at: int,
    training: bool,
    dropout: float,
) -> Tensor:
    y, shortcut = x, x
    for i, kernel in enumerate(kernels):
        y = slow_relu(slow_norm(y, state, f"norms.{i}", training))
        if i == 0 and "shortcut.weight" in state:
            shortcut = F.conv2d(y, state["shortcut.weight"], stride=stride)
        if i > 0:
            y = F.dropout(y, dropout, training)
        step = stride if i == stride_at else 1
        y = F.conv2d(y, state[f"convs.{i}.weight"], stride=step, padding=(kernel - 1) // 2)
    return shortcut + y


def slow_postact(x: Tensor, state: State, num_convs: int, stride: int, training: bool, dropout: float) -> Tensor:
    y = x
    for i in range(1, num_convs + 1):
        weight = state[f"conv{i}.weight"]
        y = F.conv2d(y, weight, stride=stride if i == 1 else 1, padding=weight.shape[-1] // 2)
        y = slow_norm(y, state, f"bn{i}", training)
        if i < num_convs:
            y = F.dropout(slow_relu(y), dropout, training)
    shortcut = torch.zeros_like(y)
    shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
    return slow_relu(y + shortcut)


def randomize(block: nn.Module) -> None:
    for name, tensor in block.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))


def assert_equal_with_gradients(block: nn.Module, slow: Callable[[Tensor, State], Tensor], x: Tensor) -> None:
    """Output, gradient of the input and gradient of every parameter agree in double precision."""
    state: State = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    parameters = dict(block.named_parameters())
    leaves = {name: state[name].requires_grad_() for name in parameters}
    x = x.requires_grad_()
    torch.manual_seed(7)
    expected = slow(x, state)
    torch.manual_seed(7)
    actual = block(x)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *leaves.values()])
    found = torch.autograd.grad((actual * weight).sum(), [x, *parameters.values()])
    for name, a, b in zip(["x", *parameters], found, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("in_channels", "stride"), [(4, 1), (3, 1), (4, 2), (3, 2)])
@pytest.mark.parametrize("kernels", PAPER_BLOCKS, ids=str)
def test_every_block_of_the_paper_equals_its_slow_twin(
    kernels: tuple[int, ...], in_channels: int, stride: int, dropout: float, training: bool
) -> None:
    torch.manual_seed(0)
    block = PreActBlock(in_channels, (4,) * len(kernels), kernels, Style(dropout=dropout), stride=stride)
    block.double().train(training)
    randomize(block)
    x = torch.randn(3, in_channels, 7, 6, dtype=torch.float64)
    assert_equal_with_gradients(block, lambda x, state: slow_preact(x, state, kernels, stride, 0, training, dropout), x)


@pytest.mark.parametrize("stride_at", [0, 1])
def test_a_bottleneck_is_a_value_of_the_same_block_with_its_stride_where_it_is_told(stride_at: int) -> None:
    torch.manual_seed(0)
    block = PreActBlock(5, (2, 2, 8), (1, 3, 1), Style(), stride=2, stride_at=stride_at).double()
    randomize(block)
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    assert_equal_with_gradients(block, lambda x, state: slow_preact(x, state, (1, 3, 1), 2, stride_at, True, 0.0), x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("in_channels", "stride"), [(4, 1), (3, 1), (3, 2)])
def test_the_original_block_with_a_shortcut_without_parameters_equals_its_slow_twin(
    in_channels: int, stride: int, dropout: float, training: bool
) -> None:
    torch.manual_seed(0)
    style = Style(dropout=dropout)
    block = PostActBlock(in_channels, (4, 4), (3, 3), style, stride=stride, projection=False)
    block.double().train(training)
    randomize(block)
    x = torch.randn(3, in_channels, 7, 6, dtype=torch.float64)
    assert_equal_with_gradients(block, lambda x, state: slow_postact(x, state, 2, stride, training, dropout), x)


def test_running_statistics_follow_the_momentum() -> None:
    torch.manual_seed(0)
    block = PreActBlock(4, (4, 4), (3, 3), Style(bn_momentum=0.25))
    x = torch.randn(8, 4, 5, 5) * 3 + 2
    block(x)
    norm = block.norms[0]
    torch.testing.assert_close(norm.running_mean, 0.25 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * x.var((0, 2, 3), correction=1))


@pytest.mark.parametrize("make", [PreActBlock, PostActBlock])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_a_block_does_not_change_its_input(make: type, activation: str) -> None:
    torch.manual_seed(0)
    block = make(4, (4, 4), (3, 3), Style(activation), survival=0.5)
    x = torch.randn(2, 4, 5, 5)
    before = x.clone()
    for _ in range(10):  # with the branch and without
        block(x)
    block.eval()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.1 * x)),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
    ],
)
def test_activations_are_what_they_are_called(activation: str, expected: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(Style(activation).make_activation()(x.clone()), expected(x))


@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (160, 16), (24, 12), (17, 1), (8, 8)])
def test_group_norm_has_the_most_groups_up_to_16_that_divide_the_channels(channels: int, groups: int) -> None:
    norm = Style(norm="group", bn_eps=1e-3).make_norm(channels)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.eps) == (groups, 1e-3)


@pytest.mark.parametrize("make", [PreActBlock, PostActBlock])
def test_in_evaluation_stochastic_depth_scales_the_branch_by_its_probability(make: type) -> None:
    torch.manual_seed(0)
    whole = make(4, (4, 4), (3, 3), Style()).eval()
    part = make(4, (4, 4), (3, 3), Style(), survival=0.25).eval()
    part.load_state_dict(whole.state_dict())
    x = torch.rand(2, 4, 5, 5) + 10  # so positive a sum passes PostActBlock's last activation whole
    torch.testing.assert_close(part(x) - x, 0.25 * (whole(x) - x))


def test_in_training_stochastic_depth_skips_whole_branches_at_its_rate() -> None:
    torch.manual_seed(0)
    block = PreActBlock(4, (4, 4), (3, 3), Style(), survival=0.7)
    x = torch.randn(1, 4, 3, 3)
    kept = 0
    for _ in range(400):
        before = block.norms[0].get_buffer("num_batches_tracked").item()
        left_out = block(x) is x
        assert (block.norms[0].get_buffer("num_batches_tracked").item() == before) == left_out
        kept += not left_out
    assert abs(kept / 400 - 0.7) < 0.07  # three standard deviations


@pytest.mark.parametrize("make", [PreActBlock, PostActBlock])
def test_a_skipped_branch_gets_no_gradient_but_its_projection_does(make: type) -> None:
    torch.manual_seed(0)
    block = make(3, (4, 4), (3, 3), Style(), stride=2, survival=1e-9)
    block(torch.randn(2, 3, 6, 6)).sum().backward()
    assert block.get_submodule("convs.1" if make is PreActBlock else "conv2").weight.grad is None
    assert block.get_submodule("shortcut" if make is PreActBlock else "downsample.0").weight.grad is not None
