"""Trackers get what the record holds, once, and can fail at any time without ending a run."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.commands.main import main
from wideresnet.experiments import fit_seeds
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted, fit

MakeNpz = Callable[..., Path]


class Fake(ModuleType):
    """A module with the interface of Weights & Biases; fails from a number of calls of `log` on."""

    def __init__(self, name: str, fails_from: int | None = None) -> None:
        super().__init__(name)
        self.runs: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.num_finished = 0
        self.fails_from = fails_from

    def init(self, **values: Any) -> None:
        print("a greeting")
        self.runs.append(values)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.fails_from is not None and len(self.logged) >= self.fails_from:
            raise ConnectionError("no route\nto host")
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        self.num_finished += 1


def recipe(data: Path, epochs: int = 3) -> Recipe:
    return Recipe.flat(network="WRN-10-1", data=str(data), epochs=epochs, batch_size=16, crop_padding=1, device="cpu")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_epoch_and_the_result(
    name: str, make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, fake := Fake(name))
    folder = RunFolder(tmp_path / "mine")
    result = fit(recipe(make_npz()), folder.path, track=name)
    (run,) = fake.runs
    assert run["project"] == "wideresnet"
    assert run["name"].startswith("mine")
    assert run["config"]["epochs"] == 3
    assert run["resume"] == "allow"
    *epochs, (last_step, last) = fake.logged
    records = folder.read_metrics()
    assert epochs == [(r["epoch"], {key: value for key, value in r.items() if key != "epoch"}) for r in records]
    assert last_step == 3
    assert last["result/test_error_pct"] == result["test_error_pct"]
    assert fake.num_finished == 1
    assert "greeting" not in capsys.readouterr().out


def test_a_resumed_run_continues_the_run_of_its_tracker(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake("wandb"))
    data, stopped = make_npz(), False

    def stop_once(*_: object) -> None:
        nonlocal stopped
        if fake.logged and not stopped:
            stopped = True
            raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted):
        fit(recipe(data), tmp_path / "run", track="wandb", watch=stop_once, checkpoint_every_s=0.0)
    assert fake.num_finished == 1
    fit(recipe(data), tmp_path / "run", resume=True)
    assert len({run["id"] for run in fake.runs}) == 1
    assert len(fake.runs) == 2
    assert [step for step, _ in fake.logged] == [1, 2, 3, 3]  # three epochs, none twice, and the result
    assert fake.num_finished == 2


def test_a_tracker_that_fails_costs_one_warning(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb", fails_from=1))
    with caplog.at_level(logging.WARNING):
        result = fit(recipe(make_npz()), tmp_path / "run", track="wandb")
    assert result["epochs"] == 3
    said = [record.getMessage() for record in caplog.records]
    assert said == ["wandb failed to take an epoch (no route to host); the run goes on without it"]


def test_a_tracker_of_ones_own_is_a_log_and_a_finish(make_npz: MakeNpz, tmp_path: Path) -> None:
    tracker = Fake("own")
    fit(recipe(make_npz(), epochs=1), tmp_path / "run", track=tracker)  # type: ignore[arg-type]
    assert [step for step, _ in tracker.logged] == [1, 1]
    assert tracker.runs == []


def test_a_missing_tracker_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["train", "WRN-10-1", "--data", "nowhere", "--out", str(tmp_path / "run"), "--track", "wandb"]
    assert main(words) == 2
    assert capsys.readouterr().err == "wrn: --track wandb: wandb is not installed; pip install wandb\n"
    with pytest.raises(UsageError, match="track=mlflow: must be tensorboard, trackio, wandb"):
        fit(Recipe.flat(network="WRN-10-1", data="digits"), tmp_path / "run", track="mlflow")
    assert not (tmp_path / "run").exists()


def test_each_seed_is_a_run_of_its_own(make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import json\ndef init(**v): print(v['name'])\ndef log(v, step): pass\ndef finish(): pass\n"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "trackio.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    fit_seeds(recipe(make_npz(), epochs=1), tmp_path / "mine", 2, track="trackio")
    for seed in (0, 1):
        state = json.loads((tmp_path / "mine" / f"seed{seed}" / "track.json").read_text())
        assert state["tracker"] == "trackio"
        assert state["epochs"] == 1
        assert f"mine-seed{seed}-{state['id']}" in (tmp_path / "mine" / f"seed{seed}.log").read_text()
    sys.modules.pop("trackio", None)


def test_a_run_with_a_tracker_can_be_overwritten(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake("wandb"))
    data = make_npz()
    for overwrite in (False, True):
        fit(recipe(data, epochs=1), tmp_path / "run", track="wandb", overwrite=overwrite)
    assert len({run["id"] for run in fake.runs}) == 2


def test_tensorboard_shows_the_record(make_npz: MakeNpz, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'wideresnet[track]'")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    folder = RunFolder(tmp_path / "run")
    result = fit(recipe(make_npz()), folder.path, track="tensorboard")
    shown = EventAccumulator(str(folder.tensorboard))
    shown.Reload()
    losses = [(event.step, event.value) for event in shown.Scalars("train_loss")]
    assert losses == [(r["epoch"], pytest.approx(r["train_loss"])) for r in folder.read_metrics()]
    assert [event.value for event in shown.Scalars("result/test_error_pct")] == [
        pytest.approx(result["test_error_pct"])
    ]
