"""The probe runs a few real steps: on how many images, of what size, and what it makes of their memory."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_jobs import make_job

from wideresnet.base.errors import UsageError
from wideresnet.networks import cost
from wideresnet.training import Job, Plan, make_plan
from wideresnet.training.captured import Step, make_step
from wideresnet.training.preflight.probe import Gauge, Probe

NO_PEAKS = Gauge(
    in_use_bytes=lambda _: 10**6, available_bytes=lambda _: 0, peak_mib=lambda _: 1.0, reset_peak=lambda _: False
)


def plan_of(job: Job, **arguments: Any) -> Plan:
    return make_plan(job, make_probe=functools.partial(Probe, **arguments))


class Watched:
    """Makes training steps, and remembers their settings and the images that they were given."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *what: Any, **settings: Any) -> Step:
        take_step = make_step(*what, **settings)

        def step(images: torch.Tensor, labels: torch.Tensor, **more: Any) -> None:
            self.shapes.append(images.shape)
            self.calls.append({**settings, **more})
            take_step(images, labels, **more)

        return step


def test_sam_keeps_one_more_copy_of_the_weights() -> None:
    plain, sam = (plan_of(make_job(num_train=200, batch_size=200, sam_rho=rho), gauge=NO_PEAKS) for rho in (0.0, 0.05))
    assert sam.memory_bytes - plain.memory_bytes == 4 * plain.params


@pytest.mark.parametrize(("ema_decay", "num_copies"), [(0.0, 2), (0.9, 3)])
def test_if_the_system_keeps_no_peak_memory_is_counted(ema_decay: float, num_copies: int) -> None:
    job = make_job(ema_decay=ema_decay)
    plan = plan_of(job, gauge=NO_PEAKS)
    counted = 10**6 + num_copies * 4 * plan.params + cost(job.network, 8, 16).activation_bytes
    written = 10**6 + (num_copies - 1) * 4 * plan.params + 2 * num_copies * 4 * plan.params  # a checkpoint
    # the labels' and the loss's few bytes are not in the network's count
    assert plan.memory_bytes == pytest.approx(max(counted, written), rel=1e-3)
    large = plan_of(make_job(num_train=200, ema_decay=ema_decay, batch_size=200), gauge=NO_PEAKS)
    counted = 10**6 + num_copies * 4 * plan.params + cost(job.network, 8, 200).activation_bytes
    assert large.memory_bytes == pytest.approx(counted, rel=1e-3)


def test_memory_is_the_line_through_the_peaks_of_two_batches() -> None:
    """Of 100 MiB and, for each image, 1.1 times what autograd keeps of it, which is within the heap's bounds."""
    job, step = make_job(num_train=200, batch_size=128), Watched()
    counted = cost(job.network, 8, 1000)
    image_bytes, weights_bytes = 1.1 * counted.activation_bytes / 1000, 4 * counted.params

    def peak_mib(_: str) -> float:
        num_images = step.shapes[-1][0] if step.shapes else 0
        return (100 * 2**20 + image_bytes * num_images + weights_bytes) / 2**20

    gauge = Gauge(lambda _: 50 * 2**20, lambda _: 2**40, peak_mib, lambda _: True)
    plan = plan_of(job, gauge=gauge, make=step, flops=16 * cost(job.network, 8).training_flops)
    assert [shape[0] for shape in step.shapes] == [4, 4, 16, 16]
    # the probe's copy of the weights is not the run's
    assert plan.memory_bytes == pytest.approx(100 * 2**20 + 128 * image_bytes, rel=1e-3)
    assert plan.available_bytes == 2**40


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"batch_size": 16}, [4, 16]),
        ({"batch_size": 48, "accumulate": 4}, [3, 12]),
        ({"batch_size": 2}, [2, 2]),
    ],
)
def test_the_probe_takes_parts_of_a_batch_up_to_what_it_may_cost(fields: dict[str, Any], sizes: list[int]) -> None:
    step = Watched()
    plan = plan_of(make_job(**fields), make=step)
    parts = [shape[0] // call["accumulate"] for shape, call in zip(step.shapes, step.calls, strict=True)]
    assert parts == [size for size in sizes for _ in range(2)]  # each is timed twice
    assert plan.part_images == sizes[-1]


def test_steps_are_those_of_the_recipe_and_move_no_weight() -> None:
    step = Watched()
    plan_of(make_job(label_smoothing=0.1, accumulate=4, sam_rho=0.05, clip_grad_norm=5.0), make=step)
    expected = {"lr": 0.0, "label_smoothing": 0.1, "accumulate": 2, "sam_rho": 0.05, "clip_grad_norm": 5.0}
    assert all({key: call[key] for key in expected} == expected for call in step.calls)


def test_every_block_counts_even_if_stochastic_depth_skips_some() -> None:
    plain, skipping = (make_job(num_train=200, batch_size=200, stochastic_depth=last) for last in (None, 0.01))
    assert plan_of(skipping, gauge=NO_PEAKS).memory_bytes == plan_of(plain, gauge=NO_PEAKS).memory_bytes


def test_an_expensive_network_is_probed_by_a_few_images() -> None:
    assert plan_of(make_job(), flops=1.0).probe_images == 4


def test_a_batch_beyond_memory_is_refused_after_a_few_of_its_images() -> None:
    job, step = make_job(num_train=20_000, batch_size=20_000), Watched()
    gauge = replace(Gauge(), available_bytes=lambda _: 30 * 2**20)
    with pytest.raises(UsageError, match=r"^batch_size=20000: needs .* the largest that fits is \d+: .* accumulate="):
        plan_of(job, gauge=gauge, make=step, flops=8 * cost(job.network, 8).training_flops)
    assert max(shape[0] for shape in step.shapes) <= 8


def test_memory_is_measured_and_time_told_at_the_largest_images() -> None:
    step = Watched()
    plan_of(make_job(image_scales=((0.0, 0.5), (0.3, 2.0), (0.6, 1.0))), make=step)
    assert {shape[-1] for shape in step.shapes} == {16}
    step = Watched()
    never_at_two = ((0.0, 0.5), (0.1, 2.0), (0.3, 1.0))
    plan_of(make_job(epochs=2, image_scales=never_at_two), make=step)
    assert {shape[-1] for shape in step.shapes} == {8}
