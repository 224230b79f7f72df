"""From the rounds of a trial to a choice: only what every round says is decided, and only on a quiet machine."""

from __future__ import annotations

import pytest

from wideresnet.spec.execution import Execution
from wideresnet.training.preflight.choice import MAX_SCATTER, choose, why_not_trusted
from wideresnet.training.preflight.trial import MIN_CPU_SHARE, Trial

FIRST, OTHER, THIRD, BF16 = (
    Execution(device="cpu", kernels="winograd"),
    Execution(device="cpu"),
    Execution(device="cpu", layout="contiguous"),
    Execution(device="cpu", precision="bf16"),
)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ([(100, 100, 100), (111, 112, 111)], 1),
        ([(100, 100, 100), (150, 109, 150)], 0),  # one round disagrees
        ([(100, 200, 100), (111, 222, 111)], 1),  # in turns, so that a change of the machine affects both
        ([(100,), (300,)], 0),  # the rounds were not run
        ([(100, 100, 100), (90,)], 0),
        ([(100, 100, 100), (120, 120, 120), (130, 130, 130)], 2),
        ([(100, 100, 100), (120, 120, 120), (500, 105, 500)], 1),
    ],
)
def test_another_candidate_must_be_clearly_faster_in_every_round(rates: list[tuple[float, ...]], chosen: int) -> None:
    assert choose([FIRST, OTHER, THIRD][: len(rates)], Trial(tuple(rates))) == chosen


@pytest.mark.parametrize(
    ("first", "other", "bf16", "chosen"),
    [
        ((100, 100, 100), (90, 90, 90), (129, 140, 140), 0),
        ((100, 100, 100), (90, 90, 90), (130, 130, 130), 2),
        ((100, 100, 100), (120, 120, 120), (140, 140, 140), 1),  # the fastest fp32 counts
        ((100, 100, 100), (90, 115, 90), (140, 140, 140), 0),  # in each round
        ((100, 100, 100), (90, 90, 90), (300, 300, 120), 0),
    ],
)
def test_bf16_must_gain_a_third_over_the_fastest_fp32_in_every_round(
    first: tuple[float, ...], other: tuple[float, ...], bf16: tuple[float, ...], chosen: int
) -> None:
    assert choose([FIRST, OTHER, BF16], Trial((first, other, bf16))) == chosen


def test_a_trial_is_trusted_if_its_rounds_agree_and_the_process_had_its_cpu() -> None:
    quiet = ((100.0, 99.0, 101.0), (50.0,))
    assert why_not_trusted(Trial(quiet, cpu_share=MIN_CPU_SHARE)) == ""
    assert "had 50 % of the time" in why_not_trusted(Trial(quiet, cpu_share=0.5))
    scatter = ((100.0, 100.0, 100.0 * MAX_SCATTER + 1), (50.0,))
    assert "scatter by a factor" in why_not_trusted(Trial(scatter))
