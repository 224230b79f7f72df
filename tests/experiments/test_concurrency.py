"""How many runs train at the same time: measured on runs that are simulated."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from wideresnet.experiments.concurrency import Pace, Report, make_pace, num_that_fit


def drive(pace: Pace, steps_per_s: Callable[[int], float], seconds: int = 300) -> list[int]:
    """Simulate runs whose speed depends on their number; returns the number of runs, second by second."""
    steps: dict[int, float] = {}
    history = []
    for second in range(seconds):
        for seed in range(len(steps), pace.at_once):
            steps[seed] = 0.0
        for seed in steps:
            steps[seed] += steps_per_s(len(steps))
        history.append(len(steps))
        pace.observe({seed: Report(float(second), int(step), 1.0, 50.0) for seed, step in steps.items()})
    return history


def test_runs_are_added_as_long_as_the_device_does_more_work() -> None:
    said: list[str] = []
    pace = Pace(1, 8, batch_size=10, say=said.append)
    drive(pace, lambda num: min(100.0, 400.0 / num))  # saturated by four
    assert pace.at_once == 4
    assert pace.rates == pytest.approx({1: 1000, 2: 2000, 4: 4000, 8: 4000}, rel=0.01)
    assert "continuing with 4" in said[-1]


def test_a_device_that_one_run_keeps_busy_gets_one_at_a_time_after_one_trial() -> None:
    pace = Pace(1, 5, say=lambda _: None)
    drive(pace, lambda num: 100.0 / num)
    assert pace.at_once == 1
    assert list(pace.rates) == [1, 2]


def test_no_more_runs_are_added_than_there_are_seeds_or_than_fit_into_memory() -> None:
    wanted = Pace(1, 5, say=lambda _: None)
    drive(wanted, lambda _: 100.0)
    assert wanted.at_once == 5
    said: list[str] = []
    room = Pace(1, 8, num_that_fit=lambda: 3 - room.at_once, say=said.append)
    assert max(drive(room, lambda _: 100.0)) == 3
    assert said[-1].endswith("no more fit into memory")


def test_nothing_is_measured_before_all_runs_train_or_across_the_end_of_one() -> None:
    pace = Pace(2, 8, say=lambda _: None)
    for second in range(100):
        pace.observe({0: Report(second, second, 1.0, 1.0), 1: None})  # the second one still loads its data
    assert not pace.rates
    for second in range(100):
        seeds = (0, 1) if second % 8 < 4 else (1, 2)
        pace.observe({seed: Report(second, second, 1.0, 1.0) for seed in seeds})
    assert not pace.rates


def test_a_given_number_of_runs_is_not_measured() -> None:
    pace = Pace(2, 2, say=lambda _: None)
    drive(pace, lambda num: 100.0 / num)
    assert pace.at_once == 2
    assert not pace.rates


PLAN = SimpleNamespace(memory_bytes=2**30)


@pytest.mark.parametrize(
    ("num_seeds", "asked", "at_once", "num_threads"), [(5, None, 1, 8), (5, 3, 3, 2), (2, 16, 2, 4), (9, 9, 9, 1)]
)
def test_on_a_cpu_runs_share_the_threads_and_one_has_them_all(
    num_seeds: int, asked: int | None, at_once: int, num_threads: int
) -> None:
    said: list[str] = []
    pace, threads = make_pace("cpu", PLAN, 128, num_seeds, asked, said.append, num_threads=8)  # type: ignore[arg-type]
    assert (pace.at_once, pace.settled, threads) == (at_once, True, num_threads)
    assert f"{num_threads} threads each, expected memory {at_once} x 1.0 GiB" in said[0]


def test_on_a_gpu_memory_bounds_the_runs_by_what_they_take_and_by_what_they_are_planned_to() -> None:
    free = {"cuda": 80, "cpu": 100}
    pace, threads = make_pace(
        "cuda", SimpleNamespace(memory_bytes=5), 128, 64, None, lambda _: None,  # type: ignore[arg-type]
        available_bytes=free.__getitem__, in_use_bytes=lambda _: 10,
    )  # fmt: skip
    assert (pace.at_once, pace.settled, threads) == (1, False, None)
    free["cuda"] = 72  # the running one takes 8, not 5
    assert pace.num_that_fit is not None
    assert pace.num_that_fit() == 9
    assert num_that_fit(20, 80, 1, free.__getitem__, lambda _: 10) == 3
    free["cpu"] = 25
    assert pace.num_that_fit() == 2
    free["cpu"] = 0  # the system does not say
    assert pace.num_that_fit() == 9
