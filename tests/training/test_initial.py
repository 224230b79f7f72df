"""`wrn train --from WEIGHTS`: a run starts from trained weights, says so, and its record is enough to run it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Killed, MakeNpz, after_steps, assert_same_run, break_off, interrupt, kill, small

from wideresnet.base.errors import UsageError
from wideresnet.commands.main import main
from wideresnet.data import load_dataset
from wideresnet.experiments import fit_seeds
from wideresnet.experiments.plan import run_key
from wideresnet.report.changes import find_changes, recipe_text
from wideresnet.spec.recipe import Recipe, overridden
from wideresnet.spec.recipes import resolve
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted, fit, prepare
from wideresnet.weights.hub import load, read_weights
from wideresnet.weights.pretrained import DEFAULT

Ship = Callable[..., Path]


def source(folder: Path, recipe: Recipe) -> Path:
    """A finished run of an epoch."""
    fit(recipe.replace(epochs=1, seed=9), folder)
    return folder


def prepared(recipe: Recipe) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    job, _ = prepare(recipe, load_dataset(recipe.data))
    return dict(job.network.state_dict()), job.notes


def refusal(recipe: Recipe) -> str:
    with pytest.raises(UsageError) as caught:
        prepare(recipe, load_dataset(recipe.data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rename(data: Path, path: Path, **changes: Any) -> Path:
    """Write a copy of an `.npz` with some of its arrays replaced."""
    arrays: dict[str, Any] = {**np.load(data), **changes}
    np.savez(path, **arrays)
    return path


def test_a_run_starts_from_the_values_of_the_weights_and_learns_on(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz())
    path = source(tmp_path / "source", recipe)
    state, notes = prepared(recipe.replace(init_from=str(path)))
    expected = load(path).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert f"starts from the weights of {path} (SHA-256 {read_weights(path).sha256[:12]}...)" in notes  # type: ignore[index]
    fit(recipe.replace(init_from=str(path), epochs=1, lr=0.0), tmp_path / "same")
    moved, kept = load(tmp_path / "same").state_dict(), {name for name in expected if "running" not in name}
    assert all(torch.equal(moved[name], expected[name]) for name in kept if "num_batches" not in name)


def test_a_shipped_network_is_named_in_any_case_and_recorded_by_its_name_and_digest(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path
) -> None:
    ship()
    fit(small(make_npz(), init_from=DEFAULT.lower(), epochs=1), tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert stored["init_from"] == DEFAULT
    assert stored["init_sha256"] == read_weights(DEFAULT).sha256
    assert str(tmp_path) not in json.dumps({**stored, "data": ""})


def test_a_run_from_random_weights_has_the_record_that_it_always_had(make_npz: MakeNpz, tmp_path: Path) -> None:
    fit(small(make_npz(), epochs=1), tmp_path / "run")
    assert not {"init_from", "init_sha256"} & json.loads((tmp_path / "run" / "recipe.json").read_text()).keys()


def test_other_classes_get_a_new_head_and_the_rest_is_kept(make_npz: MakeNpz, tmp_path: Path) -> None:
    path = source(tmp_path / "source", small(make_npz()))
    data = make_npz(num_classes=3)
    state, notes = prepared(small(data, init_from=str(path)))
    fresh, _ = prepared(small(data))
    theirs = load(path).state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, (fresh if name.startswith("fc.") else theirs)[name]), name
    assert "the head is new: 3 classes here, 4 in those weights" in notes
    fit(small(data, init_from=str(path), epochs=1), tmp_path / "run")
    assert load(tmp_path / "run").num_classes == 3


def test_the_head_follows_the_names_of_the_classes(make_npz: MakeNpz, tmp_path: Path) -> None:
    numbered = make_npz()
    named = [
        rename(numbered, tmp_path / f"{place}.npz", class_names=np.array(names))
        for place, names in enumerate(
            [("bee", "cat", "dog", "elk"), ("dog", "bee", "elk", "cat"), ("bee", "owl", "dog", "elk")]
        )
    ]
    path = source(tmp_path / "source", small(named[0]))
    head = load(path).state_dict()["fc.weight"]
    for data, expected, note in (
        (named[0], head, None),
        (named[1], head[[2, 0, 3, 1]], "the head is kept, its rows in the order of the classes here, by their names"),
        (named[2], None, "the head is new: class 1 is 'owl' here and 'cat' in those weights"),
        (numbered, head, "the head is kept, since the number of classes is the same and these are only numbered: class "
         "0 is taken for 'bee'"),
    ):  # fmt: skip
        state, notes = prepared(small(data, init_from=str(path)))
        if expected is None:
            expected = prepared(small(data))[0]["fc.weight"]
        assert torch.equal(state["fc.weight"], expected)
        assert [each for each in notes if "the head is" in each] == ([note] if note else [])


def test_images_are_preprocessed_as_for_the_weights(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    path = source(tmp_path / "source", small(data))
    darker = rename(data, tmp_path / "dark.npz", x_train=np.load(data)["x_train"] // 3)
    fit(small(darker, init_from=str(path), epochs=1), tmp_path / "run")
    assert read_weights(tmp_path / "run").preprocessing == read_weights(path).preprocessing
    assert "images are preprocessed as for those weights, not by statistics of these images" in prepared(
        small(darker, init_from=str(path))
    )[1]  # fmt: skip
    assert refusal(small(data, init_from=str(path), preprocessing="scale")).endswith(
        "are for images preprocessed by mean_std; use preprocessing=mean_std"
    )


def test_whitening_is_taken_over_for_images_of_the_same_size_alone(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    path = source(tmp_path / "source", small(data, preprocessing="zca"))
    darker = rename(data, tmp_path / "dark.npz", x_train=np.load(data)["x_train"] // 3)
    fit(small(darker, init_from=str(path), preprocessing="zca", epochs=1), tmp_path / "run")
    matrices = [read_weights(folder).preprocessing.tensors() for folder in (tmp_path / "run", path)]
    assert all(torch.equal(matrices[0][name], matrices[1][name]) for name in matrices[1])
    large = make_npz(size=12)
    assert "this whitening is for 192 values" in refusal(small(large, init_from=str(path), preprocessing="zca"))


def test_images_of_another_size_are_trained_on_with_a_note(make_npz: MakeNpz, tmp_path: Path) -> None:
    path = source(tmp_path / "source", small(make_npz()))
    _, notes = prepared(small(make_npz(size=12), init_from=str(path)))
    assert "those weights were trained on images of 8x8, these are 12x12; image_size=8 resizes these" in notes


@pytest.mark.parametrize(
    ("changes", "channels", "message"),
    [
        ({"network": "WRN-10-2"}, 3, "the weights of WRN-10-1 do not fit WRN-10-2: groups.0.0.norms.1.weight is "
         "(16,) there, (32,) here"),
        ({"network": "WRN-16-1"}, 3, "do not fit WRN-16-1: groups.0.1.norms.0.weight is missing there, (16,) here"),
        ({"network": "ResNet-20"}, 3, "do not fit ResNet-20: "),
        ({}, 1, "(16, 3, 3, 3) there, (16, 1, 3, 3) here; they are for images of 3 channels, these have 1"),
        ({"activation": "silu"}, 3, "were trained with relu; use activation=relu"),
        ({"norm": "group"}, 3, "were trained with batch; use norm=batch"),
        ({"bn_eps": 1e-3}, 3, "were trained with 1e-05; use bn_eps=1e-05"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_naming_the_first_difference(
    ship: Ship, make_npz: MakeNpz, changes: dict[str, Any], channels: int, message: str
) -> None:
    ship()
    data = make_npz(channels=channels)
    assert message in refusal(small(data, init_from=DEFAULT).replace(**changes))


def test_choices_of_training_may_differ(ship: Ship, make_npz: MakeNpz) -> None:
    ship()
    options = {"dropout": 0.5, "bn_momentum": 0.3, "stochastic_depth": 0.8, "init": "fan_out"}
    _, notes = prepared(small(make_npz(), init_from=DEFAULT, **options))
    assert "init fan_out has no effect when starting from trained weights" in notes


def test_the_recipe_of_a_run_takes_only_the_weights_that_it_was_made_with(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), dropout=0.0)
    path = source(tmp_path / "source", recipe)
    fit(recipe.replace(init_from=str(path)), tmp_path / "a")
    stored = Recipe.from_file(tmp_path / "a" / "recipe.json")
    fit(stored, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    fit(recipe.replace(epochs=1, seed=4), path, overwrite=True)
    message = refusal(stored)
    assert f"the recipe was made with {str(stored.init_sha256)[:12]}..." in message
    assert "give init_from= to take these" in message
    prepared(stored.replace(init_from=str(path)))
    file = str(tmp_path / "a" / "recipe.json")
    again = resolve(file, stored.network, stored.data, {"init_from": str(path)}, num_train=64)
    assert (again.init_from, again.init_sha256) == (str(path), None)
    assert resolve(file, stored.network, stored.data, num_train=64).init_sha256 == stored.init_sha256


def test_weights_of_an_unfinished_run_are_refused(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz())
    with after_steps(5, interrupt), pytest.raises(Interrupted):
        fit(recipe, tmp_path / "source")
    assert "has not finished, so its weights will change; finish it first" in refusal(
        recipe.replace(init_from=str(tmp_path / "source"))
    )


def test_a_digest_without_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="init_sha256=abc: is of the weights that init_from= names"):
        Recipe.flat(init_sha256="abc")


@pytest.mark.parametrize("steps", [1, 6])
def test_resuming_needs_the_source_no_more(make_npz: MakeNpz, tmp_path: Path, steps: int) -> None:
    data = make_npz()
    path = source(tmp_path / "source", small(data))
    darker = rename(data, tmp_path / "dark.npz", x_train=np.load(data)["x_train"] // 3)
    recipe = small(darker, init_from=str(path), ema_decay=0.9)
    fit(recipe, tmp_path / "whole")
    with after_steps(steps, interrupt), pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run")
    shutil.rmtree(path)
    fit(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert read_weights(tmp_path / "run").preprocessing == read_weights(tmp_path / "whole").preprocessing


def test_a_run_killed_before_its_first_checkpoint_starts_over_from_the_same_weights(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    recipe = small(make_npz(), ema_decay=0.9)
    path = source(tmp_path / "source", recipe)
    recipe = recipe.replace(init_from=str(path))
    fit(recipe, tmp_path / "whole")
    with after_steps(1, kill), pytest.raises(Killed):
        fit(recipe, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").checkpoint.exists()
    assert RunFolder(tmp_path / "run").is_run()
    fit(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_resuming_from_other_weights_is_refused_and_another_spelling_is_not(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path
) -> None:
    ship()
    recipe = small(make_npz(), init_from=DEFAULT)
    with after_steps(2, break_off), pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run")
    with pytest.raises(UsageError, match=f"has init_from {DEFAULT}, asked for is elsewhere; leave out init_from="):
        fit(recipe.replace(init_from="elsewhere"), tmp_path / "run", resume=True)
    fit(recipe.replace(init_from=DEFAULT.lower()), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_several_seeds_start_from_the_same_weights(ship: Ship, make_npz: MakeNpz, tmp_path: Path) -> None:
    path = ship()
    recipe = small(make_npz(), init_from=str(path), epochs=1)
    fit_seeds(recipe, tmp_path / "seeds", 2)
    digests = {Recipe.from_file(tmp_path / f"seeds/seed{seed}/recipe.json").init_sha256 for seed in (0, 1)}
    assert digests == {read_weights(path).sha256}
    fit(recipe.replace(seed=1), tmp_path / "alone")
    assert_same_run(tmp_path / "seeds" / "seed1", tmp_path / "alone")


def test_the_weights_count_as_a_change_of_the_recipe_and_decide_a_runs_key() -> None:
    recipe = Recipe.flat(network="WRN-10-1", data="cifar10", bn_scale="uniform", precision="fp32", family="cifar")
    started = recipe.replace(init_from=DEFAULT, init_sha256="a" * 64)
    assert overridden(started, recipe) == {"init_from": (None, DEFAULT)}
    assert recipe_text(started, find_changes(started, "cifar10")) == f"paper, init_from {DEFAULT}"
    keys = {
        run_key(each, "digest") for each in (recipe, started, started.replace(init_from="copy", init_sha256="a" * 64))
    }
    assert len(keys) == 2
    assert run_key(started, "digest") != run_key(started.replace(init_from=DEFAULT, init_sha256="b" * 64), "digest")
    assert Recipe.from_json(json.loads(json.dumps(started.to_json()))) == started


@pytest.mark.usefixtures("pages")
def test_from_the_command_line(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ship()
    out, flags = (
        str(tmp_path / "run"),
        ["--epochs", "1", "--crop-padding", "1", "--batch-size", "16", "--device", "cpu"],
    )
    words = ["train", "WRN-10-1", "--data", str(make_npz(num_classes=3)), *flags, "--out", out]
    assert main([*words, "--from", "WRN-16-4-cifar"]) == 2
    assert (
        "--from WRN-16-4-cifar: no such run or weights folder, no file of weights, or a shipped network: did you"
        in capsys.readouterr().err
    )
    assert main([*words, "--from", DEFAULT, "--network", "x"]) == 2
    capsys.readouterr()
    assert main([*words, "--from", DEFAULT, "--activation", "silu"]) == 2
    assert "--activation silu: the weights of WRN-16-4-cifar10 were trained with relu" in capsys.readouterr().err
    assert not Path(out).exists()
    assert main([*words, "--from", DEFAULT]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert f"init_from {DEFAULT} (recipe: none)" in shown
    assert "note: the head is new: 3 classes here, 4 in those weights" in shown
    assert main(["train", "--resume", "--out", out, "--from", "elsewhere"]) == 2
    assert "leave out --from, or start" in capsys.readouterr().err
    assert DEFAULT in (Path(out) / "report.html").read_text()
