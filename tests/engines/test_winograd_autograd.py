"""The kernels as part of autograd: what PyTorch promises about gradients, saved tensors and parameters still holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from twins import SMALL, a_network, assert_same_step, off, step

from wideresnet.engines import accelerate

pytestmark = pytest.mark.usefixtures("needs_kernels")


def test_other_parameters_than_the_networks_own_get_their_own_gradients() -> None:
    network = a_network()
    x, results = torch.randn(SMALL), []
    for of in (accelerate(network), copy.deepcopy(network)):
        torch.manual_seed(3)
        values = {name: (p + 0.3 * torch.rand_like(p)).detach().requires_grad_() for name, p in of.named_parameters()}
        torch.func.functional_call(of, values, (x,)).square().sum().backward()
        results.append({name.removeprefix("network."): value.grad for name, value in values.items()})
        assert all(p.grad is None for p in of.parameters())
    for name, expected in results[1].items():
        assert off(results[0][name], expected) < 1e-4, name


def test_frozen_parameters_get_no_gradient_and_the_others_the_right_one() -> None:
    network = a_network("WRN-16-1")
    frozen = [
        p for name, p in network.named_parameters() if name.startswith(("stem", "groups.0", "groups.1.0.convs.1"))
    ]
    frozen += [network.groups[2][0].norms[0].weight, network.groups[2][0].shortcut.weight]  # type: ignore[index]
    for parameter in frozen:
        parameter.requires_grad_(False)
    assert_same_step(network, torch.randn(SMALL))
    assert all(parameter.grad is None for parameter in frozen)
    network.requires_grad_(False)
    assert not accelerate(network)(torch.randn(SMALL)).requires_grad


def test_two_backward_passes_add_up() -> None:
    network = a_network()
    plain = copy.deepcopy(network)
    first, second = torch.randn(SMALL), torch.randn(SMALL)
    for of in (accelerate(network), plain):
        logits = of(first)
        of(second).logsumexp(1).sum().backward()  # while the other pass waits
        logits.logsumexp(1).sum().backward()
    for (name, p), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert off(p.grad, expected.grad) < 1e-4, name  # type: ignore[arg-type]


def test_a_retained_graph_allows_a_second_backward_pass() -> None:
    fast = accelerate(a_network(dropout=0.2))
    loss = fast(torch.randn(SMALL)).square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in fast.parameters() if p.grad is not None]
    loss.backward()
    twice = [p.grad for p in fast.parameters() if p.grad is not None]
    assert all(torch.equal(2 * a, b) for a, b in zip(once, twice, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_dropout_masks_are_saved_where_saved_tensor_hooks_see_them() -> None:
    network, x = a_network(dropout=0.3), torch.randn(SMALL)
    saved: list[Tensor] = []
    scale = torch.ones(()).div(1 - 0.3).item()

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        accelerate(network)(x).sum().backward()
    masks = [tensor for tensor in saved if tensor.dim() == 4 and set(tensor.unique().tolist()) <= {0.0, scale}]
    assert len(masks) == sum(len(group) for group in network.groups)  # type: ignore[arg-type]


def test_second_order_gradients_are_refused() -> None:
    fast, x = accelerate(a_network()), torch.randn(SMALL, requires_grad=True)
    (gradient,) = torch.autograd.grad(fast(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(
    "name", ["groups.0.0.convs.1.weight", "groups.1.0.norms.1.weight", "norm.weight", "groups.1.0.shortcut.weight"]
)
def test_a_parameter_modified_between_forward_and_backward_pass_is_noticed(name: str) -> None:
    network = a_network()
    loss = accelerate(network)(torch.randn(SMALL)).square().sum()
    with torch.no_grad():
        network.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_copy_is_independent() -> None:
    fast = accelerate(a_network())
    copied = copy.deepcopy(fast)
    before = {name: value.clone() for name, value in copied.state_dict().items()}
    step(fast, torch.randn(SMALL))
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    x = torch.randn(SMALL)
    assert off(copied(x), copy.deepcopy(copied.network)(x)) < 1e-5
