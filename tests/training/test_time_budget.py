"""`--time`: the number of epochs follows from the measured speed, and the run ends in time at its schedule's end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import MakeNpz, after_steps, assert_same_run, interrupt, small

from wideresnet.base.errors import UsageError
from wideresnet.commands.main import main
from wideresnet.data import load_dataset
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted, fit, prepare
from wideresnet.training.schedules import make_schedule
from wideresnet.training.timetable import Timetable, epochs_in, with_epochs

STEPS = 10


def recipe(**changes: Any) -> Recipe:
    values = {"schedule": "cosine", "epochs": 20, "warmup_fraction": 0.1, "lr": 0.1, "time_s": 1000.0, **changes}
    return Recipe.flat(network="WRN-10-1", data="digits", **values)


def timetable(left_s: float | None = 1000.0, **changes: Any) -> Timetable:
    asked = recipe(**changes)
    return Timetable(asked, make_schedule(asked, STEPS), STEPS, left_s)


def simulate(times: Timetable, epoch_s: float, *, slower_after: int = 10**9, factor: float = 1.0) -> tuple[int, float]:
    """Let epochs take so long; return how many were trained and the seconds."""
    done, seconds = 0, 0.0
    while done < times.epochs:
        seconds += epoch_s * (factor if done >= slower_after else 1) * times.image_scale(done) ** 2
        done += 1
        times.revise(done, times.revised(done, seconds, 0.0))
    return done, seconds


@pytest.mark.parametrize("epoch_s", [20, 40, 50, 60, 100, 200])
def test_a_machine_that_is_faster_or_slower_than_measured_ends_in_time(epoch_s: float) -> None:
    times = timetable()
    done, seconds = simulate(times, epoch_s)
    assert seconds == pytest.approx(1000, abs=max(100, epoch_s / 2))
    last, whole = times.lr(done * STEPS - 1), timetable().lr(20 * STEPS - 1)
    assert whole <= last < 0.01 * 0.1  # the learning rate has come down to its end, though in other steps
    lrs = [times.lr(step) for step in range(done * STEPS)]
    assert max(lrs) == pytest.approx(0.1, rel=0.05)
    peak = lrs.index(max(lrs))
    assert lrs[: peak + 1] == sorted(lrs[: peak + 1])
    assert lrs[peak:] == sorted(lrs[peak:], reverse=True)


def test_a_machine_that_slows_down_in_the_middle_ends_in_time_too() -> None:
    done, seconds = simulate(timetable(), 50, slower_after=10, factor=2)
    assert seconds == pytest.approx(1000, abs=100)
    assert done == 15


def test_a_machine_that_stalls_trains_one_more_epoch_with_the_rest_of_the_schedule() -> None:
    times = timetable()
    done, _ = simulate(times, 50, slower_after=8, factor=30)
    assert done == 10  # the ninth takes all the time that is left
    assert times.lr(done * STEPS - 1) < 0.02 * 0.1


def test_small_deviations_change_nothing() -> None:
    times = timetable()
    simulate(times, 51)
    assert times.revisions == []
    assert [times.lr(step) for step in range(200)] == [make_schedule(recipe(), STEPS).lr(step) for step in range(200)]


def test_drops_of_lr_momentum_and_sizes_of_images_follow_the_revised_schedule() -> None:
    changes = {"schedule": "steps", "lr_drop_epochs": (11, 16), "image_scales": ((0.0, 0.5), (0.5, 1.0))}
    times = timetable(**changes)
    done, seconds = simulate(times, 100)
    assert seconds == pytest.approx(1000, abs=100)
    rates = [times.lr(step) for step in range(done * STEPS)]
    assert sorted(set(rates), reverse=True) == pytest.approx([0.1, 0.02, 0.004])
    resets = [step for step in range(done * STEPS) if times.resets_momentum(step)]
    assert resets == [rates.index(rate) for rate in sorted(set(rates), reverse=True)[1:]]
    scales = [times.image_scale(epoch) for epoch in range(done)]
    assert set(scales) == {0.5, 1.0}
    assert scales == sorted(scales)


def test_a_noisy_machine_is_told_of_only_when_the_end_moves_by_more_than_a_fifth() -> None:
    times = timetable()
    told = [times.revise(done, epochs) for done, epochs in enumerate((21, 19, 24, 18, 20, 25, 28, 22, 21, 24), start=1)]
    assert [line for line in told if line] == [
        "this is faster than was measured: 25 epochs instead of 20, to end in time"
    ]
    assert told.index(max(told)) == 5
    assert [revision.epochs for revision in times.revisions] == [21, 19, 24, 18, 20, 25, 28, 22, 21, 24]
    resumed = timetable()
    resumed.restore(times.to_json())
    assert resumed.revise(11, 29) == ""
    assert resumed.revise(12, 19) == "this is slower than was measured: 19 epochs instead of 25, to end in time"


def test_without_a_budget_nothing_is_ever_revised() -> None:
    times = timetable(None, time_s=None)
    assert simulate(times, 10_000)[0] == 20
    assert times.result() == {}


def test_the_number_of_epochs_takes_drops_and_evaluations_along() -> None:
    changed = with_epochs(recipe(epochs=200, lr_drop_epochs=(60, 120, 160), eval_every=10), 20)
    assert (changed.schedule.epochs, changed.schedule.lr_drop_epochs, changed.feed.eval_every) == (20, (6, 12, 16), 1)
    assert with_epochs(recipe(lr_drop_epochs=(60, 61)), 1).schedule.lr_drop_epochs == (3,)


def test_too_little_time_for_one_epoch_is_refused_with_what_would_fit() -> None:
    assert epochs_in(600, 590, 100, 5000) == 6
    with pytest.raises(UsageError) as caught:
        epochs_in(60, 50, 100, 5000)
    assert str(caught.value) == (
        "time_s=60: too short for one epoch of 5,000 images, which takes about 2 min after 10 s of preparation; use "
        "time_s=122 or more, limit=2500 images, or a smaller network"
    )
    with pytest.raises(UsageError, match=r"too short for one epoch.* or more, or a smaller network"):
        epochs_in(5, -3, 100, 5000)


def test_a_run_has_the_epochs_that_its_time_allows_and_records_them(make_npz: MakeNpz, tmp_path: Path) -> None:
    asked = small(make_npz(), schedule="cosine", time_s=4.0, epochs=200)
    job, plan = prepare(asked, load_dataset(asked.data))
    assert job.recipe.schedule.epochs == plan.recipe.schedule.epochs == plan.num_steps // 4
    assert any(note.endswith("fit into 4 s, by the measured speed") for note in job.notes)
    result = fit(asked, tmp_path / "run", began=time.monotonic() + 5)  # however long others let the preparation take
    stored = RunFolder(tmp_path / "run").read_recipe().schedule
    assert result["time_budget_s"] == stored.time_s == 4
    assert result["epochs"] == len(RunFolder(tmp_path / "run").read_metrics())
    assert result["revised_epochs"] or result["epochs"] == stored.epochs


def test_a_stopped_run_keeps_its_epochs_and_their_revisions(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Timetable, "revised", lambda self, done, *_: {1: 4, 2: 3}.get(done, self.epochs)
    )  # instead of clocks
    asked = small(make_npz(), schedule="cosine", time_s=3600.0, warmup_fraction=0.2)
    monkeypatch.setattr("wideresnet.training.preflight.plan.epochs_in", lambda *_: 5)
    fit(asked, tmp_path / "whole")
    with after_steps(6, interrupt), pytest.raises(Interrupted):
        fit(asked, tmp_path / "run")
    fit(RunFolder(tmp_path / "run").read_recipe(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    result = RunFolder(tmp_path / "run").read_result()
    assert (result["epochs"], result["revised_epochs"]) == (3, [[1, 4], [2, 3]])


def test_from_the_command_line(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    words = ["train", "WRN-10-1", "--data", str(make_npz()), "--batch-size", "16", "--crop-padding", "1",
             "--device", "cpu", "--out", out]  # fmt: skip
    assert main([*words, "--time", "soon"]) == 2
    assert "argument --time: 'soon': must be a time such as 90s, 10m or 1h30m" in capsys.readouterr().err
    assert main([*words, "--time", "0s"]) == 2
    assert "--time 0.0: must be above 0" in capsys.readouterr().err
    assert main([*words, "--time", "0.01"]) == 2
    assert "--time 0.01: too short for one epoch of 64 images" in (err := capsys.readouterr().err)
    assert "use --time " in err
    assert not Path(out).exists()
    monkeypatch.setattr("wideresnet.training.preflight.plan.epochs_in", lambda *_: 2)
    assert main([*words, "--time", "0m1s", "--recipe", "fast", "--limit", "48"]) == 0
    stored = json.loads((Path(out) / "recipe.json").read_text())
    assert (stored["time_s"], stored["epochs"]) == (1, 2)
