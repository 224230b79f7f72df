"""One training step equals its update written out, in any number of parts; a meter counts without rounding."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import OptimizerOptions
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter, train_step, training_loss

CPU = Execution(device="cpu")


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)
    )
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_batch(seed: int, num: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, 6, 6, generator=generator), torch.randint(0, 5, (num,), generator=generator)


class SlowSgd:
    """The update written out, parameter by parameter, as in the authors' optim.sgd and PyTorch's documentation."""

    def __init__(self, network: nn.Module, options: OptimizerOptions) -> None:
        self.network, self.options = network, options
        self.velocity: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        options = self.options
        for name, parameter in self.network.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            if options.weight_decay_on == "all" or ("weight" in name and parameter.ndim > 1):
                gradient += options.weight_decay * parameter
            if name not in self.velocity:
                self.velocity[name] = gradient.clone()
            else:
                self.velocity[name] = options.momentum * self.velocity[name] + (1 - options.dampening) * gradient
            velocity = self.velocity[name]
            parameter -= lr * (gradient + options.momentum * velocity if options.nesterov else velocity)
            parameter.grad = None


@pytest.mark.parametrize(
    ("momentum", "nesterov", "dampening", "weight_decay_on", "smoothing"),
    [
        *((0.9, True, 0.0, *rest) for rest in product(("all", "weights"), (0.0, 0.1))),
        (0.9, False, 0.0, "all", 0.0),
        (0.9, False, 0.5, "weights", 0.0),
        (0.0, False, 0.0, "all", 0.0),
    ],
)
def test_training_steps_equal_the_update_written_out(
    momentum: float, nesterov: bool, dampening: float, weight_decay_on: str, smoothing: float
) -> None:
    options = OptimizerOptions(
        momentum=momentum, nesterov=nesterov, dampening=dampening, weight_decay=0.05, weight_decay_on=weight_decay_on
    )
    fast = make_network()
    slow = copy.deepcopy(fast)
    optimizer, twin, meter = make_optimizer(fast, options), SlowSgd(slow, options), Meter("cpu")
    for step, lr in enumerate((0.1, 0.1, 0.02, 0.02)):
        images, labels = make_batch(step)
        train_step(fast, optimizer, images, labels, meter, CPU, step=step, lr=lr, label_smoothing=smoothing)
        target = F.one_hot(labels, 5) * (1 - smoothing) + smoothing / 5
        (-(target * F.log_softmax(slow(images), 1)).sum(1).mean()).backward()
        twin.step(lr)
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
        assert a.grad is None
    assert int(meter.failed_step) == -1


def test_blocks_that_stochastic_depth_skips_keep_their_decay_and_momentum() -> None:
    options = OptimizerOptions(weight_decay=0.05)
    torch.manual_seed(0)
    fast = create("WRN-10-1", 5, stochastic_depth=0.3)
    slow = copy.deepcopy(fast)
    optimizer, twin, meter = make_optimizer(fast, options), SlowSgd(slow, options), Meter("cpu")
    num_skipped = 0
    for step in range(6):
        images, labels = make_batch(step)
        torch.manual_seed(step)
        train_step(fast, optimizer, images, labels, meter, CPU, step=step, lr=0.1)
        torch.manual_seed(step)
        F.cross_entropy(slow(images), labels).backward()
        num_skipped += any(parameter.grad is None for parameter in slow.parameters())
        twin.step(0.1)
    assert 0 < num_skipped < 6
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_weight_decay_reaches_every_parameter_or_only_weights() -> None:
    network = make_network()
    everything = make_optimizer(network, OptimizerOptions(weight_decay_on="all"))
    assert [(len(group["params"]), group["weight_decay"]) for group in everything.param_groups] == [(5, 5e-4)]
    weights = make_optimizer(network, OptimizerOptions(weight_decay_on="weights"))
    assert [(len(group["params"]), group["weight_decay"]) for group in weights.param_groups] == [(2, 5e-4), (3, 0.0)]


def test_forgetting_momentum_makes_the_next_step_a_first_step() -> None:
    options = OptimizerOptions(weight_decay=0.0)
    network = make_network()
    optimizer, meter = make_optimizer(network, options), Meter("cpu")
    for step in range(3):
        train_step(network, optimizer, *make_batch(step), meter, CPU, step=step, lr=0.1)
    optimizer.state.clear()
    fresh_network = copy.deepcopy(network)
    fresh = make_optimizer(fresh_network, options)
    train_step(network, optimizer, *make_batch(9), meter, CPU, step=3, lr=0.1)
    train_step(fresh_network, fresh, *make_batch(9), Meter("cpu"), CPU, step=3, lr=0.1)
    for a, b in zip(network.parameters(), fresh_network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("weight_decay_on", ["all", "weights"])
def test_a_loss_that_is_not_finite_changes_neither_weights_nor_momentum_then_or_later(
    bad: float, weight_decay_on: str
) -> None:
    options = OptimizerOptions(weight_decay_on=weight_decay_on)
    network = make_network()
    optimizer, meter = make_optimizer(network, options), Meter("cpu")
    for step in range(2):
        train_step(network, optimizer, *make_batch(step), meter, CPU, step=step, lr=0.1)
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    momenta = [optimizer.state[parameter]["momentum_buffer"].clone() for parameter in network.parameters()]
    images, labels = make_batch(2)
    images[3, 1, 2, 2] = bad
    batches = [(images, labels), make_batch(3), make_batch(4)]
    for step, (images, labels) in enumerate(batches, start=2):
        train_step(network, optimizer, images, labels, meter, CPU, step=step, lr=0.1)
        for i, parameter in enumerate(network.parameters()):
            assert torch.equal(parameter, weights[i])
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momenta[i])
    assert int(meter.failed_step) == 2


def test_a_first_loss_that_is_not_finite_changes_no_weight() -> None:
    options = OptimizerOptions()
    network = make_network()
    before = copy.deepcopy(network)
    optimizer, meter = make_optimizer(network, options), Meter("cpu")
    images, labels = make_batch(0)
    train_step(network, optimizer, images * float("nan"), labels, meter, CPU, step=0, lr=0.1)
    train_step(network, optimizer, images, labels, meter, CPU, step=1, lr=0.1)
    for a, b in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
    assert int(meter.failed_step) == 0


def step_once(network: nn.Module, images: Tensor, labels: Tensor, accumulate: int = 1) -> Meter:
    meter, optimizer = Meter("cpu"), make_optimizer(network, OptimizerOptions())
    train_step(network, optimizer, images, labels, meter, CPU, step=0, lr=0.1, accumulate=accumulate)
    return meter


@pytest.mark.parametrize("accumulate", [2, 3, 7, 9])  # of 7 images: parts of unequal sizes, of one, and fewer
def test_accumulated_parts_make_the_step_of_the_whole_batch(accumulate: int) -> None:
    torch.manual_seed(0)
    whole = create("WRN-10-1", 5, norm="group").double()
    parts = copy.deepcopy(whole)
    images, labels = torch.randn(7, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    at_once = step_once(whole, images, labels)
    in_parts = step_once(parts, images, labels, accumulate)
    # training_loss takes the logits in float32
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)
    assert in_parts.num_images == at_once.num_images == 7
    assert in_parts.to_json()["num_errors"] == at_once.to_json()["num_errors"]
    assert in_parts.read()[0] == pytest.approx(at_once.read()[0], rel=1e-6)


def test_batch_normalization_takes_each_part_for_a_batch() -> None:
    network = make_network()
    twin, (images, labels) = copy.deepcopy(network), make_batch(0)
    step_once(network, images, labels, accumulate=3)
    with torch.no_grad():
        for part in images.split(2):  # the running statistics of Hoffer et al. 2017, Algorithm 1
            twin(part)
    assert dict(network.named_buffers())["1.num_batches_tracked"] == 3
    for a, b in zip(network.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad_image", [0, 3, 5])
def test_a_part_whose_loss_is_not_finite_stops_the_whole_step(bad_image: int) -> None:
    network = make_network()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    images, labels = make_batch(0)
    images[bad_image] = float("nan")
    meter = step_once(network, images, labels, accumulate=3)
    assert int(meter.failed_step) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_loss_is_float32_in_every_precision() -> None:
    network, (images, labels) = make_network(), make_batch(0)
    full, logits = training_loss(network, images, labels, CPU)
    half, half_logits = training_loss(network, images, labels, replace(CPU, precision="bf16"))
    assert (full.dtype, half.dtype) == (torch.float32, torch.float32)
    assert (logits.dtype, half_logits.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(full, half, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_images_reach_the_network_in_the_executions_layout(layout: str) -> None:
    seen: list[bool] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.is_contiguous())
            return images.mean((2, 3))

    images, labels = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.tensor([0, 1])
    training_loss(Spy(), images, labels, replace(CPU, layout=layout))
    assert seen == [layout == "contiguous"]


def test_a_new_meter_has_seen_nothing() -> None:
    meter = Meter("cpu")
    assert all(math.isnan(value) for value in meter.read())
    assert meter.to_json() == {"loss_sum": 0.0, "num_errors": 0.0, "num_images": 0}


def test_a_meter_weighs_batches_by_their_images() -> None:
    meter = Meter("cpu")
    logits = torch.eye(5)
    assert float(meter.add(torch.tensor(1.0), logits[:4], torch.tensor([0, 1, 2, 0]), 0)) == 0.0
    meter.add(torch.tensor(4.0), logits[:1], torch.tensor([3]), 1)
    assert meter.read() == ((4 * 1.0 + 4.0) / 5, 100 * 2 / 5)
    assert meter.num_images == 5


def test_a_meters_sums_are_exact_over_a_long_epoch_and_survive_json() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(500, generator=generator)
    labels = torch.zeros(128, dtype=torch.int64)
    whole, first = Meter("cpu"), Meter("cpu")
    for step, loss in enumerate(losses):
        whole.add(loss, torch.ones(128, 2), labels, step)
        if step == 249:
            first = Meter("cpu")
            first.restore(json.loads(json.dumps(whole.to_json())))
        elif step > 249:
            first.add(loss, torch.ones(128, 2), labels, step)
    expected = math.fsum(float(loss) * 128 for loss in losses)
    assert whole.to_json()["loss_sum"] == pytest.approx(expected, rel=1e-13)
    assert first.to_json() == whole.to_json()
    assert first.read() == whole.read()


def test_a_meter_names_the_first_failure_only() -> None:
    meter, logits, labels = Meter("cpu"), torch.ones(1, 2), torch.tensor([0])
    flags = [
        float(meter.add(torch.tensor(loss), logits, labels, step))
        for step, loss in enumerate((1.0, math.inf, 1.0, math.nan, 1.0))
    ]
    assert flags == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert int(meter.failed_step) == 1
