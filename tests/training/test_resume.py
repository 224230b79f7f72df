"""A run that was stopped or killed, and resumed, ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Killed, MakeNpz, after_steps, assert_same_run, break_off, interrupt, kill, small

from wideresnet.base.errors import DataError, UsageError
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted, fit
from wideresnet.training.page import write_page
from wideresnet.weights.checkpoint import list_checkpoints, newest_checkpoint
from wideresnet.weights.hub import read_weights

Whole = Callable[..., tuple[Recipe, Path]]


def stop(recipe: Recipe, out: Path, num_steps: int, **options: Any) -> None:
    """Begin a run and interrupt it."""
    with after_steps(num_steps, interrupt), pytest.raises(Interrupted, match="continue with resume=True"):
        fit(recipe, out, **options)


@pytest.fixture(scope="module")
def _wholes() -> dict[Any, tuple[Recipe, Path]]:
    return {}


@pytest.fixture
def whole(_wholes: dict[Any, tuple[Recipe, Path]], make_npz: MakeNpz, tmp_path: Path) -> Whole:
    """Return a recipe with changes and its run that was never stopped, trained once for all tests of this module."""

    def get(**changes: Any) -> tuple[Recipe, Path]:
        key = tuple(changes.items())
        if key not in _wholes:
            recipe = small(make_npz(), **changes)
            fit(recipe, tmp_path / "whole")
            write_page(RunFolder(tmp_path / "whole"))
            _wholes[key] = recipe, tmp_path / "whole"
        return _wholes[key]

    return get


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("num_steps", [1, 4, 6, 8, 12], ids=lambda n: f"after-step-{n}")
def test_ctrl_c_and_resume_give_the_uninterrupted_weights_bit_for_bit(
    whole: Whole, tmp_path: Path, num_steps: int, ema_decay: float
) -> None:
    # 4 steps per epoch: steps 4, 8 and 12 end an epoch, momentum restarts at 8; averaging with decay 0.3 warms up to 4
    recipe, uncut = whole(ema_decay=ema_decay)
    stop(recipe, tmp_path / "cut", num_steps)
    assert fit(recipe, tmp_path / "cut", resume=True)["epochs"] == 3
    assert_same_run(tmp_path / "cut", uncut)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "ema_decay": 0.9, "stochastic_depth": 0.7}], ids=str)
def test_a_run_with_sam_and_strong_augmentation_resumes_bit_for_bit(
    whole: Whole, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe, uncut = whole(
        schedule="cosine", warmup_fraction=0.2, sam_rho=0.1, clip_grad_norm=1.0, auto_augment="trivial", cutout=3,
        **changes,
    )  # fmt: skip
    stop(recipe, tmp_path / "cut", 6)
    fit(recipe, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", uncut)


@pytest.mark.parametrize("changes", [{"accumulate": 3, "stochastic_depth": 0.7}, {"muon_lr": 0.05}], ids=str)
def test_a_run_with_accumulated_gradients_or_muon_resumes_bit_for_bit(
    whole: Whole, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe, uncut = whole(**changes)
    stop(recipe, tmp_path / "cut", 5)
    fit(recipe, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", uncut)


def test_a_run_may_be_stopped_and_resumed_many_times(whole: Whole, tmp_path: Path) -> None:
    recipe, uncut = whole(ema_decay=0.9)
    stop(recipe, tmp_path / "cut", 2)
    for _ in range(4):
        stop(recipe, tmp_path / "cut", 2, resume=True)
    fit(recipe, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", uncut)


def test_a_second_ctrl_c_loses_what_was_not_saved_and_nothing_else(whole: Whole, tmp_path: Path) -> None:
    recipe, uncut = whole(ema_decay=0.0)
    with after_steps(5, break_off), pytest.raises(Interrupted, match="from the last checkpoint with resume=True"):
        fit(recipe, tmp_path / "cut")
    fit(recipe, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", uncut)


def test_ctrl_c_before_the_first_step_leaves_nothing(make_npz: MakeNpz, tmp_path: Path) -> None:
    def announce(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="before the first step; nothing was written"):
        fit(small(make_npz()), tmp_path / "run", announce=announce)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_steps", [1, 3, 4, 9, 12])
def test_a_kill_between_checkpoints_replays_to_the_same_weights(whole: Whole, tmp_path: Path, num_steps: int) -> None:
    recipe, uncut = whole(ema_decay=0.0)
    with after_steps(num_steps, kill), pytest.raises(Killed):
        fit(recipe, tmp_path / "cut", checkpoint_every_s=0.0 if num_steps == 9 else 60.0)
    fit(recipe, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", uncut)


def test_kill_9_of_a_real_process_at_random_moments_changes_nothing(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz(num_train=512, num_test=64)
    command = [sys.executable, "-m", "wideresnet", "train", "WRN-10-1", "--data", str(data), "--epochs", "12",
               "--batch-size", "16", "--dropout", "0.2", "--checkpoint-every", "0.05", "--device", "cpu"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out: str, *flags: str, kill_when: Callable[[], bool] | None = None) -> int:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / out), *flags], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None:
            if kill_when is not None and kill_when():
                process.kill()
            time.sleep(0.005)
        assert process.stderr is not None
        process.stderr.close()
        return process.returncode

    assert run("whole") == 0
    moments = random.Random()
    kills = 0
    for _ in range(3):
        folder = RunFolder(tmp_path / "cut")
        seen = {path.name for path in folder.checkpoint.glob("step-*")}
        wait = moments.uniform(0.0, 0.4)
        started: list[float] = []

        def due(
            folder: RunFolder = folder, seen: set[str] = seen, wait: float = wait, started: list[float] = started
        ) -> bool:
            fresh = {path.name for path in folder.checkpoint.glob("step-*")} - seen
            if fresh and not started:
                started.append(time.monotonic())
            return bool(started) and time.monotonic() - started[0] > wait

        flags = ["--resume"] if folder.is_run() else []
        kills += run("cut", *flags, kill_when=due) == -signal.SIGKILL
        if folder.result.is_file():
            break
    assert kills >= 1
    if not RunFolder(tmp_path / "cut").result.is_file():
        assert run("cut", "--resume") == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_damaged_newest_checkpoint_falls_back_to_the_previous_one_and_is_logged(
    whole: Whole, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, uncut = whole(ema_decay=0.0)
    stop(recipe, tmp_path / "cut", 7, checkpoint_every_s=0.0)
    newest = max((tmp_path / "cut" / "checkpoint").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    fit(recipe, tmp_path / "cut", resume=True)
    (warning,) = [record for record in caplog.records if "is damaged" in record.getMessage()]
    assert (warning.levelno, newest.name in warning.getMessage()) == (logging.WARNING, True)
    assert_same_run(tmp_path / "cut", uncut)


@pytest.mark.parametrize(("key", "value"), [("network", "WRN-16-1"), ("lr", 0.2), ("seed", 3), ("epochs", 9)])
def test_resuming_as_another_run_is_refused_by_name(make_npz: MakeNpz, tmp_path: Path, key: str, value: Any) -> None:
    recipe = small(make_npz())
    stop(recipe, tmp_path / "run", 2)
    with pytest.raises(UsageError, match=f"has {key} .*{value}"):
        fit(recipe.replace(**{key: value}), tmp_path / "run", resume=True)


def test_where_and_how_a_run_is_computed_may_change_on_resuming(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), kernels="pytorch")
    stop(recipe, tmp_path / "run", 2)
    elsewhere = recipe.replace(layout="contiguous", kernels="auto", network="wrn-10-1", precision="auto")
    assert fit(elsewhere, tmp_path / "run", resume=True)["epochs"] == 3
    stop(recipe, tmp_path / "other", 2)
    with pytest.raises(UsageError, match="has precision fp32, asked for is bf16"):
        fit(recipe.replace(precision="bf16"), tmp_path / "other", resume=True)


def test_resuming_on_changed_data_is_refused(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    stop(small(data), tmp_path / "run", 2)
    with np.load(data) as old:
        arrays = {**old, "x_train": 255 - old["x_train"]}
    np.savez(data, **arrays)
    with pytest.raises(UsageError, match="no longer holds the images"):
        fit(small(data), tmp_path / "run", resume=True)


def test_a_resumed_record_names_the_command_that_began_the_run(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe, folder = small(make_npz()), RunFolder(tmp_path / "run")
    stop(recipe, folder.path, 2)
    began = json.loads(folder.env.read_text())
    folder.env.write_text(json.dumps({**began, "command": "wrn train first", "cpu": "another"}))
    fit(recipe, folder.path, resume=True, command="wrn train --resume")
    resumed = json.loads(folder.env.read_text())
    assert resumed == {**began, "command": "wrn train first", "date": resumed["date"]}


def test_resuming_nothing_and_resuming_a_finished_run_are_told_apart(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), epochs=1)
    with pytest.raises(UsageError, match="holds no run"):
        fit(recipe, tmp_path / "run", resume=True)
    result = fit(recipe, tmp_path / "run")
    assert fit(recipe, tmp_path / "run", resume=True) == result


def test_damaged_records_are_restored_from_the_checkpoint_and_that_is_logged(
    whole: Whole, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, uncut = whole(ema_decay=0.0)
    stop(recipe, tmp_path / "stopped", 10)
    damages: list[Callable[[bytes], bytes | None]] = [
        lambda lines: lines.split(b"\n", 1)[1],  # as after a power cut, without fsync
        lambda lines: lines.replace(b"epoch", b"epic", 1),
        lambda lines: lines + b'{"epoch": 3, "st',
        lambda _: b"\xff" * 10,
        lambda _: b"",
        lambda _: None,
    ]
    for place, damage in enumerate(damages):
        cut = RunFolder(tmp_path / str(place))
        shutil.copytree(tmp_path / "stopped", cut.path)
        lines = damage(cut.metrics.read_bytes())
        cut.metrics.unlink()
        if lines is not None:
            cut.metrics.write_bytes(lines)
        caplog.clear()
        fit(recipe, cut.path, resume=True)
        assert_same_run(cut.path, uncut)
        said = [record.getMessage() for record in caplog.records]
        assert said == ([f"{cut.metrics}: was damaged; its 2 records are restored from a checkpoint"] * (place != 2))


def test_a_recipe_that_was_changed_since_the_run_began_is_refused(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe, folder = small(make_npz()), RunFolder(tmp_path / "run")
    stop(recipe, folder.path, 2)
    text = folder.recipe.read_text()
    folder.recipe.write_text(text.replace('"momentum": 0.9', '"momentum": 0.8'))
    assert folder.recipe.read_text() != text
    with pytest.raises(DataError, match=r"recipe\.json: is not the recipe that this run began with"):
        fit(folder.read_recipe(), folder.path, resume=True)
    folder.recipe.write_text(text)
    assert fit(recipe, folder.path, resume=True)["epochs"] == 3


def test_a_second_process_that_resumes_is_refused_and_changes_nothing(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe, folder = small(make_npz()), RunFolder(tmp_path / "run")
    stop(recipe, folder.path, 2)
    refused = []

    def resume_too() -> None:
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match=rf"a run is under way here, pid {os.getpid()}") as caught:
                fit(recipe, folder.path, **options)  # type: ignore[arg-type]
            refused.append(str(caught.value))
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before

    with after_steps(1, resume_too):
        fit(recipe, folder.path, resume=True)
    assert len(refused) == 2
    assert [record["epoch"] for record in folder.read_metrics()] == [1, 2, 3]


@pytest.mark.usefixtures("pages")
def test_what_a_kill_has_left_in_a_finished_run_is_removed_and_the_page_is_drawn(
    whole: Whole, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, uncut = whole(ema_decay=0.0)
    run = RunFolder(Path(shutil.copytree(uncut, tmp_path / "run")))
    before = sorted(path.name for path in run.path.iterdir())
    run.checkpoint.mkdir()
    for path in (run.checkpoint / "step-1", run.path / ".report.html.1.part", run.path / ".lock"):
        path.touch()
    run.report.unlink()
    result = run.read_result()
    assert fit(recipe, run.path, resume=True) == result
    assert sorted(path.name for path in run.path.iterdir()) == before
    assert caplog.records == []


@pytest.mark.usefixtures("pages")
def test_a_finished_run_on_a_disk_that_cannot_be_written_has_finished(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, uncut = whole(ema_decay=0.0)
    run = RunFolder(Path(shutil.copytree(uncut, tmp_path / "run")))

    def refuse(path: Any, *_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for is_tidy in (True, False):
        if not is_tidy:
            (run.path / ".report.html.1.part").touch()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            assert fit(recipe, run.path, resume=True) == run.read_result()
        assert len(caplog.records) == (not is_tidy)
    (record,) = caplog.records
    assert "the run has finished; its folder could not be tidied up: [Errno 30]" in record.getMessage()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_weights_of_an_unfinished_run_are_those_of_its_newest_checkpoint_with_a_note(
    make_npz: MakeNpz, tmp_path: Path, ema_decay: float
) -> None:
    recipe, folder = small(make_npz(), ema_decay=ema_decay, preprocessing="zca"), RunFolder(tmp_path / "run")
    stop(recipe, folder.path, 6)
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    found = read_weights(folder.path)
    how = "averaged weights" if ema_decay else "weights"
    assert found.notes == (f"{folder.path}: the run has not finished; these are its {how} after step 6",)
    assert (len(found.class_names), found.input_size, found.preprocessing.kind) == (4, (8, 8), "zca")
    checkpoint, _ = newest_checkpoint(folder.checkpoint)
    assert checkpoint is not None
    expected = checkpoint.part("averaged" if ema_decay else "network")
    assert expected
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.network.state_dict().items())
    newest = list_checkpoints(folder.checkpoint)[0]
    newest.write_bytes(b"damaged")
    assert "after step 1" in read_weights(folder.path).notes[0]
    assert before.keys() == dict.fromkeys(folder.path.rglob("*"), 0).keys()  # reading renames nothing
    fit(recipe, folder.path, resume=True)
    assert read_weights(folder.path).notes == ()
