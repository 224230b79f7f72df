"""Several processes train as one: the same numbers, one record, one end. Two or three of them, over gloo on the CPU."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from processes import in_processes
from world_runs import MakeNpz, assert_close, metrics, run, small, weights

from wideresnet.base.errors import UsageError
from wideresnet.kernels import library
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit


def skip_without_kernels(changes: dict[str, Any]) -> None:
    if changes.get("kernels") == "winograd" and (reason := library.why_unavailable()):
        pytest.skip(reason)


@pytest.mark.parametrize(
    "changes", [{"stochastic_depth": 0.5}, {"kernels": "winograd"}, {"muon_lr": 0.05, "lr": 0.02}], ids=str
)
def test_with_sync_bn_a_run_of_several_processes_is_that_of_one_up_to_rounding(
    make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any]
) -> None:
    skip_without_kernels(changes)
    recipe = small(make_npz(num_train=70), sync_bn=True, drop_last=False, ema_decay=0.9, **changes)
    single = fit(recipe, tmp_path / "one")
    results = in_processes(3, run, recipe, tmp_path / "three")  # batches of 16 and 6 images
    assert results[0] == results[1] == results[2]
    assert (single["num_processes"], results[0]["num_processes"]) == (1, 3)
    assert_close(tmp_path / "three", tmp_path / "one", 1e-3)
    for found, expected in zip(metrics(tmp_path / "three"), metrics(tmp_path / "one"), strict=True):
        assert found["step"] == expected["step"]
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    env = json.loads(RunFolder(tmp_path / "three").env.read_text())
    assert env["num_processes"] == 3


@pytest.mark.parametrize(
    ("rank", "changes"),
    [
        (1, {"dropout": 0.2, "ema_decay": 0.9}),
        (0, {"sync_bn": True, "kernels": "winograd"}),
        (1, {"dropout": 0.2, "sam_rho": 0.05}),
        (0, {"sync_bn": True, "sam_rho": 0.05, "stochastic_depth": 0.5}),
        (1, {"muon_lr": 0.05}),
    ],
    ids=str,
)
def test_an_interrupt_of_any_process_stops_all_and_resuming_gives_the_same_bits(
    make_npz: MakeNpz, tmp_path: Path, rank: int, changes: dict[str, Any]
) -> None:
    skip_without_kernels(changes)
    recipe = small(make_npz(), **changes)
    whole = in_processes(2, run, recipe, tmp_path / "whole")
    assert whole[0] == whole[1]
    ends = in_processes(2, run, recipe, tmp_path / "cut", "interrupt", rank, 3)
    reported = [end for end in ends if end != 130]
    assert len(reported) == 1, ends
    assert re.fullmatch(r"Interrupted: stopped after step 3; .*continue with resume=True", reported[0])
    in_processes(2, run, recipe, tmp_path / "cut", "", 0, 0, True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (
        RunFolder(tmp_path / "cut").predictions.read_bytes() == RunFolder(tmp_path / "whole").predictions.read_bytes()
    )


def test_a_run_continues_with_another_number_of_processes_if_only_rounding_changes(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    recipe = small(make_npz(), sync_bn=True)
    fit(recipe, tmp_path / "one")
    in_processes(2, run, recipe, tmp_path / "cut", "interrupt", 0, 5)
    notes: list[str] = []
    result = fit(recipe, tmp_path / "cut", resume=True, announce=lambda job, _: notes.extend(job.notes))
    assert result["num_processes"] == 1
    assert "the run had 2 processes and continues with 1: the same up to rounding" in notes
    assert_close(tmp_path / "cut", tmp_path / "one", 1e-3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, "without sync_bn=True"), ({"norm": "group", "batch_rule": "linear"}, "under batch_rule='linear'")],
    ids=str,
)
def test_another_number_of_processes_is_refused_if_it_would_be_another_run(
    make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    recipe = small(make_npz(), **changes)
    in_processes(2, run, recipe, tmp_path / "cut", "interrupt", 0, 1)
    with pytest.raises(UsageError, match=f"processes=2, now 1: {why}"):
        fit(recipe, tmp_path / "cut", resume=True)


def test_a_killed_process_ends_the_others_at_once_and_is_named(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz())
    in_processes(3, run, recipe, tmp_path / "whole")
    started = time.monotonic()
    ends = in_processes(3, run, recipe, tmp_path / "cut", "kill", 0, 6)
    assert time.monotonic() - started < 30
    assert ends[0] == -signal.SIGKILL
    reported = [end for end in ends[1:] if end != 1]
    assert len(reported) == 1, ends
    assert "process 0 of 3 (counted from 0) was killed: the run has stopped; continue from" in reported[0]
    assert "\n" not in reported[0]
    in_processes(3, run, recipe, tmp_path / "cut", "", 0, 0, True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_its_step(make_npz: MakeNpz, tmp_path: Path) -> None:
    ends = in_processes(2, run, small(make_npz()), tmp_path / "run", "nan", 1, 5)
    assert sorted(end == 1 for end in ends) == [False, True], ends  # one reports, the other exits silently
    assert any("not finite at epoch 2, step 2 of 4" in str(end) for end in ends)


def test_a_full_disk_ends_all_processes_with_the_one_reason(make_npz: MakeNpz, tmp_path: Path) -> None:
    ends = in_processes(2, run, small(make_npz()), tmp_path / "run", "full disk", 0, 3)
    assert ends[1] == 1
    assert "no space left on the disk" in ends[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, "batch_size=1: fewer images than the 2 processes"),
        ({"batch_size": 21, "drop_last": False}, "leaves a last batch of 1, fewer than the 2 processes"),
    ],
    ids=str,
)
def test_a_batch_that_cannot_be_shared_is_refused(
    make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ends = in_processes(2, run, small(make_npz(), **changes), tmp_path / "run")
    assert [end for end in ends if end != 2] == [end for end in ends if message in str(end)] != []
    assert not (tmp_path / "run").exists()
