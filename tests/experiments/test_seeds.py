"""`fit_seeds` and `wrn train --seeds`: the same runs as single ones, whatever happens in between."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.commands.main import main
from wideresnet.experiments import fit_seeds
from wideresnet.experiments.concurrency import Report
from wideresnet.experiments.process import Worker
from wideresnet.report.pages import write_report
from wideresnet.spec.files import read_json, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder, SeedsFolder
from wideresnet.spec.result import metrics_line
from wideresnet.training import Interrupted, fit

MakeNpz = Callable[..., Path]


def small(data: Path | str, **changes: Any) -> Recipe:
    values = {"epochs": 2, "batch_size": 16, "crop_padding": 1, "device": "cpu", "precision": "fp32", **changes}
    return Recipe.flat(network="WRN-10-1", data=str(data), **values)


def wrn(*words: object) -> int:
    """Run a command line in this process; argparse's own exits included."""
    try:
        return main([str(word) for word in words])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def wait_for(happened: Callable[[], bool], limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two runs have the same files and bits, except for what was typed, times, memory and their plots."""
    names = sorted(path.name for path in other.iterdir())
    assert sorted(path.name for path in one.iterdir()) == names
    for name in ("recipe.json", "config.json", "model.safetensors", "test_predictions.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    own = {"command": "", "asked": [], "date": ""}
    assert {**read_json(one / "env.json"), **own} == {**read_json(other / "env.json"), **own}
    measured = ("seconds", "train_s", "images_per_s", "peak_memory_mib", "predicted_memory_mib")
    for records in ([RunFolder(path).read_result(), *RunFolder(path).read_metrics()] for path in (one, other)):
        for record in records:
            for key in measured:
                record.pop(key, None)
        names.append(json.dumps(records))
    assert names[-1] == names[-2]


@pytest.mark.usefixtures("pages")
def test_after_ctrl_c_resuming_ends_with_the_bits_of_single_runs(
    make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_npz(num_train=256), tmp_path / "my seeds"
    folder = SeedsFolder(out)

    def press() -> None:
        wait_for(folder.run(3).metrics.is_file)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    flags = ("--epochs", 12, "--batch-size", 16, "--crop-padding", 1, "--device", "cpu", "--precision", "fp32")
    words = ("WRN-10-1", "--data", data, "--seed", 3, *flags)
    assert wrn("train", *words, "--seeds", 2, "--out", out) == 130
    said = capsys.readouterr()
    assert f"wrn train --resume --seeds 2 --out '{out}'" in said.err
    assert "2 seeds, one at a time" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert list(folder.run(3).checkpoint.iterdir())  # under way
    assert not folder.run(4).path.exists()  # not begun
    assert read_json(folder.summary)["unfinished"] == [3, 4]
    assert wrn("train", "--resume", "--out", out) == 2
    assert "--seeds N" in capsys.readouterr().err
    assert wrn("train", "--resume", "--seeds", 2, "--out", out, "--lr", 0.2) == 2
    assert "lr 0.1" in capsys.readouterr().err

    assert wrn("train", "--resume", "--seeds", 2, "--at-once", 2, "--out", out, "--json") == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary == {**folder.read_summary(), "run": str(out)}
    assert (summary["n"], summary["at_once"], summary["unfinished"]) == (2, 2, [])
    assert folder.page.is_file()
    assert "resumed from step" in folder.log(3).read_text()
    stored = folder.read_recipe()
    for seed in (3, 4):
        single = tmp_path / f"alone{seed}"
        fit(stored.replace(seed=seed), single)
        write_report(single)
        assert_same_run(folder.run(seed).path, single)
    assert [read_json(folder.run(seed).env)["asked"] for seed in (3, 4)] == [["precision"]] * 2  # not what was decided
    begun, resumed = (read_json(folder.run(seed).env)["command"] for seed in (3, 4))
    assert begun == shlex.join(map(str, ("wrn", "train", *words, "--seeds", 2, "--out", out)))  # as it was typed
    assert resumed.startswith("wrn train --resume")
    assert (single / "recipe.json").read_text() != (folder.run(3).recipe).read_text()


@pytest.mark.usefixtures("pages")
def test_a_failed_seed_is_named_with_its_log_and_the_others_are_trained(
    make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SeedsFolder(tmp_path)
    write_json(folder.summary, {"recipe": small(make_npz()).to_json()})
    folder.run(0).path.mkdir()
    (folder.run(0).path / "thesis.tex").write_text("years of work")
    assert wrn("train", "--resume", "--seeds", 2, "--at-once", 2, "--out", tmp_path) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "seed 0 failed: --out" in said
    assert f"seed 0 failed, 1 of 2 seeds have finished; see {folder.log(0)};" in said
    assert "is not a run folder" in folder.log(0).read_text()
    assert folder.run(1).report.is_file()
    assert (read_json(folder.summary)["n"], read_json(folder.summary)["unfinished"]) == (1, [0])


def test_workers_whose_parent_was_killed_save_and_end(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe, folder = small(make_npz(), epochs=10**6), SeedsFolder(tmp_path / "out")
    program = (
        "import sys, json\nfrom wideresnet import Recipe, fit_seeds\n"
        f"fit_seeds(Recipe.from_json(json.loads(sys.argv[1])), {str(folder.path)!r}, 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, json.dumps(recipe.to_json())], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: folder.run(0).metrics.is_file() or parent.poll() is not None)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: "stopped after step" in folder.log(0).read_text())
    num_epochs = len(folder.run(0).read_metrics())
    time.sleep(0.5)
    assert len(folder.run(0).read_metrics()) == num_epochs


@pytest.mark.parametrize(("line", "expected"), [("kill -9 $$", "killed by SIGKILL"), ("exit 7", "exit code 7")])
def test_a_worker_that_ends_without_a_message_is_described_by_its_exit_code(
    line: str, expected: str, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    worker = Worker(0, {}, tmp_path / "log", 1, python=program)
    wait_for(lambda: worker.poll() is not None)
    assert worker.problem(worker.poll() or 0) == expected
    worker.kill()  # does no harm


class FakeWorkers:
    """Replaces `Worker`: each of its processes trains until it has been polled three times, and ends with its code."""

    def __init__(self, codes: dict[int, int | BaseException] | None = None) -> None:
        self.codes = codes or {}
        self.started: list[int] = []
        self.running: list[int] = []
        self.killed: list[int] = []
        self.most = 0

    def __call__(self, seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Any:
        del log, num_threads
        assert job["recipe"]["seed"] == seed
        self.started.append(seed)
        self.running.append(seed)
        self.most = max(self.most, len(self.running))
        return FakeWorker(self, seed, RunFolder(job["out"]))


class FakeWorker:
    """One of these processes."""

    def __init__(self, workers: FakeWorkers, seed: int, folder: RunFolder) -> None:
        self.workers, self.seed, self.folder = workers, seed, folder
        self.message, self.polls = "", 0
        self.report: Report | None = None

    def poll(self) -> int | None:
        self.polls += 1
        self.report = Report(float(self.polls), self.polls, 1.0, 50.0)
        if self.polls < 3:
            return None
        code = self.workers.codes.get(self.seed, 0)
        if isinstance(code, BaseException):
            raise code
        self.workers.running.remove(self.seed)
        if code == 0:
            self.folder.path.mkdir()
            write_json(self.folder.recipe, small("digits", seed=self.seed).to_json())
            result = dict.fromkeys(("params", "epochs", "test_loss", "num_test_images", "seconds"), 1)
            result |= dict.fromkeys(("images_per_s", "peak_memory_mib", "test_error_pct"), 2.0)
            names = {"dataset": "digits", "device": "cpu", "precision": "fp32", "seed": self.seed}
            write_json(self.folder.result, {**result, **names})
            record = dict.fromkeys(("epoch", "step", "lr", "train_loss", "train_error_pct"), 1)
            self.folder.append_metrics(metrics_line({**record, "test_loss": 1.0, "test_error_pct": 2.0}))
            self.folder.report.touch()
        return code

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        self.workers.killed.append(self.seed)

    def problem(self, code: int) -> str:
        return f"exit code {code}"


def test_no_more_than_asked_for_run_at_once_and_all_are_trained(tmp_path: Path) -> None:
    workers = FakeWorkers()
    summary = fit_seeds(small("digits", seed=7), tmp_path / "out", 5, at_once=2, start_worker=workers)
    assert [run["folder"] for run in summary["runs"]] == ["seed7", "seed8", "seed9", "seed10", "seed11"]
    assert workers.most == 2
    assert (summary["n"], summary["at_once"]) == (5, 2)


def test_resuming_trains_only_what_is_missing_adds_seeds_and_names_those_left_out(
    tmp_path: Path, reported: list[str]
) -> None:
    out, recipe = tmp_path / "out", small("digits")
    with pytest.raises(WRNError, match="seeds 1 and 2 failed, 1 of 3"):
        fit_seeds(recipe, out, 3, start_worker=FakeWorkers({1: 1, 2: -9}))
    workers = FakeWorkers()
    assert fit_seeds(recipe, out, 4, resume=True, start_worker=workers)["n"] == 4
    assert workers.started == [1, 2, 3]
    reported.clear()
    assert fit_seeds(recipe, out, 2, resume=True, start_worker=workers)["n"] == 2
    assert workers.started == [1, 2, 3]
    told = " ".join(reported)
    assert "not counted: seed2, seed3" in told
    assert "all 2 seeds have finished" in told


def test_a_second_ctrl_c_ends_the_workers_and_says_how_to_continue(tmp_path: Path) -> None:
    workers = FakeWorkers({1: KeyboardInterrupt()})
    with pytest.raises(Interrupted, match="--resume --seeds 3"):
        fit_seeds(small("digits"), tmp_path / "out", 3, at_once=3, start_worker=workers)
    assert {1, 2} <= set(workers.killed)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("WRN-10-1", "--data", "digits", "--seeds", "0"), "at least 1"),
        (("WRN-10-1", "--data", "digits", "--seeds", "2", "--at-once", "0"), "--at-once 0: must be at least 1"),
        (("WRN-10-1", "--data", "digits", "--seeds", "two"), "--seeds"),
        (("WRN-10-1", "--data", "digits", "--at-once", "2"), "add --seeds"),
        (("WRN-10-1", "--data", "digits", "--seeds", "2", "--out", "used"), "not empty"),
        (("WRN-10-1", "--data", "digits", "--seeds", "2", "--out", "several"), "--resume"),
        (("WRN-10-1", "--data", "digits", "--seeds", "2", "--out", "several", "--overwrite"), "--overwrite"),
        (("WRN-10-1", "--data", "digits", "--seeds", "2", "--checkpoint-every", "-1"), "0 or more"),
        (("--resume", "--seeds", "2", "--out", "single"), "leave out --seeds"),
        (("--resume", "--seeds", "2", "--out", "none"), "leave out --resume"),
        (("--resume", "--out", "several"), "--seeds N"),
        (("--resume", "--seeds", "2", "--out", "several", "--seed", "5"), "seed 0"),
    ],
)
def test_a_mistake_gets_one_line_with_the_fix(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("used", "several", "single"):
        Path(name).mkdir()
    Path("used", "thesis.tex").touch()
    write_json(Path("several", "seeds.json"), {"recipe": small("digits").to_json()})
    write_json(Path("single", "recipe.json"), small("digits").to_json())
    before = sorted(tmp_path.rglob("*"))
    assert wrn("train", *words) == UsageError.exit_code
    said = capsys.readouterr()
    assert expected in said.err
    assert said.out == ""
    assert len([line for line in said.err.splitlines() if line.startswith("wrn")]) == 1
    assert sorted(tmp_path.rglob("*")) == before  # a worker would leave a log
