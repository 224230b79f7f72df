"""The named recipes are what their sources say, and a name, a file and overrides come together in one order."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.facts import FACTS
from wideresnet.data.feeds.resident import Feed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.spec.recipe import FIELDS, Recipe, overridden
from wideresnet.spec.recipes import NUM_TRAIN, RECIPES, base_of, fast, long, paper, quick, resolve, sam, strong
from wideresnet.training.schedules import image_scale, make_schedule

# The authors' released CIFAR logs: 59 epochs at 0.1, then a fifth of it from the 60th, 120th and 160th.
CIFAR_LR = [0.1] * 59 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 41
SVHN_LR = [0.01] * 79 + [0.001] * 40 + [0.0001] * 41


def lr_by_epoch(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The rate of each epoch; fails if it changes within one."""
    schedule = make_schedule(recipe, steps_per_epoch)
    rates = []
    for epoch in range(recipe.schedule.epochs):
        within = {schedule.lr(epoch * steps_per_epoch + step) for step in range(steps_per_epoch)}
        assert len(within) == 1
        rates.append(within.pop())
    return rates


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 200),
        ("batch_size", 128),
        ("schedule", "steps"),
        ("lr", 0.1),
        ("lr_drop_epochs", (60, 120, 160)),
        ("lr_drop_factor", 0.2),
        ("lr_drop_at", "start"),
        ("reset_momentum_at_drops", True),
        ("momentum", 0.9),
        ("nesterov", True),
        ("dampening", 0.0),
        ("weight_decay", 5e-4),
        ("weight_decay_on", "all"),
        ("label_smoothing", 0.0),
        ("ema_decay", 0.0),
        ("drop_last", True),
        ("flip", True),
        ("crop_padding", 4),
        ("padding_mode", "reflection"),
        ("image_scales", ((0.0, 1.0),)),
        ("preprocessing", "mean_std"),
        ("extra_data", False),
        ("dropout", 0.0),
        ("init", "fan_in"),
        ("bn_scale", "uniform"),
        ("bn_momentum", 0.1),
        ("bn_eps", 1e-5),
        ("activation", "relu"),
        ("norm", "batch"),
        ("stochastic_depth", None),
    ],
)
def test_the_papers_recipe_has_the_authors_value_of_every_choice_they_made(field: str, value: object) -> None:
    assert paper("WRN-28-10", "cifar10").values()[field] == value


def test_cifars_learning_rate_is_that_of_the_released_log_in_every_epoch() -> None:
    assert lr_by_epoch(paper("WRN-28-10", "cifar10"), 390) == pytest.approx(CIFAR_LR, rel=1e-12)


def test_dropping_at_the_end_gives_sixty_epochs_at_the_first_rate() -> None:
    recipe = paper("WRN-28-10", "cifar10").replace(lr_drop_at="end")
    expected = [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
    assert lr_by_epoch(recipe, 390) == pytest.approx(expected, rel=1e-12)


def test_an_epoch_of_cifar_has_390_steps() -> None:
    recipe = paper("WRN-28-10", "cifar10")
    images, labels = np.zeros((50_000, 1, 1, 1), np.uint8), np.zeros(50_000, np.int64)
    feed = Feed(
        images, labels, Preprocessing("scale"), batch_size=recipe.schedule.batch_size, drop_last=recipe.feed.drop_last
    )
    assert feed.num_batches == 390


@pytest.mark.parametrize(("drop_at", "first"), [("start", [59, 119, 159]), ("end", [60, 120, 160])])
def test_momentum_starts_from_zero_exactly_at_the_first_step_after_each_drop(drop_at: str, first: list[int]) -> None:
    recipe = paper("WRN-28-10", "cifar10").replace(lr_drop_at=drop_at)
    schedule = make_schedule(recipe, 390)
    resets = [step for step in range(200 * 390) if schedule.resets_momentum(step)]
    assert resets == [epoch * 390 for epoch in first]
    rates = [schedule.lr(step) for step in range(200 * 390)]
    assert resets == [step for step in range(1, len(rates)) if rates[step] != rates[step - 1]]


def test_momentum_is_kept_if_the_recipe_says_so() -> None:
    schedule = make_schedule(paper("WRN-28-10", "cifar10").replace(reset_momentum_at_drops=False), 390)
    assert not any(schedule.resets_momentum(epoch * 390) for epoch in range(200))


def test_svhn_has_its_own_schedule_and_no_augmentation() -> None:
    recipe = paper("WRN-16-8", "svhn")
    assert (recipe.schedule.epochs, recipe.schedule.batch_size, recipe.network_options.dropout) == (160, 128, 0.4)
    assert (recipe.feed.preprocessing, recipe.feed.flip, recipe.feed.crop_padding) == ("scale", False, 0)
    assert recipe.network_options.bn_scale == "uniform"
    assert lr_by_epoch(recipe, 10) == pytest.approx(SVHN_LR, rel=1e-12)


@pytest.mark.parametrize(
    ("data", "known_as", "extra"),
    [("svhn", "", True), ("svhn", "svhn", True), ("SVHN", "svhn", True), ("/data/numbers", "svhn", False)],
)
def test_svhns_extra_images_are_asked_for_only_if_the_data_is_svhn_by_name(
    data: str, known_as: str, extra: bool
) -> None:
    recipe = paper("WRN-16-8", data, known_as)
    assert recipe.feed.extra_data is extra
    assert recipe.schedule.lr == 0.01


@pytest.mark.parametrize("make", RECIPES.values())
def test_digits_are_never_mirrored(make: Any) -> None:
    assert make("WRN-16-2", "digits", "", 1437).feed.flip is False
    assert make("WRN-16-2", "/data/mine", "digits", 1437).feed.flip is False
    assert make("WRN-16-2", "cifar10", "", 50_000).feed.flip is True


SAM = {
    "epochs": 200, "batch_size": 128, "schedule": "cosine", "lr": 0.1, "warmup_fraction": 0, "momentum": 0.9,
    "nesterov": True, "weight_decay": 1e-3, "weight_decay_on": "all", "label_smoothing": 0, "clip_grad_norm": 5,
    "sam_rho": 0.05, "ema_decay": 0, "drop_last": True, "flip": True, "crop_padding": 4, "padding_mode": "reflection",
    "auto_augment": "none", "cutout": 0, "preprocessing": "mean_std", "init": "fan_out", "dropout": 0,
}  # fmt: skip
"""Defaults of the flags of google-research/sam, and --sam_rho 0.05."""
STRONG = {
    "epochs": 200, "batch_size": 128, "schedule": "cosine", "lr": 0.1, "warmup_fraction": 0.025, "momentum": 0.9,
    "nesterov": True, "weight_decay": 5e-4, "weight_decay_on": "all", "label_smoothing": 0.1, "clip_grad_norm": 5,
    "sam_rho": 0, "flip": True, "crop_padding": 4, "padding_mode": "zero", "auto_augment": "trivial", "cutout": 16,
    "preprocessing": "mean_std", "dropout": 0,
}  # fmt: skip
"""automl/trivialaugment's wresnet28x10 with ta_wide, label smoothing and warm-up added."""


@pytest.mark.parametrize(("make", "expected"), [(sam, SAM), (strong, STRONG)])
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_the_fields_recipes_have_the_values_of_their_sources(make: Any, expected: dict[str, Any], data: str) -> None:
    values = make("WRN-28-10", data).values()
    assert {key: values[key] for key in expected} == expected


def test_the_fields_recipes_spare_digits_and_house_numbers_what_would_make_others_of_them() -> None:
    for make in (sam, strong):
        digits, svhn = make("WRN-16-2", "digits").feed, make("WRN-16-2", "svhn").feed
        assert (digits.flip, digits.crop_padding, digits.padding_mode, digits.cutout) == (False, 1, "zero", 0)
        assert (svhn.flip, svhn.crop_padding) == (False, 4)
    recipe = strong("WRN-16-2", "svhn")
    assert (recipe.schedule.lr, recipe.optimizer.weight_decay) == (0.005, 0.005)


def test_quick_does_not_mirror_svhns_house_numbers() -> None:
    assert quick("WRN-16-2", "svhn").feed.flip is False


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_keeps_what_was_asked_for(name: str) -> None:
    recipe = RECIPES[name]("wrn-40-2", "My/Folder", "cifar100", 50_000)
    assert (recipe.name, recipe.network, recipe.data) == (name, "wrn-40-2", "My/Folder")


@pytest.mark.parametrize("num_train", [512, 1000, 1437, 5000, 9_999, 10_000, 20_000, 50_000, 73_257])
def test_quick_makes_at_least_1500_steps(num_train: int) -> None:
    recipe = quick("WRN-16-2", "mine", "", num_train)
    assert recipe.feed.drop_last
    assert recipe.schedule.epochs * (num_train // recipe.schedule.batch_size) >= 1500


@pytest.mark.parametrize("num_train", [1, 63, 64, 200])
def test_quick_passes_over_a_tiny_set_at_most_200_times(num_train: int) -> None:
    assert quick("WRN-16-2", "mine", "", num_train).schedule.epochs == 200


@pytest.mark.parametrize("make", [quick, fast])
def test_sets_known_by_name_have_their_own_number_of_images(make: Any) -> None:
    assert {name: facts.num_train for name, facts in FACTS.items()} == NUM_TRAIN
    for name, num_train in NUM_TRAIN.items():
        assert make("WRN-16-2", name) == make("WRN-16-2", name, name, num_train)
    assert make("WRN-16-2", "CIFAR_10").schedule == make("WRN-16-2", "cifar10").schedule


@pytest.mark.parametrize("make", [quick, fast])
def test_a_recipe_that_depends_on_the_number_of_images_refuses_to_guess_it(make: Any) -> None:
    with pytest.raises(UsageError, match=r"^data='my/photos': .*give num_train=, or let recipe_for\(...\) load"):
        make("WRN-16-2", "my/photos")
    assert make("WRN-16-2", "my/photos", "", 710).schedule.batch_size == 64


def test_quick_passes_over_cifar_18_times_on_images_that_grow() -> None:
    recipe = quick("WRN-16-2", "cifar10")
    scales = [image_scale(recipe, epoch) for epoch in range(recipe.schedule.epochs)]
    assert scales == [0.625] * 8 + [0.75] * 5 + [1.0] * 5
    assert [round(32 * scale) for scale in sorted(set(scales))] == [20, 24, 32]


@pytest.mark.parametrize("make", [quick, fast])
@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 40, 200])
def test_the_last_epoch_sees_whole_images_whatever_the_number_of_epochs(make: Any, epochs: int) -> None:
    recipe = make("WRN-16-2", "cifar10").replace(epochs=epochs)
    scales = [image_scale(recipe, epoch) for epoch in range(epochs)]
    assert scales == sorted(scales)
    assert scales[-1] == 1.0


def test_quick_rises_once_to_its_peak_and_ends_near_zero() -> None:
    recipe = quick("WRN-16-2", "cifar10")
    num_steps = 18 * 390
    schedule = make_schedule(recipe, 390)
    rates = [schedule.lr(step) for step in range(num_steps)]
    peak = rates.index(max(rates))
    assert peak == pytest.approx(0.15 * num_steps, abs=1)
    assert max(rates) == pytest.approx(0.3, rel=1e-3)
    assert max(rates) <= 0.3
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 1e-4
    assert 0 < rates[0] < 1e-3
    assert not any(schedule.resets_momentum(step) for step in range(num_steps))


def test_quick_keeps_digits_at_their_eight_pixels() -> None:
    recipe = quick("WRN-16-2", "digits", "digits", 1437)
    assert recipe.feed.image_scales == ((0.0, 1.0),)
    assert (recipe.feed.crop_padding, recipe.feed.padding_mode) == (1, "zero")


def write(path: Path, **values: Any) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def test_an_override_wins_over_a_file_and_a_file_over_the_function(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", network="WRN-40-2", data="cifar100", recipe="quick", lr=0.5, epochs=3)
    recipe = resolve(path, "WRN-16-2", "cifar10", {"epochs": 7})
    assert (recipe.schedule.lr, recipe.schedule.epochs, recipe.name) == (0.5, 7, "quick")
    assert (recipe.network, recipe.data) == ("WRN-16-2", "cifar10")
    assert resolve("paper", "WRN-16-2", "cifar10", {"epochs": 7}).schedule.epochs == 7
    assert resolve("paper", "WRN-16-2", "cifar10") == paper("WRN-16-2", "cifar10")


@pytest.mark.parametrize("name", [*RECIPES, None])
def test_what_a_file_leaves_out_comes_from_the_recipe_that_it_names_or_from_paper(
    tmp_path: Path, name: str | None
) -> None:
    path = write(tmp_path / "mine.json", **{"recipe": name} if name else {}, lr=0.05)
    twin = RECIPES[name or "paper"]("WRN-16-2", "cifar10", "cifar10", 20_000)
    recipe = resolve(path, "WRN-16-2", "cifar10", known_as="cifar10", num_train=20_000)
    assert recipe == twin.replace(lr=0.05)
    assert base_of(path, "WRN-16-2", "cifar10", known_as="cifar10", num_train=20_000) == twin


def test_changes_made_in_a_file_are_told_beside_those_of_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", recipe="quick", lr=0.05, flip=False)
    recipe, base = resolve(path, "WRN-16-2", "cifar10", {"epochs": 7}), base_of(path, "WRN-16-2", "cifar10")
    assert overridden(recipe, base) == {
        "lr": (0.3, 0.05), "flip": (True, False), "epochs": (18, 7), "eval_every": (2, 1),
    }  # fmt: skip


def test_a_file_of_a_recipe_without_a_name_here_is_whole_or_refused(tmp_path: Path) -> None:
    whole = quick("WRN-40-2", "cifar100").replace(recipe="ours", lr=0.05)
    path = write(tmp_path / "whole.json", **whole.to_json())
    assert resolve(path, "WRN-16-2", "cifar10") == whole.replace(network="WRN-16-2", data="cifar10")
    assert base_of(path, "WRN-16-2", "cifar10") == whole
    with pytest.raises(UsageError, match=r"its recipe 'ours': .*one of paper, quick, fast.*come from a named recipe$"):
        resolve(write(tmp_path / "part.json", recipe="ours", lr=0.05), "WRN-16-2", "cifar10")


@pytest.mark.parametrize("name", [3, None, True, ["quick"], {"quick": 1}, "Quick"])
def test_a_file_whose_recipe_has_no_such_name_is_refused(tmp_path: Path, name: Any) -> None:
    path = write(tmp_path / "mine.json", recipe=name, lr=0.05)
    with pytest.raises(UsageError, match=r"mine\.json: its recipe "):
        resolve(path, "WRN-16-2", "cifar10")


def test_a_file_may_leave_out_network_and_data_of_a_recipe_without_a_name_here(tmp_path: Path) -> None:
    values = paper("WRN-40-2", "cifar100").replace(recipe="ours").to_json()
    path = write(tmp_path / "mine.json", **{key: values[key] for key in values.keys() - {"network", "data"}})
    assert resolve(path, "WRN-16-2", "cifar10") == paper("WRN-16-2", "cifar10").replace(recipe="ours")


def test_a_field_of_a_file_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", recipe="quick", epoch=3)
    with pytest.raises(UsageError, match=r"'epoch' does not exist; nearest: epochs$"):
        resolve(path, "WRN-16-2", "cifar10")


def test_a_damaged_recipe_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"lr": 0.')
    with pytest.raises(DataError, match=r"mine\.json: cannot be read as JSON"):
        resolve(str(tmp_path / "mine.json"), "WRN-16-2", "cifar10")


def test_a_recipe_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"recipe 'quik': did you mean quick\?.*the path of a recipe\.json$"):
        resolve("quik", "WRN-16-2", "cifar10")


def test_an_override_of_a_field_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"recipe field 'epoch' does not exist; nearest: epochs$"):
        resolve("paper", "WRN-16-2", "cifar10", {"epoch": 7})


def test_an_override_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"epochs=0: must be at least 1$"):
        resolve("paper", "WRN-16-2", "cifar10", {"epochs": 0})


def test_data_without_a_name_is_left_to_the_loader_to_refuse() -> None:
    assert resolve("paper", "WRN-16-2", "").data == ""
    assert resolve("quick", "WRN-16-2", "", num_train=50_000).data == ""


@pytest.mark.parametrize(
    ("recipe", "overrides", "every"),
    [
        ("fast", {}, 94),  # of 188 epochs
        ("fast", {"epochs": 8}, 4),
        ("fast", {"epochs": 2}, 1),
        ("fast", {"epochs": 400}, 200),
        ("fast", {"epochs": 8, "eval_every": 62}, 62),
        ("paper", {"epochs": 8}, 1),
    ],
)
def test_a_run_of_other_epochs_is_evaluated_as_often_as_the_recipe_unless_it_says_how_often(
    tmp_path: Path, recipe: str, overrides: dict[str, Any], every: int
) -> None:
    assert resolve(recipe, "WRN-16-2", "photos", overrides, num_train=526).feed.eval_every == every
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"recipe": recipe, **overrides}))  # written by hand
    assert resolve(str(path), "WRN-16-2", "photos", num_train=526).feed.eval_every == every


def test_a_stored_recipe_is_final(tmp_path: Path) -> None:
    path, stored = tmp_path / "recipe.json", fast("WRN-16-2", "photos", "photos", 526).replace(epochs=8)
    path.write_text(json.dumps(stored.to_json()))
    assert resolve(str(path), "WRN-16-2", "photos", num_train=526) == stored


@pytest.mark.parametrize("data", ["cifar10", "svhn", "digits", "photos"])
def test_paper_leaves_no_choice_of_precision_to_the_machine(data: str) -> None:
    assert paper("WRN-16-2", data).machine.precision == "fp32"
    assert quick("WRN-16-2", data, data, 5000).machine.precision == "auto"
    asked = resolve("paper", "WRN-16-2", data, {"precision": "bf16"})
    assert overridden(asked, paper("WRN-16-2", data)) == {"precision": ("fp32", "bf16")}


def test_what_overrides_changed_is_told_with_both_values() -> None:
    base = paper("WRN-16-2", "cifar10")
    assert overridden(base, base) == {}
    assert overridden(base.replace(lr=0.05, flip=False), base) == {
        "lr": (0.1, 0.05),
        "flip": (True, False),
    }


def test_the_costs_in_quicks_description_are_its_own() -> None:
    recipe = quick("WRN-16-2", "cifar10")
    area = sum(image_scale(recipe, epoch) ** 2 for epoch in range(recipe.schedule.epochs))
    assert math.isclose(area, 10.9, abs_tol=0.05)


def test_long_is_the_recipe_of_the_committed_record_and_costs_what_its_description_says() -> None:
    record = Path(__file__).parents[2] / "results" / "wrn-28-2-cifar10-quick-60-epochs" / "recipe.json"
    recipe, values = long("WRN-28-2", "cifar10"), json.loads(record.read_text())
    changed = overridden(Recipe.flat(**{key: value for key, value in values.items() if key in FIELDS}), recipe)
    assert set(changed) == {"recipe", "data", "family", "precision", "kernels", "layout", "threads", "compile"}
    scales = [image_scale(recipe, epoch) for epoch in range(recipe.schedule.epochs)]
    assert [scales.count(scale) for scale in (0.625, 0.75, 1.0)] == [27, 17, 16]
    assert math.isclose(sum(scale**2 for scale in scales), 36.1, abs_tol=0.05)
