from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.errors import DataError, UsageError
from wideresnet.spec.recipe import ELSEWHERE, NETWORK_OPTIONS, TYPES, Recipe

FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


def refusal(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        Recipe.flat(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_help_and_a_group(name: str) -> None:
    metadata = FIELDS[name].metadata
    assert metadata["help"]
    assert metadata["group"] in ("what", "schedule", "optimiser", "feed", "network", "machine")


def test_the_default_recipe_passes_its_own_checks_unchanged() -> None:
    recipe = Recipe()
    for name, field in FIELDS.items():
        assert getattr(recipe, name) == field.default
        assert type(getattr(recipe, name)) is type(field.default)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata["choices"]])
def test_a_choice_that_does_not_exist_is_refused_naming_field_value_and_choices(name: str) -> None:
    message = refusal(**{name: "nonsense"})
    assert message.startswith(f"{name} 'nonsense': one of ")
    for choice in FIELDS[name].metadata["choices"]:
        assert choice in message
    assert "nearest: " in message


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    assert refusal(schedule="one-cycle").endswith("(nearest: one_cycle)")


@pytest.mark.parametrize("name", FIELDS)
def test_every_choice_that_exists_is_accepted(name: str) -> None:
    for choice in FIELDS[name].metadata["choices"]:
        assert getattr(Recipe.flat(**{name: choice}), name) == choice


@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if field.metadata["low"] is not None and name != "lr_drop_epochs"]
)
def test_a_value_below_the_range_is_refused_and_its_lower_end_accepted(name: str) -> None:
    low = FIELDS[name].metadata["low"]
    assert refusal(**{name: low - 1}) == f"{name} {type_of(name)(low - 1)}: must be at least {low}"
    nesterov = name != "momentum"
    assert getattr(Recipe.flat(**{name: low, "nesterov": nesterov}), name) == low


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata["high"] is not None])
def test_a_value_above_the_range_is_refused_and_its_upper_end_accepted(name: str) -> None:
    high = FIELDS[name].metadata["high"]
    assert refusal(**{name: high + 1}) == f"{name} {type_of(name)(high + 1)}: must be at most {high}"
    assert getattr(Recipe.flat(**{name: high, "nesterov": name != "dampening"}), name) == high


def type_of(name: str) -> type:
    return int if int in (TYPES[name], *getattr(TYPES[name], "__args__", ())) else float


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "dropout", "stochastic_depth"])
def test_a_number_that_is_not_finite_is_refused(name: str, value: float) -> None:
    assert refusal(**{name: value}).startswith(f"{name} {value}: must be ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1.5),
        ("epochs", "5"),
        ("epochs", True),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("lr", "0.1"),
        ("lr", "fast"),
        ("lr", True),
        ("lr", [0.1]),
        ("flip", 1),
        ("flip", "yes"),
        ("network", 28),
        ("limit", 2.5),
        ("lr_drop_epochs", 60),
        ("lr_drop_epochs", "69"),
        ("lr_drop_epochs", [60.5]),
        ("lr_drop_epochs", [True, 2]),
        ("lr_drop_epochs", ["60"]),
        ("image_scales", 0.5),
        ("image_scales", "01"),
        ("image_scales", [0.0, 1.0]),
        ("image_scales", [[0.0, 1.0, 2.0]]),
        ("image_scales", [["0", "1"]]),
        ("image_scales", [[False, True]]),
    ],
)
def test_a_value_of_another_type_is_refused_naming_field_and_value(name: str, value: Any) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name} {value!r}: must be ")


@pytest.mark.parametrize("name", [name for name in FIELDS if type(None) not in getattr(TYPES[name], "__args__", ())])
def test_none_is_refused_where_a_value_is_needed(name: str) -> None:
    assert refusal(**{name: None}) == f"{name} None: needs a value"


@pytest.mark.parametrize("epochs", [(0, 60), (60, 60), (120, 60), (-1,)])
def test_drop_epochs_count_from_one_and_rise(epochs: tuple[int, ...]) -> None:
    assert refusal(lr_drop_epochs=epochs) == f"lr_drop_epochs {epochs}: epochs counted from 1, rising"


def test_no_drop_at_all_is_legal() -> None:
    assert Recipe.flat(lr_drop_epochs=()).schedule.lr_drop_epochs == ()


@pytest.mark.parametrize("values", [{"momentum": 0.0}, {"dampening": 0.1}])
def test_nesterov_without_momentum_or_with_dampening_is_refused_and_the_way_out_named(values: dict[str, Any]) -> None:
    message = refusal(**values)
    assert message.startswith("nesterov needs momentum > 0 and dampening 0, got momentum ")
    assert message.endswith("use --no-nesterov")
    Recipe.flat(**values, nesterov=False)


@pytest.mark.parametrize(
    "scales",
    [
        (),
        ((0.1, 1.0),),
        ((0.0, 0.5), (0.8, 1.0), (0.4, 0.75)),
        ((0.0, 0.5), (0.0, 1.0)),
        ((0.0, 0.0),),
        ((0.0, -1.0),),
        ((0.0, 2.5),),
        ((0.0, float("nan")),),
        ((0.0, 1.0), (float("nan"), 1.0)),
        ((0.0, 1.0), (float("inf"), 1.0)),
        ((0.0, 0.5), (1.0, 1.0)),
    ],
)
def test_image_scales_start_at_zero_rise_and_stay_in_range(scales: Any) -> None:
    assert refusal(image_scales=scales).startswith(f"image_scales {scales}: pairs (start, scale)")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]


def test_lists_and_whole_floats_from_json_become_the_fields_types() -> None:
    recipe = Recipe.flat(epochs=5.0, lr=1, lr_drop_epochs=[2, 4], image_scales=[[0, 1]])  # type: ignore[arg-type]
    assert (recipe.schedule.epochs, type(recipe.schedule.epochs)) == (5, int)
    assert (recipe.schedule.lr, type(recipe.schedule.lr)) == (1.0, float)
    assert recipe.schedule.lr_drop_epochs == (2, 4)
    assert recipe.feed.image_scales == ((0.0, 1.0),)
    hash(recipe)


recipes = st.builds(
    Recipe,
    network=st.text(max_size=20),
    epochs=st.integers(1, 10**6),
    lr=st.floats(0, 1e6),
    lr_drop_epochs=st.sets(st.integers(1, 10**4), max_size=5).map(lambda epochs: tuple(sorted(epochs))),
    image_scales=st.dictionaries(st.floats(1e-6, 1, exclude_max=True), st.floats(0.01, 2), max_size=3).map(
        lambda pairs: ((0.0, 0.5), *sorted(pairs.items()))
    ),
    flip=st.booleans(),
    weight_decay=st.floats(0, 1),
    limit=st.none() | st.integers(1, 10**9),
    stochastic_depth=st.none() | st.floats(0.01, 1),
    family=st.sampled_from([None, "cifar", "imagenet"]),
    seed=st.integers(0, 2**70),
)


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_a_recipe_survives_json_text_exactly(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_recipe_file_holds_every_field(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(Recipe.flat(lr=0.3).to_json()))
    assert set(json.loads(path.read_text())) == set(FIELDS)
    assert Recipe.from_file(path) == Recipe.flat(lr=0.3)


def test_a_hand_written_file_may_leave_fields_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"lr": 0.05}')
    assert Recipe.from_file(path) == Recipe.flat(lr=0.05)


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^recipe field 'momentun' does not exist; nearest: momentum$"):
        Recipe.from_json({"momentun": 0.9})


@pytest.mark.parametrize(
    "content",
    [b'{"lr": 0.1', b"", b"\xff\xfe\x00{", b"[" * 100_000, b'{"lr": 0.1}\n{"lr": 0.2}'],
    ids=["cut", "empty", "not text", "nested", "two"],
)
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Recipe.from_file(path)
    assert str(caught.value).startswith(f"{path}: not a readable recipe.json (")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: not a readable recipe\.json"):
        Recipe.from_file(tmp_path / "nothing.json")


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("null", "NoneType"), ("3", "int")])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str, kind: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"a recipe is a JSON object of fields, this is {kind}$"):
        Recipe.from_file(path)


def test_the_lists_of_fields_name_fields() -> None:
    assert set(NETWORK_OPTIONS) <= set(FIELDS)
    assert set(ELSEWHERE) <= set(FIELDS)


def test_a_batch_has_no_more_parts_than_images() -> None:
    assert Recipe.flat(batch_size=4, accumulate=4).schedule.accumulate == 4
    assert refusal(batch_size=4, accumulate=5) == (
        "accumulate 5: a batch of 4 has no more than 4 parts; use --accumulate 4 or less"
    )
