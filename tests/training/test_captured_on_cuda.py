"""Captured steps against the same steps kernel by kernel, on a GPU; skipped without one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from wideresnet.distributed.world import World
from wideresnet.machine.device import make_deterministic
from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import OptimizerOptions
from wideresnet.training.captured import EAGER_STEPS, CapturedSteps, make_step
from wideresnet.training.configure import configure, make_forward
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPTIONS = OptimizerOptions(weight_decay=5e-4)


def train(
    *, is_captured: bool, sizes: tuple[int, ...] = (16,) * 8, resets: tuple[int, ...] = (),
    network: dict[str, Any] | None = None, execution: dict[str, Any] | None = None,
    freeze: str = "none", options: OptimizerOptions = OPTIONS, **settings: Any,
) -> tuple[list[Tensor], tuple[float, float], int]:  # fmt: skip
    """Take steps with batches of these sizes; return the weights and buffers, what was counted, and the captures."""
    how = Execution(device="cuda", deterministic=True, **(execution or {}))
    make_deterministic(True)
    torch.manual_seed(0)
    net = configure(create("WRN-10-2", 4, **(network or {})).cuda(), how).train()
    if freeze != "none":
        net.freeze(freeze)
    forward, optimizer, meter = make_forward(net, how), make_optimizer(net, options), Meter("cuda")
    step = make_step(net, forward, optimizer, meter, how, **settings)
    assert isinstance(step, CapturedSteps)
    generator = torch.Generator().manual_seed(1)
    for number, size in enumerate(sizes):
        images = torch.randn(size, 3, 16, 16, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
        labels = torch.randint(4, (size,), generator=generator).cuda()
        if number in resets:
            optimizer.state.clear()
        given: dict[str, Any] = {
            "lr": 0.1 / (1 + number),
            "seed": functools.partial(World.single().seed_step, 0, number),
        }
        if is_captured:
            step(images, labels, step=number, **given)
        else:
            train_step(forward, optimizer, images, labels, meter, how, step=number, **given, **settings)
    return [tensor.clone() for tensor in net.state_dict().values()], meter.read(), len(step.captured)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"execution": {"precision": "bf16"}},
        {"network": {"dropout": 0.3}},
        {"accumulate": 2, "label_smoothing": 0.1, "clip_grad_norm": 0.5},
        {"sizes": (16, 16, 16, 8) * 4},
        {"sizes": (16,) * 10, "resets": (5,)},
        {"freeze": "conv3", "options": OptimizerOptions(layer_lr_decay=0.5)},
        {"options": OptimizerOptions(muon_lr=0.05), "resets": (5,)},
    ],
    ids=["fp32", "bf16", "dropout", "accumulate", "last batch", "momentum reset", "frozen, rates by layer", "Muon"],
)
def test_captured_steps_end_in_the_same_bits(case: dict[str, Any]) -> None:
    try:
        expected, counted, _ = train(is_captured=False, **case)
        found, found_counted, num_captured = train(is_captured=True, **case)
    finally:
        make_deterministic(False)
    assert num_captured == len(set(case.get("sizes", (16,))))
    assert found_counted == counted
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_loss_that_is_not_finite_changes_no_weight_in_a_captured_step() -> None:
    network, execution = create("WRN-10-1").cuda(), Execution(device="cuda")
    optimizer, meter = make_optimizer(network, OPTIONS), Meter("cuda")
    step = make_step(network, network, optimizer, meter, execution)
    images, labels = torch.randn(8, 3, 32, 32, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
    for number in range(EAGER_STEPS + 2):
        step(images, labels, step=number, lr=0.1)
    before = [parameter.clone() for parameter in network.parameters()]
    for number, batch in enumerate((images * float("nan"), images), EAGER_STEPS + 2):
        step(batch, labels, step=number, lr=0.1)
    assert int(meter.failed_step) == EAGER_STEPS + 2
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"stochastic_depth": 0.5}, {}])
def test_steps_that_differ_from_each_other_are_not_captured(options: dict[str, Any]) -> None:
    network, execution = create("WRN-10-1", **options).cuda(), Execution(device="cuda")
    optimizer, meter = make_optimizer(network, OPTIONS), Meter("cuda")
    sam_rho = 0.0 if options else 0.05
    assert not isinstance(make_step(network, network, optimizer, meter, execution, sam_rho=sam_rho), CapturedSteps)
