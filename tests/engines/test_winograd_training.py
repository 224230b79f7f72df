"""Training by the kernels and by plain PyTorch: the same logits, gradients, running statistics and dropout masks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor
from twins import SMALL, a_network, assert_same_step, off, step

from wideresnet.engines import accelerate, optimize, why_no_kernels
from wideresnet.networks import create

pytestmark = pytest.mark.usefixtures("needs_kernels")


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("WRN-10-1", (4, 3, 32, 32), {}),
        ("WRN-16-2", (2, 3, 16, 16), {}),  # its first group has a projection too
        ("WRN-16-2-B(3,1,3)", (2, 3, 8, 8), {}),
        ("WRN-16-1-B(1,3,1)", (2, 3, 8, 8), {}),
        ("WRN-16-2-B(1,3)", (3, 3, 8, 8), {}),
        ("WRN-16-1-B(3,1)", (3, 3, 8, 8), {}),
        ("WRN-16-1-B(3,3)", (3, 3, 8, 8), {}),
        ("WRN-16-1-B(3,1,1)", (3, 3, 8, 8), {}),
        ("WRN-16-1-B(5,3)", (3, 3, 8, 8), {}),
        ("WRN-16-1-l1", (3, 3, 8, 8), {}),
        ("WRN-22-1-l3", (3, 3, 8, 8), {}),
        ("PreActResNet-29-bottleneck", (4, 3, 8, 8), {}),
        ("PreActResNet-20", (2, 3, 8, 8), {}),
        ("WRN-10-2", (2, 3, 20, 28), {}),
        ("WRN-10-2", (3, 3, 9, 9), {}),
        ("WRN-10-1", (5, 3, 1, 1), {}),
        ("WRN-10-1", (1, 3, 13, 6), {}),
        ("WRN-10-1", (2, 1, 28, 28), {"in_channels": 1}),
        ("WRN-10-1", (3, 5, 8, 8), {"in_channels": 5, "bn_momentum": 0.37, "bn_eps": 1e-3}),
    ],
    ids=str,
)
def test_a_step_by_the_kernels_is_the_plain_one(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    # away from zero, so that the running statistics have something to show
    assert_same_step(a_network(name, **options), torch.randn(shape) + 0.5)


def test_rounding_grows_with_depth_as_in_the_plain_network() -> None:
    network, x = a_network("PreActResNet-164-bottleneck"), torch.randn(4, 3, 8, 8)
    plain = copy.deepcopy(network)
    expected_logits, expected = step(copy.deepcopy(plain).double(), x.double())
    errors = []
    for logits, found in (step(accelerate(network), x), step(plain, x)):
        gradients = (torch.cat([of[name].flatten() for name in expected]) for of in (found, expected))
        errors.append((off(logits, expected_logits), off(*gradients)))
    # among millions of activations some are so near 0 that rounding decides whether they have a gradient
    assert errors[0][0] < 10 * errors[1][0] < 0.01
    assert errors[0][1] < 10 * errors[1][1] < 1


@pytest.mark.parametrize("name", ["WRN-16-2", "WRN-16-1-B(3,1,3)", "WRN-16-1-B(1,3,1)"])
def test_dropout_draws_the_masks_of_the_plain_network(name: str) -> None:
    network = a_network(name, dropout=0.3)
    assert_same_step(network, torch.randn(2, 3, 12, 12).contiguous(memory_format=torch.channels_last))
    with_dropout, without = (step(accelerate(of), torch.ones(SMALL))[0] for of in (network, a_network(name)))
    assert off(with_dropout, without) > 1e-2


def test_dropout_that_is_set_to_zero_draws_nothing() -> None:
    network = a_network(dropout=0.3)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert_same_step(network, torch.randn(SMALL))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    accelerate(network)(torch.randn(SMALL, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["WRN-16-2", "WRN-16-1-B(1,3,1)", "WRN-16-1-l1", "PreActResNet-20"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_by_the_kernels_is_the_plain_one_and_the_optimized_one_bit_for_bit(
    name: str, mode: Callable[[], torch.no_grad]
) -> None:
    network = a_network(name).eval()
    fast, x = accelerate(network), torch.randn(5, 3, 9, 12)
    with mode():
        assert why_no_kernels(network, x) is None
        logits, again = fast(x), fast(x)
        exact = copy.deepcopy(network).double()(x.double())
        assert torch.equal(optimize(network)(x), logits)
    assert off(logits, exact) < 5e-6
    assert torch.equal(logits, again)


def test_training_mode_without_gradients_updates_the_running_statistics_alike() -> None:
    network = a_network()
    fast, plain = accelerate(network), copy.deepcopy(network).double()
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(SMALL)
            assert off(fast(x), plain(x.double())) < 1e-5
    for (name, buffer), expected in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert off(buffer, expected) < 1e-5, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_order_of_values_in_memory_does_not_matter(layout: torch.memory_format) -> None:
    network = a_network("WRN-16-2").to(memory_format=layout)  # type: ignore[call-overload]
    wide = torch.randn(2, 3, 16, 24)
    for x in (wide[:, :, ::2, ::3], torch.randn(2, 8, 8, 3).permute(0, 3, 1, 2), torch.randn(2, 3, 8, 8)):
        assert_same_step(network, x)


def test_a_single_value_per_channel_is_refused_as_by_pytorch() -> None:
    network, x = a_network(), torch.randn(1, 3, 1, 1)
    for of in (accelerate(network), network):
        with pytest.raises(ValueError, match=r"more than (one|1) value"):
            of(x)


def test_nan_reaches_the_loss_in_training_and_its_own_image_in_evaluation() -> None:
    x = torch.randn(SMALL)
    x[1, 0, 3, 3] = float("nan")
    logits, found = step(accelerate(a_network()), x)
    assert torch.isnan(logits).all()
    assert torch.isnan(found["groups.0.0.convs.0.weight"]).any()
    with torch.no_grad():
        logits = accelerate(a_network().eval())(x)
    assert torch.isnan(logits[1]).all()
    assert torch.isfinite(logits[0]).all()


def digits_losses(*, kernels: bool, layout: torch.memory_format) -> Tensor:
    """Losses of 200 training steps on scikit-learn's digits."""
    digits: Any = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16 - 0.3, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(0)
    network = create("WRN-10-1", 10, in_channels=1).to(memory_format=layout)  # type: ignore[call-overload]
    forward = accelerate(network) if kernels else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    losses = []
    for _ in range(200):
        index = torch.randint(len(images), (32,))
        loss = F.cross_entropy(forward(images[index].contiguous(memory_format=layout)), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def test_losses_over_200_steps_diverge_no_further_than_by_rounding() -> None:
    plain = digits_losses(kernels=False, layout=torch.channels_last)
    rounded = (digits_losses(kernels=False, layout=torch.contiguous_format) - plain).abs() / plain
    losses = digits_losses(kernels=True, layout=torch.channels_last)
    apart = (losses - plain).abs() / plain
    assert apart[0] < 1e-6
    # another rounding flips the gradient of activations that are near 0; later steps multiply the difference
    assert apart[:20].median() < 1e-5
    assert apart[:20].max() < 1e-2
    assert apart.mean() < 10 * rounded.mean()
    assert (losses[-50:].mean() / plain[-50:].mean() - 1).abs() < 0.1
