"""From what was asked for to the final recipe: the data's part in it, and what a resumed run may change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.spec.recipe import Recipe, overridden
from wideresnet.spec.recipes import RECIPES, paper, quick
from wideresnet.spec.record import RunFolder, write_json
from wideresnet.training import recipe_for, resolve, resolve_for_data
from wideresnet.training.resolve import check_processes, resumed_recipe

MakeNpz = Callable[..., Path]
STORED = Recipe.flat(
    network="WRN-10-1", family="cifar", epochs=3, precision="fp32", kernels="winograd", layout="channels_last",
    threads=2, compile=False, device="cpu",
)  # fmt: skip


def test_a_wrong_name_is_told_before_the_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "load_for", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(UsageError, match="WRN-28-10"):
        resolve_for_data("paper", "WRN-29-10", "digits")


@pytest.mark.parametrize(
    ("overrides", "num_train"), [({}, 64), ({"limit": 40}, 40), ({"limit": 99}, 64), ({"limit": 40, "holdout": 8}, 32)]
)
def test_a_recipe_counts_the_images_that_are_left_to_train_on(
    make_npz: MakeNpz, overrides: dict[str, Any], num_train: int
) -> None:
    data = str(make_npz())
    recipe, base, dataset = resolve_for_data("quick", "WRN-10-1", data, overrides)
    assert base == quick("WRN-10-1", data, "own", num_train)
    assert recipe == base.replace(**overrides)
    assert len(dataset.train) == 64


def test_a_recipe_file_starts_from_the_recipe_that_it_names_for_these_data(tmp_path: Path, make_npz: MakeNpz) -> None:
    data, path = str(make_npz()), tmp_path / "mine.json"
    path.write_text(json.dumps({"recipe": "quick", "lr": 0.05}))
    recipe, base, _ = resolve_for_data(str(path), "WRN-10-1", data, {"epochs": 4})
    assert base == quick("WRN-10-1", data, "own", 64)
    assert overridden(recipe, base) == {"epochs": (200, 4), "lr": (0.3, 0.05), "eval_every": (23, 1)}


@pytest.mark.parametrize("name", ["paper", "quick", "fast"])
@pytest.mark.parametrize("overrides", [{}, {"epochs": 4, "limit": 40}])
def test_in_python_a_recipe_is_that_of_the_command(make_npz: MakeNpz, name: str, overrides: dict[str, Any]) -> None:
    data = str(make_npz())
    assert recipe_for(name, "WRN-10-1", data, **overrides) == resolve_for_data(name, "WRN-10-1", data, overrides)[0]


@pytest.mark.parametrize("make", RECIPES.values())
def test_the_recipe_of_a_known_set_is_the_same_with_and_without_its_images(make: Any) -> None:
    assert make("WRN-10-1", "digits", "", None) == recipe_for(make.__name__, "WRN-10-1", "digits")


def test_digits_are_known_whatever_their_name() -> None:
    recipe, base, _ = resolve_for_data("paper", "WRN-10-1", "DIGITS")
    assert recipe == base == paper("WRN-10-1", "DIGITS", "digits")
    assert recipe.feed.flip is False


def test_a_resumed_run_keeps_what_the_machine_decided_if_nothing_else_is_asked_for() -> None:
    assert resumed_recipe(Path("run"), STORED, STORED) == STORED
    left_open = STORED.replace(family=None, precision="auto", kernels="auto", layout="auto", threads=None, compile=None)
    assert resumed_recipe(Path("run"), STORED, left_open) == STORED
    assert resumed_recipe(Path("run"), STORED, STORED.replace(network="wrn-10-1")) == STORED


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", "auto"), ("kernels", "pytorch"), ("layout", "contiguous"), ("threads", 3), ("compile", True)],
)
def test_a_resumed_run_may_be_computed_elsewhere(key: str, value: Any) -> None:
    resumed = resumed_recipe(Path("run"), STORED, STORED.replace(**{key: value}))
    assert resumed == STORED.replace(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("precision", "bf16"), ("family", "imagenet"), ("network", "WRN-16-1"), ("seed", 1), ("epochs", 4),
     ("data", "cifar10"), ("recipe", "quick"), ("deterministic", True)],
)  # fmt: skip
def test_a_resumed_run_with_other_numbers_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"resume=True: run has {key} .*asked for is {value}; leave out {key}"):
        resumed_recipe(Path("run"), STORED, STORED.replace(**{key: value}))


def test_threads_are_decided_anew_for_another_number_of_processes() -> None:
    resumed = resumed_recipe(Path("run"), STORED, STORED.replace(layout="contiguous"), keep_threads=False)
    assert resumed == STORED.replace(layout="contiguous", threads=None)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"sync_bn": True}, "the same up to rounding"),
        ({"norm": "group"}, "the same up to rounding"),
        ({"sync_bn": True, "dropout": 0.1}, "dropout draws other masks"),
        ({}, "without sync_bn=True"),
        ({"norm": "group", "sam_rho": 0.05}, "with sam_rho=0.05 each process perturbs the weights by its own share"),
        ({"sync_bn": True, "batch_rule": "linear"}, "batch_rule='linear'"),
    ],
)
def test_another_number_of_processes_is_told_or_refused(tmp_path: Path, changes: dict[str, Any], outcome: str) -> None:
    folder, recipe = RunFolder(tmp_path), STORED.replace(**changes)
    assert check_processes(folder, recipe, 2) == ""  # nothing is known of the former number
    write_json(folder.env, {"num_processes": 2})
    assert check_processes(folder, recipe, 2) == ""
    if "=" not in outcome:
        assert outcome in check_processes(folder, recipe, 3)
    else:
        with pytest.raises(UsageError, match=f"processes=2, now 3: .*{outcome}"):
            check_processes(folder, recipe, 3)
