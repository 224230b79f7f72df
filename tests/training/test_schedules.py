"""Learning rates, momentum resets and image sizes as functions of the step, written out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.errors import UsageError
from wideresnet.spec.options import ScheduleOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.training.schedules import OneCycle, Steps, image_scale, make_schedule, share_done, shared_batch


@pytest.mark.parametrize(("drop_at", "rates"), [("start", [1, 0.5, 0.5, 0.25]), ("end", [1, 1, 0.5, 0.5])])
def test_a_drop_is_at_the_start_or_the_end_of_the_epoch_named(drop_at: str, rates: list[float]) -> None:
    schedule = Steps(1.0, 0.5, (2, 4), drop_at, True, 3)
    assert [schedule.lr(step) for step in range(12)] == [rate for rate in rates for _ in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    drops=st.sets(st.integers(1, 12), max_size=4),
    drop_at=st.sampled_from(["start", "end"]),
    steps_per_epoch=st.integers(1, 5),
)
def test_momentum_is_reset_at_the_steps_where_the_rate_falls_and_no_other(
    drops: set[int], drop_at: str, steps_per_epoch: int
) -> None:
    schedule = Steps(1.0, 0.5, tuple(sorted(drops)), drop_at, True, steps_per_epoch)
    steps = range(14 * steps_per_epoch)
    falls = [b for a, b in pairwise(steps) if schedule.lr(b) < schedule.lr(a)]
    assert [step for step in steps if schedule.resets_momentum(step)] == falls
    kept = Steps(1.0, 0.5, tuple(sorted(drops)), drop_at, False, steps_per_epoch)
    assert not any(kept.resets_momentum(step) for step in steps)
    assert [kept.lr(step) for step in steps] == [schedule.lr(step) for step in steps]


def test_a_drop_at_the_first_epoch_lowers_it_and_resets_nothing() -> None:
    schedule = Steps(1.0, 0.5, (1,), "start", True, 3)
    assert [schedule.lr(step) for step in range(4)] == [0.5] * 4
    assert not any(schedule.resets_momentum(step) for step in range(4))


@settings(max_examples=60, deadline=None)
@given(num_steps=st.integers(1, 300), fraction=st.floats(0, 1), peak=st.floats(1e-3, 10))
def test_one_cycle_is_positive_below_its_peak_rises_then_falls(num_steps: int, fraction: float, peak: float) -> None:
    schedule = OneCycle(peak, fraction * num_steps, num_steps)
    rates = [schedule.lr(step) for step in range(num_steps)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    top = rates.index(max(rates))
    assert all(a <= b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert not any(schedule.resets_momentum(step) for step in range(num_steps))


def test_one_cycle_is_two_straight_lines_from_zero_over_the_peak_to_zero() -> None:
    schedule = OneCycle(1.0, 4, 12)
    expected = [0.125, 0.375, 0.625, 0.875, *(7.5 / 8 - i / 8 for i in range(8))]
    assert [schedule.lr(step) for step in range(12)] == pytest.approx(expected)


def cosine(num_steps: int, warmup_fraction: float, lr: float = 0.4) -> list[float]:
    schedule = make_schedule(
        Recipe.flat(schedule="cosine", lr=lr, epochs=num_steps, warmup_fraction=warmup_fraction), 1
    )
    assert not any(schedule.resets_momentum(step) for step in range(num_steps))
    return [schedule.lr(step) for step in range(num_steps)]


def test_cosine_is_a_straight_line_up_and_half_a_cosine_down() -> None:
    rates = cosine(100, 0.2)
    assert rates[:20] == pytest.approx([0.4 * (step + 0.5) / 20 for step in range(20)])
    assert rates[20:] == pytest.approx([0.2 * (1 + math.cos(math.pi * (step + 0.5) / 80)) for step in range(80)])


@pytest.mark.parametrize("num_steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("fraction", [0.0, 0.025, 0.5, 1.0])
def test_cosine_is_positive_and_at_most_its_peak_at_every_step(num_steps: int, fraction: float) -> None:
    rates = cosine(num_steps, fraction)
    assert all(0 < rate <= 0.4 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_mean_of_one_cycle_is_half_its_peak() -> None:
    schedule = OneCycle(0.3, 0.15 * 1000, 1000)
    assert sum(schedule.lr(step) for step in range(1000)) / 1000 == pytest.approx(0.15, rel=1e-3)


def test_a_recipe_gives_its_own_schedule() -> None:
    recipe = Recipe.flat(
        lr=0.4, lr_drop_epochs=(3,), lr_drop_factor=0.1, lr_drop_at="end", reset_momentum_at_drops=False
    )
    assert make_schedule(recipe, 7) == Steps(0.4, 0.1, (3,), "end", False, 7)
    cycle = Recipe.flat(schedule="one_cycle", lr=0.4, epochs=10, warmup_fraction=0.2)
    assert make_schedule(cycle, 7) == OneCycle(0.4, 0.2 * 70, 70)


def test_a_schedule_counts_the_epochs_of_the_run_it_is_for() -> None:
    short, long = (make_schedule(Recipe.flat(schedule="one_cycle", epochs=epochs), 10) for epochs in (1, 4))
    assert short.lr(9) == pytest.approx(0.1 * 0.5 / 10)
    assert long.lr(39) == pytest.approx(0.1 * 0.5 / 40)


def test_a_rate_given_beside_the_recipe_replaces_its_own() -> None:
    assert make_schedule(Recipe.flat(lr=0.4), 7, lr=0.8).lr(0) == 0.8
    assert make_schedule(Recipe.flat(lr=0.4), 7, lr=0.0).lr(0) == 0.0


@pytest.mark.parametrize(("rule", "num", "expected"), [("global", 1, (8, 0.1)), ("global", 4, (8, 0.1)),
                                                       ("linear", 1, (8, 0.1)), ("linear", 4, (32, 0.4))])  # fmt: skip
def test_processes_share_a_batch_or_multiply_it_and_the_rate(rule: str, num: int, expected: tuple[int, float]) -> None:
    assert shared_batch(ScheduleOptions(batch_size=8, lr=0.1, batch_rule=rule), num) == expected


def test_a_batch_with_fewer_images_than_processes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"batch_size=8: fewer images than the 9 processes.*batch_size=9.*processes=8"):
        shared_batch(ScheduleOptions(batch_size=8), 9)


@pytest.mark.parametrize(
    ("epochs", "scales"),
    [(4, [0.5, 0.5, 1.0, 1.0]), (5, [0.5, 0.5, 0.5, 1.0, 1.0]), (1, [1.0]), (2, [0.5, 1.0])],
)
def test_images_grow_at_the_share_of_the_epochs_that_is_named(epochs: int, scales: list[float]) -> None:
    recipe = Recipe.flat(epochs=epochs, image_scales=((0.0, 0.5), (0.5, 1.0)))
    assert [image_scale(recipe, epoch) for epoch in range(epochs)] == scales


@pytest.mark.parametrize("epochs", [3, 7, 18, 49, 90, 200])
def test_a_share_of_thirds_begins_where_exact_arithmetic_says(epochs: int) -> None:
    for part in range(1, epochs):
        recipe = Recipe.flat(epochs=epochs, image_scales=((0.0, 0.5), (part / epochs, 1.0)))
        assert [image_scale(recipe, epoch) for epoch in (part - 1, part)] == [0.5, 1.0]


def test_epochs_on_small_images_are_less_of_the_work() -> None:
    recipe = Recipe.flat(epochs=4, image_scales=((0.0, 0.5), (0.5, 1.0)))  # 0.25 + 0.25 + 1 + 1
    shares = [share_done(recipe, share) for share in (0.0, 0.125, 0.25, 0.5, 0.625, 1.0)]
    assert shares == pytest.approx([0, 0.05, 0.1, 0.2, 0.4, 1])
    assert share_done(Recipe.flat(epochs=4), 0.3) == pytest.approx(0.3)
