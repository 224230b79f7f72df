"""Muon equals PyTorch's own where the two are the same thing, and keeps what this package adds to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet import UsageError
from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import OptimizerOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.training.muon import orthogonalized, update_of
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter, train_step

CPU = Execution(device="cpu")
MUON = OptimizerOptions(muon_lr=0.05)


def make_network(name: str = "WRN-10-1", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create(name, 5, **options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_batch(num: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.randint(0, 5, (num,), generator=generator)


def kernels(network: nn.Module) -> dict[str, nn.Parameter]:
    """All kernels of convolutions but the first."""
    found = {n: p for n, p in network.named_parameters() if p.ndim == 4}
    return dict(list(found.items())[1:])


def take_steps(network: nn.Module, optimizer: torch.optim.SGD, num: int, lr: float = 0.1, **batch: Any) -> Meter:
    meter = Meter("cpu")
    images, labels = make_batch()
    for step in range(num):
        train_step(network, optimizer, batch.get("images", images), labels, meter, CPU, step=step, lr=lr)
    return meter


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 16), (1, 32, 32)])
def test_all_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices[0] *= 1e-6
    found = torch.linalg.svdvals(orthogonalized(matrices))
    assert 0.6 < float(found.min()) <= float(found.max()) < 1.3
    assert float(torch.linalg.svdvals(matrices / matrices.flatten(1).norm(dim=1)[:, None, None]).min()) < 0.2


def test_zeros_stay_zeros() -> None:
    assert not orthogonalized(torch.zeros(1, 4, 9)).any()


@pytest.mark.parametrize("shape", [(16, 144), (64, 16)])
def test_momentum_and_update_are_those_of_pytorch(shape: tuple[int, int]) -> None:
    """Its momentum is an average, ours a sum, which orthogonalization cannot tell apart; it multiplies in bf16."""
    generator = torch.Generator().manual_seed(0)
    theirs, ours = nn.Parameter(torch.zeros(shape)), torch.zeros(shape)
    optimizer, momentum = torch.optim.Muon([theirs], lr=1.0, weight_decay=0.0, momentum=0.9), torch.zeros(shape)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        theirs.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        ours -= update_of((gradient + 0.9 * momentum)[None])[0]
        assert float((ours - theirs).detach().norm() / ours.norm()) < 0.05


def test_a_step_is_the_formula_written_out() -> None:
    network = make_network()
    twin = copy.deepcopy(network)
    images, labels = make_batch()
    optimizer = make_optimizer(network, MUON, 0.2)
    take_steps(network, optimizer, 1, lr=0.1)  # half of the peak, so Muon's rate is half of 0.05
    F.cross_entropy(twin(images), labels).backward()
    after = dict(network.named_parameters())
    assert len(kernels(twin)) == 8  # two in each of three blocks, and two projections
    for name, parameter in twin.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        with torch.no_grad():
            if name in kernels(twin):
                update = update_of(gradient.flatten(1)[None] * 1.9)[0].view_as(parameter)
                expected = parameter - 0.025 * update
                expected *= parameter.norm() / expected.norm()
            else:
                expected = parameter - 0.1 * 1.9 * (gradient + 5e-4 * parameter)  # Nesterov's first step
        torch.testing.assert_close(after[name].detach(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_kernels_keep_their_norms() -> None:
    network = make_network()
    before = {name: float(kernel.detach().norm()) for name, kernel in kernels(network).items()}
    first = {name: kernel.detach().clone() for name, kernel in kernels(network).items()}
    take_steps(network, make_optimizer(network, MUON), 20)
    for name, kernel in kernels(network).items():
        assert float(kernel.detach().norm()) == pytest.approx(before[name], rel=1e-5)
        assert not torch.equal(kernel, first[name])


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    network = make_network()
    optimizer = make_optimizer(network, MUON)
    take_steps(network, optimizer, 2)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in network.named_parameters()}
    images, _ = make_batch()
    meter = take_steps(network, optimizer, 1, images=images * float("inf"))
    assert int(meter.failed_step) == 0
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum[name])


def test_frozen_stages_stay_and_lower_ones_learn_more_slowly() -> None:
    network = make_network()
    for parameter in list(network.parameters())[:4]:
        parameter.requires_grad = False
    optimizer = make_optimizer(network, OptimizerOptions(muon_lr=0.05, layer_lr_decay=0.5), 0.1)
    frozen = [p.detach().clone() for p in list(network.parameters())[:4]]
    take_steps(network, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(frozen, network.parameters(), strict=False))
    scales = {group["lr_scale"] for group in optimizer.param_groups if group["muon"]}
    assert scales == {0.5 * 0.5, 0.5 * 0.25, 0.5 * 0.125}


def test_without_it_nothing_is_turned() -> None:
    optimizer = make_optimizer(make_network(), OptimizerOptions(), lr=0.0)
    assert not any(group["muon"] for group in optimizer.param_groups)


def test_it_needs_a_schedule() -> None:
    with pytest.raises(UsageError, match=r"muon_lr=0.05: rises and falls as lr does, which is 0; use lr above 0"):
        Recipe.flat(muon_lr=0.05, lr=0.0)
