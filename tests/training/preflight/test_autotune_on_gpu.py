"""What `autotune` decides for a GPU, on machines without one: precision, and whether to compile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tuning import Rates, decide

from wideresnet.networks import Network
from wideresnet.spec.execution import Execution
from wideresnet.training.preflight.autotune import MEASURED_BEFORE
from wideresnet.training.preflight.trial import StepShape, Tell, Trial

pytestmark = pytest.mark.usefixtures("autotuning", "a_gpu")


@pytest.mark.parametrize(
    ("num_images", "rates", "compiled"),
    [
        (1000, {"compiled": 900.0}, None),  # a run of 10 s: not tried
        (100_000, {"compiled": 900.0}, True),
        (100_000, {"compiled": 105.0}, False),
        (100_000, {"channels_last": 9000.0}, None),  # too fast for compiling to pay
    ],
)
def test_compiling_is_tried_for_long_runs_alone(
    num_images: int, rates: dict[str, float], compiled: bool | None
) -> None:
    measure = Rates(**rates)
    execution, notes = decide(measure, device="cuda", num_images=num_images, precision="auto")
    assert (execution.kernels, execution.precision, execution.compile) == ("pytorch", "bf16", bool(compiled))
    assert len(measure.asked) == (1 if compiled is None else 2)
    assert not any(way.compile for way in measure.asked[0])
    if compiled is not None:
        assert [way.compile for way in measure.asked[1]] == [False, True]  # in turns
        assert "compiled" in notes
    number = len(measure.asked)
    again = decide(measure, device="cuda", num_images=num_images, precision="auto")
    assert again == (execution, f"{notes} {MEASURED_BEFORE}")
    assert len(measure.asked) == number


def test_a_run_of_another_length_is_another_question() -> None:
    measure = Rates()
    for num_images in (1000, 1000, 2000):
        decide(measure, device="cuda", num_images=num_images)
    assert len(measure.asked) == 2


@pytest.mark.parametrize("compile_", [True, False])
def test_compiling_that_was_asked_for_or_refused_is_not_tried_the_other_way(compile_: bool) -> None:
    measure = Rates()
    execution, _ = decide(measure, device="cuda", num_images=10**6, compile=compile_)
    assert execution.compile is compile_
    assert measure.tried("compile") == [(compile_,)] * 2


def test_a_compiler_that_fails_is_told_and_left_out() -> None:
    rates = Rates()

    def failing(shape: StepShape, network: Network, candidates: Sequence[Execution], tell: Tell) -> Trial:
        if any(candidate.compile for candidate in candidates):
            raise RuntimeError("no Triton\nanywhere here")
        return rates(shape, network, candidates, tell)

    execution, notes = decide(failing, device="cuda", num_images=10**6, layout="channels_last")
    assert execution.compile is False
    assert notes.startswith("not compiled: RuntimeError: no Triton anywhere here; PyTorch's kernels, channels last")
    assert notes.endswith(": 100 images/s in a trial")


def test_a_trial_beyond_the_gpus_memory_takes_the_first_candidate_and_is_not_remembered() -> None:
    asked = 0

    def too_large(*_: object) -> Trial:
        nonlocal asked
        asked += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    for _ in range(2):
        execution, notes = decide(too_large, device="cuda")
        assert (execution.layout, execution.compile, notes) == ("channels_last", False, "")
    assert asked == 2
