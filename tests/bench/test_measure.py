"""Turns, rounds and the spread of times, on a clock that only contenders advance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.bench.contenders import Contender
from wideresnet.bench.measure import Lane, attempt, matmul_contender, num_rounds, take_turns
from wideresnet.bench.summary import ratio, spread


class FakeClock:
    """Time that passes only when a contender works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, *seconds: float) -> Contender:
        """Takes the given seconds, one call after the other; the last for all further calls."""
        costs: Iterator[float] = iter(seconds[:-1])

        def call() -> None:
            self.calls.append(name)
            self.now += next(costs, seconds[-1])

        return Contender(name, "as it is", call, torch.get_num_threads())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_contenders_take_turns_in_every_round(clock: FakeClock) -> None:
    lanes = [Lane(clock.contender(name, 1.0), call_s=1.0) for name in "ABC"]
    take_turns(lanes, 3, "cpu", clock=clock)
    assert "".join(clock.calls) == "ABCABCABC"
    assert [lane.seconds for lane in lanes] == [[1.0] * 3] * 3


def test_a_turn_has_many_short_calls_and_yields_the_seconds_of_one(clock: FakeClock) -> None:
    lane = Lane(clock.contender("A", 1 / 64))
    lane.warm_up("cpu", clock)
    assert lane.num_calls == 13  # 0.2 s
    before = len(clock.calls)
    lane.take_turn("cpu", clock)
    assert len(clock.calls) - before == 13
    assert lane.seconds == [1 / 64]


def test_the_first_call_is_separate_and_slow_calls_are_warmed_up_once(clock: FakeClock) -> None:
    lane = Lane(clock.contender("A", 30.0, 2.0))
    lane.warm_up("cpu", clock)
    assert (lane.first_s, lane.call_s, lane.num_calls) == (30.0, 2.0, 1)
    assert len(clock.calls) == 2


@pytest.mark.parametrize(("repeats", "budget_s", "rounds"), [(20, 60, 6), (4, 60, 4), (20, 0, 3), (2, 0, 2)])
def test_rounds_fit_the_budget_but_are_at_least_three(repeats: int, budget_s: float, rounds: int) -> None:
    contender = FakeClock().contender("A", 5.0)
    assert num_rounds([Lane(contender, call_s=5.0), Lane(contender, call_s=5.0)], repeats, budget_s) == rounds


def test_the_expected_seconds_of_all_turns_add_up_to_the_bar(clock: FakeClock) -> None:
    lanes = [Lane(clock.contender("A", 1.0), call_s=1.0), Lane(clock.contender("B", 3.0), call_s=3.0)]
    told: list[float] = []
    take_turns(lanes, 2, "cpu", clock=clock, advance=told.append)
    assert sum(told) == 2 * sum(lane.turn_s for lane in lanes)


def test_a_contender_that_fails_midway_drops_out_and_the_others_continue(clock: FakeClock) -> None:
    def fail() -> None:
        raise RuntimeError("no\nmemory")

    contender = dataclasses.replace(clock.contender("B", 1.0), call=fail)
    failing = Lane(contender, may_fail=True, call_s=1.0)
    ours = Lane(clock.contender("A", 1.0), call_s=1.0)
    take_turns([ours, failing], 3, "cpu", clock=clock)
    assert failing.problem == "RuntimeError: no memory"
    assert len(ours.seconds) == 3


def test_our_own_failure_is_not_swallowed(clock: FakeClock) -> None:
    def fail() -> None:
        raise UsageError("wrong")

    with pytest.raises(UsageError, match="wrong"):
        attempt(Lane(clock.contender("A", 1.0)), fail)
    lane = Lane(clock.contender("A", 1.0), may_fail=True)
    attempt(lane, fail)
    assert lane.problem == "wrong"


def test_each_contender_runs_with_its_own_number_of_threads(clock: FakeClock) -> None:
    before, seen = torch.get_num_threads(), []
    contender = Contender("A", "as it is", lambda: seen.append(torch.get_num_threads()), before + 1)
    try:
        Lane(contender, call_s=1.0).take_turn("cpu", clock)
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 1]


def test_spread_is_median_minimum_and_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3, "min": 1, "quartile1": 2, "quartile3": 4}
    assert spread([7.0]) == {"median": 7, "min": 7, "quartile1": 7, "quartile3": 7}


def test_a_ratio_compares_within_rounds_so_that_a_slow_period_cancels() -> None:
    ours, other = [1.0, 10.0, 1.0], [2.0, 20.0, 3.0]  # the machine was ten times slower in the second round
    assert ratio(ours, other) == {"median": 2, "min": 2, "quartile1": 2, "quartile3": 2.5}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_matrix_product_counts_its_operations(precision: str) -> None:
    contender, flops = matmul_contender("cpu", precision, 1, side=16)
    contender.call()
    assert flops == 2 * 16**3
    assert contender.configuration == f"{precision}, 16 x 16"
