"""A step of sharpness-aware minimization equals the formula written out, and leaves nothing of its detour behind."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.engines import accelerate
from wideresnet.engines.description import why_no_kernels
from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import OptimizerOptions
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.sharpness import perturbed
from wideresnet.training.step import Meter, train_step

CPU = Execution(device="cpu")
RHO, LR = 0.5, 0.1
PLAIN = OptimizerOptions(momentum=0.0, nesterov=False, weight_decay=0.0)


def make_batch(num: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 3, 8, 8, generator=generator, dtype=dtype)
    return images.to(memory_format=torch.channels_last), torch.randint(0, 5, (num,), generator=generator)


def make_network(**options: object) -> nn.Module:
    torch.manual_seed(0)
    network = create("WRN-10-1", 5, **options)  # type: ignore[arg-type]
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def gradient(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The gradient of the mean loss; of a parameter that is not used, zeros."""
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}


def written_out(network: nn.Module, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The weights after a step without momentum and decay: Foret et al. 2021, Algorithm 1, name by name."""
    twin = copy.deepcopy(network)
    torch.manual_seed(seed)
    uphill = gradient(twin, images, labels)
    norm = sum(float((g**2).sum()) for g in uphill.values()) ** 0.5
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter += RHO * uphill[name] / norm
    torch.manual_seed(seed)
    found = gradient(twin, images, labels)
    return {name: parameter - LR * found[name] for name, parameter in network.named_parameters()}


def sam_step(
    network: nn.Module, images: Tensor, labels: Tensor, *, forward: nn.Module | None = None, accumulate: int = 1,
    options: OptimizerOptions = PLAIN, rho: float = RHO, lr: float = LR, clip: float = 0.0,
    execution: Execution = CPU,
) -> Meter:  # fmt: skip
    meter = Meter("cpu")
    train_step(
        forward or network, make_optimizer(network, options), images, labels, meter, execution, step=0, lr=lr,
        accumulate=accumulate, sam_rho=rho, clip_grad_norm=clip, seed=functools.partial(torch.manual_seed, 0),  # type: ignore[arg-type]
    )  # fmt: skip
    return meter


@pytest.mark.parametrize(
    "options", [{}, {"norm": "group"}, {"dropout": 0.4}, {"stochastic_depth": 0.3}, {"activation": "silu"}]
)
def test_a_step_is_the_formula_written_out(options: dict[str, object]) -> None:
    network, (images, labels) = make_network(**options).double(), make_batch()
    expected = written_out(network, images, labels)
    plain = {name: p - LR * g for (name, p), g in zip(
        network.named_parameters(), gradient(copy.deepcopy(network), images, labels).values(), strict=True
    )}  # fmt: skip
    sam_step(network, images, labels)
    moved = 0.0
    for name, parameter in network.named_parameters():
        # training_loss takes the logits in float32
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7, msg=name)
        moved = max(moved, float((parameter - plain[name]).detach().abs().max()))
    assert moved > 1e-4  # a plain step would fail the comparison


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_batch_in_parts_has_one_perturbation_from_all_its_parts(accumulate: int) -> None:
    network, (images, labels) = make_network(norm="group").double(), make_batch()
    expected = written_out(network, images, labels)
    sam_step(network, images, labels, accumulate=accumulate)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("kernels", ["pytorch", "winograd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_statistics_loss_and_errors_are_those_of_a_plain_step_and_no_weight_keeps_the_detour(
    kernels: str, precision: str
) -> None:
    execution = replace(CPU, precision=precision)
    plain = make_network()
    images, labels = make_batch(dtype=torch.float32)
    if kernels == "winograd" and why_no_kernels(plain, images):
        pytest.skip("no kernels")
    network, before = copy.deepcopy(plain), copy.deepcopy(plain)
    wrap = accelerate if kernels == "winograd" else lambda network: network
    expected = sam_step(plain, images, labels, forward=wrap(plain), rho=0, lr=0, execution=execution)  # type: ignore[arg-type]
    meter = sam_step(network, images, labels, forward=wrap(network), lr=0, execution=execution)  # type: ignore[arg-type]
    for a, b, c in zip(network.parameters(), plain.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    for (name, a), b, c in zip(network.named_buffers(), plain.buffers(), before.buffers(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name
    assert meter.to_json() == expected.to_json()


def test_the_kernels_take_the_step_of_plain_pytorch() -> None:
    network, (images, labels) = make_network(), make_batch(dtype=torch.float32)
    if reason := why_no_kernels(network, images):
        pytest.skip(reason)
    twin = copy.deepcopy(network)
    sam_step(network, images, labels, forward=accelerate(network))  # type: ignore[arg-type]
    sam_step(twin, images, labels)
    for (name, a), b in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_weight_decay_and_momentum_act_on_the_weights_themselves() -> None:
    """Not on the perturbed ones, and decay is not part of the direction: it is outside of the maximum."""
    options = OptimizerOptions(weight_decay=0.1)
    network, (images, labels) = make_network().double(), make_batch()
    found = {name: (p - new) / LR for (name, p), new in zip(
        network.named_parameters(), written_out(network, images, labels).values(), strict=True
    )}  # fmt: skip
    expected = {name: p - LR * 1.9 * (found[name] + 0.1 * p) for name, p in network.named_parameters()}  # Nesterov
    sam_step(network, images, labels, options=options)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_perturbation_has_the_length_rho_over_all_parameters_and_is_undone_to_the_last_bit() -> None:
    network, (images, labels) = make_network(), make_batch(dtype=torch.float32)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    gradient(network, images, labels)
    with perturbed(network, 0.05):
        moved = [float(((p.detach() - b) ** 2).sum()) for p, b in zip(network.parameters(), before, strict=True)]
        assert sum(moved) ** 0.5 == pytest.approx(0.05, rel=1e-4)
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))


def test_a_gradient_of_zero_moves_nothing() -> None:
    layer = nn.Linear(3, 2)
    before = copy.deepcopy(layer)
    (layer(torch.zeros(1, 3)).sum() * 0).backward()
    with perturbed(layer, 0.05):
        assert torch.equal(layer.weight, before.weight)


class FailsUphill(nn.Module):
    """Its output is finite at the weights, and not at any other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits = images.mean((2, 3)) @ self.weight.T
        return logits if bool((self.weight == 1).all()) else logits * float("nan")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_uphill_stops_the_step_too(accumulate: int) -> None:
    network, (images, labels) = FailsUphill(), make_batch(dtype=torch.float32)
    meter = sam_step(network, images, labels, accumulate=accumulate)
    assert int(meter.failed_step) == 0
    assert bool((network.weight == 1).all())


@pytest.mark.parametrize("rho", [0.0, RHO])
def test_a_gradient_is_clipped_to_a_norm_over_all_parameters(rho: float) -> None:
    network, (images, labels) = make_network().double(), make_batch()
    norms = {}
    for clip in (0.0, 0.01, 1000.0):
        twin = copy.deepcopy(network)
        sam_step(twin, images, labels, rho=rho, clip=clip)
        moved = [
            float(((a - b).detach() ** 2).sum()) for a, b in zip(network.parameters(), twin.parameters(), strict=True)
        ]
        norms[clip] = sum(moved) ** 0.5 / LR
    assert norms[0.0] == norms[1000.0] > 0.1
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
