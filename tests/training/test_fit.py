"""`fit`: the record of a run, and what its recipe says is what happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import MakeNpz, metrics, small, weights

from wideresnet.base.errors import UsageError
from wideresnet.data import load_dataset
from wideresnet.spec.execution import SETTLED
from wideresnet.spec.recipe import ADDED, FIELDS, Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import Job, Plan, fit, resolve_for_data
from wideresnet.weights.hub import load


@pytest.mark.usefixtures("pages")
def test_a_run_leaves_the_whole_record(make_npz: MakeNpz, tmp_path: Path) -> None:
    result = fit(small(make_npz()), tmp_path / "run", command="wrn train it")
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
    assert {"torch", "wideresnet", "cpu"} <= env.keys()
    assert env["command"] == "wrn train it"
    for page in (folder.report, folder.curves, folder.pictures):
        assert page.is_file()


def test_recipe_json_holds_what_was_asked_for_and_what_the_machine_decided(make_npz: MakeNpz, tmp_path: Path) -> None:
    asked, seen = small(make_npz(), device="auto"), list[tuple[Job, Plan]]()
    fit(asked, tmp_path / "run", announce=lambda job, plan: seen.append((job, plan)))
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert list(stored) == [key for key in FIELDS if key not in ADDED]
    ((job, plan),) = seen
    assert plan.num_steps == 12
    assert stored == {**asked.to_json(), "family": "cifar", **job.execution.settled()}
    assert stored["device"] == "auto"
    assert all(stored[key] not in ("auto", None) for key in SETTLED)
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["asked"] == [key for key in SETTLED if asked.values()[key] not in ("auto", None)] != list(SETTLED)


@pytest.mark.usefixtures("pages")
def test_a_page_that_cannot_be_drawn_does_not_lose_the_run(
    make_npz: MakeNpz, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "run")
    result = fit(small(make_npz()), folder.path, watch=lambda *_: folder.report.mkdir(exist_ok=True))
    assert result == folder.read_result()
    assert folder.weights.is_file()
    (warning,) = caplog.messages
    assert "the run has finished, but its page could not be drawn" in warning
    assert warning.endswith(f"draw it with: wrn report {folder.path}")


def test_recipe_json_alone_is_enough_to_run_it_again(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz()), tmp_path / "a")
    fit(Recipe.from_file(tmp_path / "a" / "recipe.json"), tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_data_that_is_loaded_already_gives_the_same_run(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    fit(small(data, epochs=1), tmp_path / "a")
    fit(small(data, epochs=1), tmp_path / "b", dataset=load_dataset(data))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_another_seed_gives_other_weights(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    fit(small(data, epochs=1), tmp_path / "a")
    fit(small(data, epochs=1, seed=1), tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


@pytest.mark.parametrize("autotune", ["cached", "off"])
@pytest.mark.usefixtures("pages")
def test_fit_through_python_prints_nothing(make_npz: MakeNpz, tmp_path: Path, autotune: str) -> None:
    code = "import sys; from pathlib import Path; from wideresnet import Recipe, fit\n"
    code += "fit(Recipe.from_file(Path(sys.argv[1])), sys.argv[2])"
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(small(make_npz(), epochs=2, holdout=8, ema_decay=0.9).to_json()))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "run")],
        capture_output=True, text=True, env={**os.environ, "WRN_AUTOTUNE": autotune},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_way_to_decide_that_does_not_exist_is_refused_before_anything_is_written(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^autotune='sometimes': must be one of cached, again, off$"):
        fit(small(make_npz()), tmp_path / "run", autotune="sometimes")
    assert not (tmp_path / "run").exists()
    fit(small(make_npz(), epochs=1), tmp_path / "run", autotune="off")


def test_whoever_watches_is_told_steps_loss_and_error(make_npz: MakeNpz, tmp_path: Path) -> None:
    seen: list[tuple[int, float, float]] = []
    fit(small(make_npz(), epochs=1), tmp_path / "run", watch=lambda *told: seen.append(told))
    step, loss, error_pct = seen[0]
    assert step == 1
    assert 0 < loss < 10
    assert 0 <= error_pct <= 100


def test_holdout_validates_on_training_images_and_tests_once_at_the_end(make_npz: MakeNpz, tmp_path: Path) -> None:
    result = fit(small(make_npz(), holdout=16), tmp_path / "run")
    records = RunFolder(tmp_path / "run").read_metrics()
    assert all("val_error_pct" in r and "test_error_pct" not in r for r in records)
    assert records[-1]["step"] == 3 * (48 // 16)
    assert result["num_test_images"] == 24
    with pytest.raises(UsageError, match="holdout=64: none of the 64 training images"):
        fit(small(make_npz(), holdout=64), tmp_path / "other")


def test_limit_trains_on_that_many_images(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz(), limit=32, epochs=1), tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_metrics()[0]["step"] == 2


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
    recipe, backend, calls = small(make_npz(), epochs=1, dropout=0.0), torch.compile, 0

    def compile_(network: Any, dynamic: bool) -> Any:
        nonlocal calls
        calls += 1
        return backend(network, backend="aot_eager", dynamic=dynamic)  # without the slow code generator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_)
        fit(recipe.replace(compile=True), tmp_path / "compiled")
    assert calls > 0
    fit(recipe, tmp_path / "plain")
    for a, b in zip(load(tmp_path / "plain").parameters(), load(tmp_path / "compiled").parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_global_seed_is_left_as_it_was(make_npz: MakeNpz, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(small(make_npz(), epochs=1), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_digits_are_learned_to_two_percent_in_a_few_epochs(tmp_path: Path) -> None:
    recipe, _, dataset = resolve_for_data("quick", "WRN-10-1", "digits", {"epochs": 12, "device": "cpu"})
    assert fit(recipe, tmp_path / "run", dataset=dataset)["test_error_pct"] <= 2.0


def test_each_epoch_is_reported_in_a_line(make_npz: MakeNpz, tmp_path: Path, reported: list[str]) -> None:
    fit(small(make_npz(), epochs=2), tmp_path / "run")
    lines = [line for line in reported if line.startswith("epoch")]
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.match(rf"epoch +{number}  lr 0\.05 +loss \d\.\d{{3}}  train error [ \d]+\.\d\d %  test error ", line)
