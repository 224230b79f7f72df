"""`fit`: the record, exact resuming, what stops a run and what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import wideresnet.spec.record
import wideresnet.training.loop as loop
import wideresnet.training.preflight.plan as plan
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted, fit, resolve_for_data
from wideresnet.training.step import train_step
from wideresnet.weights.hub import load

MakeNpz = Callable[..., Path]


def small(data: Path, **changes: Any) -> Recipe:
    values = {"epochs": 3, "batch_size": 16, "crop_padding": 1, "dropout": 0.2, "device": "cpu", "lr": 0.05, **changes}
    return Recipe.flat(network="WRN-10-1", data=str(data), lr_drop_epochs=(3,), **values)


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in RunFolder(run).read_metrics()]


def stop_after(monkeypatch: pytest.MonkeyPatch, num_steps: int, how: Callable[[], None]) -> None:
    """Call `how` when so many steps are done."""
    done = 0

    def step(*args: Any, **kwargs: Any) -> None:
        nonlocal done
        train_step(*args, **kwargs)
        done += 1
        if done == num_steps:
            how()

    monkeypatch.setattr(loop, "train_step", step)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def kill() -> None:
    raise Killed


def test_a_run_leaves_the_whole_record(make_npz: MakeNpz, tmp_path: Path) -> None:
    result = fit(small(make_npz()), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert result == folder.read_result()
    expected = {"network", "dataset", "params", "epochs", "test_error_pct", "seconds", "images_per_s",
                "peak_memory_mib", "predicted_memory_mib", "seed"}  # fmt: skip
    assert expected <= result.keys()
    assert result["num_test_images"] == 24
    assert [r["epoch"] for r in folder.read_metrics()] == [1, 2, 3]
    assert result["test_error_pct"] == folder.read_metrics()[-1]["test_error_pct"]
    assert not folder.checkpoint.exists()
    assert len(load_file(folder.predictions)["logits"]) == 24
    env = json.loads(folder.env.read_text())
    assert {"torch", "wideresnet", "cpu", "command"} <= env.keys()


def test_recipe_json_alone_is_enough_to_run_it_again(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz()), tmp_path / "a")
    fit(Recipe.from_file(tmp_path / "a" / "recipe.json"), tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_another_seed_gives_other_weights(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    fit(small(data, epochs=1), tmp_path / "a")
    fit(small(data, epochs=1, seed=1), tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("num_steps", [1, 4, 6, 8, 12], ids=lambda n: f"after-step-{n}")
def test_ctrl_c_and_resume_give_the_uninterrupted_weights_bit_for_bit(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int, ema_decay: float
) -> None:
    recipe = small(make_npz(), ema_decay=ema_decay)  # 4 steps an epoch: 4, 8 and 12 end an epoch, momentum resets at 8
    fit(recipe, tmp_path / "whole")
    stop_after(monkeypatch, num_steps, interrupt)
    with pytest.raises(Interrupted, match=r"--resume --out"):
        fit(recipe, tmp_path / "cut")
    monkeypatch.setattr(loop, "train_step", train_step)
    assert fit(recipe, tmp_path / "cut", resume=True)["epochs"] == 3
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_run_with_accumulated_gradients_resumes_bit_for_bit(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(make_npz(), accumulate=3, stochastic_depth=0.7)
    fit(recipe, tmp_path / "whole")
    stop_after(monkeypatch, 5, interrupt)
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut")
    monkeypatch.setattr(loop, "train_step", train_step)
    fit(recipe, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_batch_that_cannot_fit_leaves_no_run(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "available_memory_bytes", lambda _device: 1)
    with pytest.raises(UsageError, match=r"^batch_size 16: needs "):
        fit(small(make_npz()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_steps", [1, 3, 4, 9, 12])
def test_a_kill_between_checkpoints_replays_to_the_same_weights(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    recipe = small(make_npz())
    fit(recipe, tmp_path / "whole")
    stop_after(monkeypatch, num_steps, kill)
    with pytest.raises(Killed):
        fit(recipe, tmp_path / "cut", checkpoint_every_s=0.0 if num_steps == 9 else 60.0)
    monkeypatch.setattr(loop, "train_step", train_step)
    fit(recipe, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


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
    for _ in range(4):
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
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small(make_npz())
    fit(recipe, tmp_path / "whole")
    stop_after(monkeypatch, 7, interrupt)
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", checkpoint_every_s=0.0)
    newest = max((tmp_path / "cut" / "checkpoint").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    monkeypatch.setattr(loop, "train_step", train_step)
    fit(recipe, tmp_path / "cut", resume=True)
    assert "is damaged" in capsys.readouterr().err
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_last_good_state(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    with pytest.raises(WRNError, match=r"not finite at epoch \d+, step \d+ of 4, lr 1e\+\d+.*lower --lr") as caught:
        fit(small(make_npz(), lr=1e30), tmp_path / "run")
    assert "\n" not in str(caught.value)
    kept = RunFolder(tmp_path / "run").checkpoint.glob("step-*")
    assert all(torch.isfinite(t.float()).all() for path in kept for t in load_file(path).values())


def test_a_used_folder_is_never_overwritten_unasked(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), epochs=1)
    fit(recipe, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(UsageError, match="--resume, replace it by --overwrite"):
        fit(recipe, tmp_path / "run")
    assert weights(tmp_path / "run") == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a run folder"):
        fit(recipe, tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "holiday.jpg").exists()
    fit(small(make_npz(), epochs=1, seed=5), tmp_path / "run", overwrite=True)
    assert weights(tmp_path / "run") != before


@pytest.mark.parametrize(("name", "value"), [("network", "WRN-16-1"), ("lr", 0.2), ("seed", 3), ("epochs", 9)])
def test_resuming_as_another_run_is_refused_by_name(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    recipe = small(make_npz())
    stop_after(monkeypatch, 2, interrupt)
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run")
    other = Recipe.from_json({**recipe.to_json(), name: value})
    with pytest.raises(UsageError, match=f"has {name} .*{value}"):
        fit(other, tmp_path / "run", resume=True)


def test_resuming_on_changed_data_is_refused(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_npz()
    stop_after(monkeypatch, 2, interrupt)
    with pytest.raises(Interrupted):
        fit(small(data), tmp_path / "run")
    with np.load(data) as old:
        arrays = {**old, "x_train": 255 - old["x_train"]}
    np.savez(data, **arrays)
    with pytest.raises(UsageError, match="no longer holds the images"):
        fit(small(data), tmp_path / "run", resume=True)


def test_a_resumed_record_names_the_command_that_began_the_run(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = small(make_npz()), RunFolder(tmp_path / "run")
    stop_after(monkeypatch, 2, interrupt)
    with pytest.raises(Interrupted):
        fit(recipe, folder.path)
    began = json.loads(folder.env.read_text())
    folder.env.write_text(json.dumps({**began, "command": "wrn train first", "cpu": "another"}))
    fit(recipe, folder.path, resume=True)
    assert json.loads(folder.env.read_text()) == {**began, "command": "wrn train first"}


def test_resuming_nothing_and_resuming_a_finished_run_are_told_apart(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), epochs=1)
    with pytest.raises(UsageError, match="no run there"):
        fit(recipe, tmp_path / "run", resume=True)
    result = fit(recipe, tmp_path / "run")
    assert fit(recipe, tmp_path / "run", resume=True) == result


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

    monkeypatch.setattr(wideresnet.spec.record.os, "fsync", fsync)
    stop_after(monkeypatch, 6, fill)
    with pytest.raises(WRNError, match="no space left on the disk") as caught:
        fit(recipe, tmp_path / "cut", checkpoint_every_s=0.0)
    assert "\n" not in str(caught.value)
    full = False
    monkeypatch.setattr(loop, "train_step", train_step)
    fit(recipe, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_disk_too_small_for_checkpoints_is_refused_before_the_first_step(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WRNError, match="checkpoints need"):
        fit(small(make_npz()), tmp_path / "run")


def test_holdout_validates_on_training_images_and_tests_once_at_the_end(make_npz: MakeNpz, tmp_path: Path) -> None:
    result = fit(small(make_npz(), holdout=16), tmp_path / "run")
    records = RunFolder(tmp_path / "run").read_metrics()
    assert all("val_error_pct" in r and "test_error_pct" not in r for r in records)
    assert records[-1]["step"] == 3 * (48 // 16)
    assert result["num_test_images"] == 24
    with pytest.raises(UsageError, match="none is left to train on"):
        fit(small(make_npz(), holdout=64), tmp_path / "other")


def test_limit_trains_on_that_many_images(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz(), limit=32, epochs=1), tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_metrics()[0]["step"] == 2


def test_a_batch_larger_than_the_data_is_refused(make_npz: MakeNpz, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_size 128: larger than the 64 training images"):
        fit(small(make_npz(), batch_size=128), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_evaluated_weights_are_the_averaged_ones(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    fit(small(data, epochs=1), tmp_path / "plain")
    fit(small(data, epochs=1, ema_decay=0.99), tmp_path / "averaged")
    assert weights(tmp_path / "plain") != weights(tmp_path / "averaged")


def test_eval_every_leaves_out_evaluations_but_never_the_last(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz(), eval_every=2), tmp_path / "run")
    assert ["test_error_pct" in r for r in RunFolder(tmp_path / "run").read_metrics()] == [False, True, True]


def test_the_lr_of_each_epoch_is_in_the_record(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz()), tmp_path / "run")
    assert [r["lr"] for r in metrics(tmp_path / "run")] == pytest.approx([0.05, 0.05, 0.01])


def test_compiled_training_agrees_with_the_plain_network(make_npz: MakeNpz, tmp_path: Path) -> None:
    pytest.importorskip("torch._inductor")
    recipe = small(make_npz(), epochs=1, dropout=0.0)
    backend = torch.compile
    with pytest.MonkeyPatch.context() as patch:  # the compiler's front end without its slow code generator
        patch.setattr(torch, "compile", lambda network, dynamic: backend(network, backend="aot_eager", dynamic=dynamic))
        fit(Recipe.from_json({**recipe.to_json(), "compile": True}), tmp_path / "compiled")
    fit(recipe, tmp_path / "plain")
    for a, b in zip(load(tmp_path / "plain").parameters(), load(tmp_path / "compiled").parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_global_seed_is_left_as_it_was(make_npz: MakeNpz, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(small(make_npz(), epochs=1), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_digits_are_learnt_to_two_percent_in_a_few_epochs(tmp_path: Path) -> None:
    recipe, _, dataset = resolve_for_data("quick", "WRN-10-1", "digits", {"epochs": 12, "device": "cpu"})
    assert fit(recipe, tmp_path / "run", dataset=dataset)["test_error_pct"] <= 2.0
