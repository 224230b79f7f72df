from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.data import Dataset, ImageSet
from wideresnet.networks import cost
from wideresnet.spec.recipe import Recipe
from wideresnet.training.preflight import plan as plan_module
from wideresnet.training.preflight.plan import make_plan
from wideresnet.training.setup import Job, prepare


def make_job(num_train: int = 50, **fields: Any) -> Job:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_train + 10, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(num_train + 10) % 4
    train, test = ImageSet(images[:num_train], labels[:num_train]), ImageSet(images[num_train:], labels[num_train:])
    dataset = Dataset("own", "own", train, test, ("a", "b", "c", "d"), None, ())
    values = {"network": "WRN-10-1", "epochs": 3, "batch_size": 16, "device": "cpu", "precision": "fp32", **fields}
    values |= {"kernels": "pytorch", "layout": "channels_last"}  # whose memory `cost` counts
    return prepare(Recipe.flat(**values), dataset)


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 3), (False, 4)])
def test_steps_are_epochs_times_batches(drop_last: bool, steps: int) -> None:
    plan = make_plan(make_job(drop_last=drop_last))
    assert (plan.steps_per_epoch, plan.num_steps) == (steps, 3 * steps)


def test_operations_are_those_of_every_image_forward_and_backward() -> None:
    job = make_job()
    plan = make_plan(job)
    macs = cost(job.network, 8).macs
    assert plan.flops == 2 * 3 * macs * 3 * 48  # multiply and add, three passes, three epochs of 48 images
    assert plan.params == sum(parameter.numel() for parameter in job.network.parameters())


def test_smaller_images_cost_their_share_of_the_area() -> None:
    full = make_plan(make_job(epochs=4))
    part = make_plan(make_job(epochs=4, image_scales=((0.0, 0.5), (0.5, 1.0))))
    assert part.flops == pytest.approx(full.flops * (0.25 + 0.25 + 1 + 1) / 4)


def test_a_last_smaller_batch_costs_its_own_images() -> None:
    job = make_job(drop_last=False)
    assert make_plan(job).flops == 2 * 3 * cost(job.network, 8).macs * 3 * 50


def test_time_is_that_of_the_steps_and_a_third_for_evaluated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(probe: Any, num_images: int) -> int:
        probe.image_s, probe.num_images = 0.5, num_images
        return 10**6

    monkeypatch.setattr(plan_module._Probe, "run", run)
    assert make_plan(make_job()).seconds == pytest.approx(0.5 * (3 * 48 + (3 * 10 + 10) / 3))
    seldom = make_plan(make_job(eval_every=2))  # after the second and the last epoch, and the result
    assert seldom.seconds == pytest.approx(0.5 * (3 * 48 + (2 * 10 + 10) / 3))


@pytest.mark.parametrize(("ema_decay", "num_copies"), [(0.0, 2), (0.9, 3)])
def test_where_the_system_keeps_no_peak_memory_is_counted(
    monkeypatch: pytest.MonkeyPatch, ema_decay: float, num_copies: int
) -> None:
    monkeypatch.setattr(plan_module, "reset_peak_memory", lambda _device: False)
    monkeypatch.setattr(plan_module, "peak_memory_mib", lambda _device: 1.0)
    monkeypatch.setattr(plan_module, "memory_in_use_bytes", lambda _device: 10**6)
    job = make_job(ema_decay=ema_decay)
    plan = make_plan(job)
    counted = 10**6 + num_copies * 4 * plan.params + cost(job.network, 8, 16).activation_bytes
    written = 10**6 + (num_copies - 1) * 4 * plan.params + 2 * num_copies * 4 * plan.params  # a checkpoint
    # the labels' and the loss's few bytes are not in the network's count
    assert plan.memory_bytes == pytest.approx(max(counted, written), rel=1e-3)
    monkeypatch.setattr(plan_module, "available_memory_bytes", lambda _device: 0)
    large = make_plan(make_job(num_train=200, ema_decay=ema_decay, batch_size=200))
    counted = 10**6 + num_copies * 4 * plan.params + cost(job.network, 8, 200).activation_bytes
    assert large.memory_bytes == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"batch_size": 16}, [4, 16]),
        ({"batch_size": 48, "accumulate": 4}, [3, 12]),
        ({"batch_size": 2}, [2, 2]),
    ],
)
def test_the_probe_takes_parts_of_a_batch_up_to_what_it_may_cost(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], sizes: list[int]
) -> None:
    seen: list[int] = []
    run = plan_module._Probe.run
    monkeypatch.setattr(plan_module._Probe, "run", lambda probe, num: [seen.append(num), run(probe, num)][1])
    plan = make_plan(make_job(**fields))
    assert seen == sizes
    assert plan.part_images == sizes[-1]


def test_every_block_counts_where_stochastic_depth_leaves_some_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    count = plan_module.kept_bytes
    monkeypatch.setattr(plan_module, "kept_bytes", lambda *args: kept.append(count(*args)) or kept[-1])
    make_plan(make_job())
    make_plan(make_job(stochastic_depth=0.01))
    assert kept[:2] == kept[2:]


def test_an_expensive_network_is_probed_by_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PROBE_FLOPS", 1.0)
    assert make_plan(make_job()).probe_images == 4


def test_a_batch_beyond_memory_is_refused_after_a_few_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "available_memory_bytes", lambda _device: 30 * 2**20)
    job = make_job(num_train=20_000, batch_size=20_000)
    largest = 0
    step = plan_module.train_step

    def watched(network: Any, optimizer: Any, images: torch.Tensor, *rest: Any, **more: Any) -> None:
        nonlocal largest
        largest = max(largest, len(images))
        step(network, optimizer, images, *rest, **more)

    monkeypatch.setattr(plan_module, "PROBE_FLOPS", 8 * cost(job.network, 8).training_flops)
    monkeypatch.setattr(plan_module, "train_step", watched)
    with pytest.raises(UsageError, match=r"^batch_size 20000: needs .* the largest that fits is \d+: .* --accumulate"):
        make_plan(job)
    assert largest <= 8


def test_memory_is_measured_and_time_told_at_the_largest_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    step = plan_module.train_step

    def watched(network: Any, optimizer: Any, images: torch.Tensor, *rest: Any, **more: Any) -> None:
        sides.append(images.shape[-1])
        step(network, optimizer, images, *rest, **more)

    monkeypatch.setattr(plan_module, "train_step", watched)
    make_plan(make_job(image_scales=((0.0, 0.5), (0.3, 2.0), (0.6, 1.0))))
    assert set(sides) == {16}
    sides.clear()
    make_plan(make_job(epochs=1, image_scales=((0.0, 0.5), (0.3, 2.0))))  # the second scale is never reached
    assert set(sides) == {4}


@pytest.mark.parametrize("fields", [{}, {"dropout": 0.3, "network": "WRN-10-2"}, {"stochastic_depth": 0.5}])
def test_planning_leaves_the_job_and_the_random_state_as_they_were(fields: dict[str, Any]) -> None:
    job = make_job(**fields)
    weights = copy.deepcopy(job.network.state_dict())
    batches = [images.clone() for images, _ in job.feed.epoch(0)]
    random = torch.get_rng_state()
    plan = make_plan(job)
    assert plan.seconds > 0
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in job.network.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert all(parameter.grad is None for parameter in job.network.parameters())
    assert not job.optimizer.state
    assert job.network.training
    for images, (again, _) in zip(batches, job.feed.epoch(0), strict=True):
        assert torch.equal(images, again)


def test_the_rows_say_what_will_run() -> None:
    plan = make_plan(make_job())
    rows = dict(plan.lines())
    assert list(rows) == ["parameters", "steps", "operations", "expected time", "expected memory"]
    assert rows["parameters"] == f"{plan.params:,}"
    assert rows["steps"] == "9 (3 an epoch)"
    assert rows["expected time"].endswith("(timed on batches of 16)")
