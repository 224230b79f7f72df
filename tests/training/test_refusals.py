"""What `fit` refuses before anything is written, and what stops a run in one line."""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import MakeNpz, after_steps, assert_same_run, small, weights

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit, make_plan
from wideresnet.training.preflight.probe import Gauge, Probe


def test_a_batch_that_cannot_fit_leaves_no_run(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = functools.partial(Probe, gauge=Gauge(available_bytes=lambda _: 1))
    plan = functools.partial(make_plan, make_probe=probe)
    monkeypatch.setattr(sys.modules["wideresnet.training.fit"], "make_plan", plan)
    with pytest.raises(UsageError, match="batch_size=16: needs "):
        fit(small(make_npz()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_refused(make_npz: MakeNpz, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_size[ =]128: larger than the 64 training images"):
        fit(small(make_npz(), batch_size=128), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_between_checkpoints_that_is_none_is_refused(make_npz: MakeNpz, tmp_path: Path, seconds: float) -> None:
    with pytest.raises(UsageError, match=r"checkpoint_every_s=.*0 or more seconds"):
        fit(small(make_npz()), tmp_path / "run", checkpoint_every_s=seconds)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_never_overwritten_unasked(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), epochs=1)
    fit(recipe, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(UsageError, match=r"resume=True, .*overwrite=True"):
        fit(recipe, tmp_path / "run")
    assert weights(tmp_path / "run") == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a run folder"):
        fit(recipe, tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "holiday.jpg").exists()
    fit(small(make_npz(), epochs=1, seed=5), tmp_path / "run", overwrite=True)
    assert weights(tmp_path / "run") != before


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_last_good_state(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    with pytest.raises(WRNError, match=r"not finite at epoch \d+, step \d+ of 4, lr 1e\+\d+.*lower lr=") as caught:
        fit(small(make_npz(), lr=1e30), tmp_path / "run")
    assert "\n" not in str(caught.value)
    kept = list(RunFolder(tmp_path / "run").checkpoint.glob("step-*"))
    assert all(torch.isfinite(t.float()).all() for path in kept for t in load_file(path).values())
    assert not RunFolder(tmp_path / "run").result.exists()


def test_a_full_disk_ends_the_run_in_one_line_and_it_can_be_resumed(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(make_npz())
    fit(recipe, tmp_path / "whole")
    full = False

    def fsync(_: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        nonlocal full
        full = True

    monkeypatch.setattr(os, "fsync", fsync)
    with after_steps(6, fill), pytest.raises(WRNError, match="no space left on the disk") as caught:
        fit(recipe, tmp_path / "cut", checkpoint_every_s=0.0)
    assert "\n" not in str(caught.value)
    full = False
    fit(recipe, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_disk_too_small_for_checkpoints_is_refused_before_the_first_step(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WRNError, match="checkpoints need"):
        fit(small(make_npz()), tmp_path / "run")
