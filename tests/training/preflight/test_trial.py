"""Trials: which batches are timed, how often, and what a whole batch would take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_jobs import make_job
from torch import Tensor
from tuning import a_network, a_shape

from wideresnet.networks import Network
from wideresnet.spec.execution import Execution
from wideresnet.training.preflight.trial import MAX_STEPS, MIN_STEPS, ROUNDS, StepShape, extrapolated, time_candidates

LAYOUTS = [Execution(device="cpu", layout=layout) for layout in ("channels_last", "contiguous")]


def watched(see: Callable[[int, str], None]) -> Network:
    """A network that tells each batch: its images and layout."""
    network = a_network("ResNet-8")  # whose last maps are 1x1 on 4x4 images: a part of one image has no statistics

    def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
        images = arguments[0]
        see(len(images), "contiguous" if images.is_contiguous() else "channels_last")

    network.register_forward_pre_hook(hook)
    return network


def test_a_shape_is_that_of_the_recipes_steps() -> None:
    job = make_job(batch_size=20, accumulate=2, momentum=0.8)
    assert StepShape.of(job.recipe, job.data.feed) == StepShape(20, 2, (8, 8), job.recipe.optimizer)


def test_candidates_are_timed_by_whole_steps_of_what_is_computed_at_once() -> None:
    seen: list[tuple[int, str]] = []
    network = watched(lambda num, layout: seen.append((num, layout)))
    trial = time_candidates(a_shape(batch_size=8, accumulate=4, size=(4, 4)), network, LAYOUTS)
    assert len(trial.rates) == 2
    assert all(0 < rate < float("inf") for rates in trial.rates for rate in rates)
    assert 0 < trial.cpu_share <= 1
    assert set(seen) == {(2, "channels_last"), (2, "contiguous")}


def test_a_candidate_is_warmed_up_until_it_gets_no_faster_and_a_hopeless_one_takes_no_turns() -> None:
    """One that first pays for memory is not taken for a slow one."""
    now, steps = 0.0, {number: list[str]() for number in range(33)}

    def see(num: int, layout: str) -> None:
        nonlocal now
        steps[num].append(layout)
        number = steps[num].count(layout)
        now += {"channels_last": 0.001 * num + 0.1 / 4**number, "contiguous": 0.002 * num}[layout]

    trial = time_candidates(
        a_shape(batch_size=128), watched(see), LAYOUTS, clock=lambda: now, cpu_clock=lambda: 0.95 * now
    )
    assert trial.rates == ((pytest.approx(1000, rel=0.02),), (pytest.approx(500),))
    assert MAX_STEPS >= steps[8].count("channels_last") > steps[8].count("contiguous") == MIN_STEPS["cpu"]
    assert set(steps[32]) == {"channels_last"}
    assert trial.cpu_share == pytest.approx(0.95)


def test_candidates_that_are_alike_take_turns_in_rounds() -> None:
    now, seen, told = 0.0, list[str](), list[str]()

    def see(num: int, layout: str) -> None:
        nonlocal now
        seen.append(f"{layout} {num}")
        slow = 2.0 if len(told) and "round 2" in told[-1] else 1.0  # another program, in both turns of a round
        now += slow * num * {"channels_last": 0.010, "contiguous": 0.012}[layout]

    trial = time_candidates(
        a_shape(batch_size=128), watched(see), LAYOUTS, told.append, clock=lambda: now, cpu_clock=lambda: now
    )
    first, other = trial.rates
    assert len(first) == len(other) == ROUNDS
    assert first == pytest.approx((100, 50, 100))
    assert [a / b for a, b in zip(first, other, strict=True)] == pytest.approx([1.2] * ROUNDS)
    one_round = [f"{layout} {num}" for layout in ("channels_last", "contiguous") for num in (8, 32)]
    assert seen[-3 * len(one_round) :] == one_round * ROUNDS
    assert told[0] == f"timing {LAYOUTS[0].describe()}: warm-up, 0 s so far"
    assert told[-1].startswith(f"timing {LAYOUTS[1].describe()}: round {ROUNDS} of {ROUNDS}, ")
    assert told[-1].endswith(f"{now - 0.012 * 32:.0f} s so far")


def test_the_first_candidate_takes_its_turns_however_slow_it_is() -> None:
    now = 0.0

    def see(num: int, layout: str) -> None:
        nonlocal now
        now += num * {"channels_last": 0.05, "contiguous": 0.01}[layout]

    first, other = time_candidates(
        a_shape(batch_size=128), watched(see), LAYOUTS, clock=lambda: now, cpu_clock=lambda: now
    ).rates
    assert first == pytest.approx([20] * ROUNDS)
    assert other == pytest.approx([100] * ROUNDS)


def test_a_trial_beside_other_programs_ends_early() -> None:
    now, seen = 0.0, list[int]()

    def see(num: int, _: str) -> None:
        nonlocal now
        now += 0.01 * num
        seen.append(num)

    trial = time_candidates(
        a_shape(batch_size=128), watched(see), LAYOUTS, clock=lambda: now, cpu_clock=lambda: now / 2
    )
    assert trial.rates == ((pytest.approx(100),), (pytest.approx(100),))
    assert trial.cpu_share == pytest.approx(0.5)
    assert set(seen) == {8}


@pytest.mark.parametrize(("image_s", "sizes"), [(0.001, {8, 32}), (0.1, {8, 16})])
def test_slow_networks_are_timed_on_smaller_batches(image_s: float, sizes: set[int]) -> None:
    now, seen = 0.0, list[int]()

    def see(num: int, _: str) -> None:
        nonlocal now
        now += image_s * num
        seen.append(num)

    trial = time_candidates(
        a_shape(batch_size=128), watched(see), LAYOUTS[:1], clock=lambda: now, cpu_clock=lambda: now
    )
    assert trial.rates == ((pytest.approx(1 / image_s),),)
    assert set(seen) == sizes


def test_a_whole_batch_is_extrapolated_from_two_sizes_within_the_bounds_of_noise() -> None:
    def of(low: float, high: float) -> float:
        return extrapolated((8, low), (32, high), 128)

    assert of(0.1 + 8 * 0.01, 0.1 + 32 * 0.01) == pytest.approx(0.1 + 128 * 0.01)  # work on weights counts once
    assert of(0.4, 0.32) == pytest.approx(0.32 + 96 * 0.005)  # fewer images cannot take longer
    assert of(0.01, 0.32) == pytest.approx(128 * 0.01)
    assert of(0.08, float("inf")) == pytest.approx(1.28)


@pytest.mark.usefixtures("own_threads")
def test_threads_are_restored_if_measuring_fails() -> None:
    def failing() -> float:
        raise RuntimeError("out of memory")

    torch.set_num_threads(1)
    with pytest.raises(RuntimeError, match="out of memory"):
        time_candidates(a_shape(), a_network(), [Execution(device="cpu", threads=2)], clock=failing)
    assert torch.get_num_threads() == 1
