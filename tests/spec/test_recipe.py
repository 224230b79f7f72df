"""`Recipe`: its fields, their types, ranges and choices, and the two forms, nested and flat."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.errors import DataError, UsageError
from wideresnet.spec.execution import ELSEWHERE, SETTLED, Execution
from wideresnet.spec.feed_options import FeedOptions
from wideresnet.spec.options import MachineOptions, NetworkOptions, OptimizerOptions, ScheduleOptions
from wideresnet.spec.recipe import ADDED, CHOICES, FIELDS, GROUPS, INITIAL, Recipe

PARTS = (Recipe, ScheduleOptions, OptimizerOptions, FeedOptions, NetworkOptions, MachineOptions)
ORDER = [
    "network", "data", "recipe", "epochs", "batch_size", "accumulate", "schedule", "batch_rule", "lr",
    "lr_drop_epochs", "lr_drop_factor", "lr_drop_at", "warmup_fraction", "reset_momentum_at_drops", "momentum",
    "nesterov", "dampening", "weight_decay", "weight_decay_on", "label_smoothing", "clip_grad_norm", "sam_rho",
    "ema_decay", "drop_last", "flip", "crop_padding", "padding_mode", "auto_augment", "cutout", "image_scales",
    "preprocessing", "image_size", "extra_data", "limit", "holdout", "skip_unreadable", "eval_every", "family",
    "dropout", "activation", "norm", "bn_momentum", "bn_eps", "sync_bn", "init", "bn_scale", "stochastic_depth",
    "seed", "device", "precision", "kernels", "layout", "threads", "compile", "deterministic",
]  # fmt: skip
"""The keys of every `recipe.json` so far."""


def refusal(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        Recipe.flat(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rules(bound: str) -> list[tuple[str, Any]]:
    """Keys of single numbers with that bound, and the bound."""
    return [
        (key, field.metadata[bound])
        for key, field in FIELDS.items()
        if field.metadata[bound] is not None and field.kind != tuple[int, ...]
    ]


def number(key: str, value: float) -> float:
    """The value in the field's type."""
    kind = FIELDS[key].kind
    return int(value) if int in (kind, *get_args(kind)) else float(value)


def accepted(key: str, value: Any) -> Any:
    """What a recipe makes of a value that only Nesterov momentum, or a start from random weights, would refuse."""
    others: dict[str, Any] = {} if key == "nesterov" else {"nesterov": key not in ("momentum", "dampening")}
    if key == "freeze":
        others["init_from"] = "weights"
    return Recipe.flat(**{key: value}, **others).values()[key]


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_has_help_and_one_group(key: str) -> None:
    assert FIELDS[key].metadata["help"]
    assert [key in keys for keys in GROUPS.values()].count(True) == 1
    assert list(GROUPS) == ["what", "schedule", "optimizer", "feed", "network", "machine"]


def test_recipe_json_has_the_keys_that_it_always_had_in_their_order() -> None:
    assert list(Recipe().to_json()) == [key for key in FIELDS if key not in ADDED] == ORDER
    started = Recipe.flat(init_from="runs/before", init_sha256="0" * 64)
    assert list(started.to_json()) == [key for key in FIELDS if key in INITIAL or key not in ADDED]


def test_recipe_json_has_what_was_added_since_then_where_it_is_used() -> None:
    used = Recipe.flat(
        init_from="before", init_sha256="0" * 64, image_column="a", label_column="b", class_order="text", white=255,
        random_resized_crop=0.1, color_jitter=0.1, pca_lighting=0.1, random_erasing=0.1, mixup=0.1, cutmix=0.1,
        repeated_augmentation=2, eval_size=32, eval_resize=36, feed="stream", workers=1, time_s=60.0, freeze="conv2",
        layer_lr_decay=0.5, balance="weights", muon_lr=0.05,
    )  # fmt: skip
    assert list(used.to_json()) == list(FIELDS)
    assert Recipe.from_json(used.to_json()) == used


def test_the_default_recipe_passes_its_own_checks_unchanged() -> None:
    for part in PARTS:
        for field in dataclasses.fields(part):
            value = getattr(part(), field.name)
            assert value == field.default
            assert type(value) is type(field.default)


def test_every_declared_field_is_one_flat_key() -> None:
    declared = [field for part in PARTS for field in dataclasses.fields(part) if "help" in field.metadata]
    assert len(declared) == len(FIELDS)
    assert {id(field.metadata) for field in declared} == {id(field.metadata) for field in FIELDS.values()}


def test_nested_and_flat_are_two_forms_of_one_recipe() -> None:
    nested = Recipe(
        network="WRN-28-10", name="quick", seed=3,
        schedule=ScheduleOptions(epochs=5, kind="one_cycle"), optimizer=OptimizerOptions(momentum=0.5),
        feed=FeedOptions(flip=False), network_options=NetworkOptions(dropout=0.3), machine=MachineOptions(threads=2),
    )  # fmt: skip
    flat = Recipe.flat(
        network="WRN-28-10", recipe="quick", seed=3, epochs=5, schedule="one_cycle", momentum=0.5, flip=False,
        dropout=0.3, threads=2,
    )  # fmt: skip
    assert nested == flat
    values = nested.values()
    assert (values["recipe"], values["schedule"]) == (nested.name, nested.schedule.kind) == ("quick", "one_cycle")
    assert Recipe.flat(**values) == nested


def test_replacing_changes_what_is_named_and_nothing_else() -> None:
    before = Recipe.flat(epochs=7, momentum=0.8)
    after = before.replace(lr=0.3, dropout=0.1, recipe="mine")
    changed = {key for key, value in after.values().items() if value != before.values()[key]}
    assert changed == {"lr", "dropout", "recipe"}
    assert before == Recipe.flat(epochs=7, momentum=0.8)
    assert before.replace() == before


def test_fields_that_must_agree_can_be_replaced_together() -> None:
    few = Recipe.flat(batch_size=4, accumulate=4)
    assert few.replace(batch_size=2, accumulate=2).schedule.batch_size == 2
    with pytest.raises(UsageError, match="accumulate=4"):
        few.replace(batch_size=2)


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_that_does_not_exist_is_refused_naming_field_value_and_choices(key: str) -> None:
    message = refusal(**{key: "nonsense"})
    assert message.startswith(f"{key}='nonsense': one of ")
    assert all(choice in message for choice in CHOICES[key])
    assert "nearest: " in message


def test_a_misspelled_choice_is_told_the_nearest() -> None:
    assert refusal(schedule="one-cycle").endswith("(nearest: one_cycle)")


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_that_exists_is_accepted(key: str) -> None:
    assert [accepted(key, choice) for choice in CHOICES[key]] == list(CHOICES[key])


@pytest.mark.parametrize(("key", "low"), rules("low"))
def test_a_value_below_the_range_is_refused_and_its_lower_end_accepted(key: str, low: float) -> None:
    message = refusal(**{key: low - 1})
    assert message.startswith(f"{key}={number(key, low - 1)}: must be at least {low:g}")
    assert accepted(key, low) == low


@pytest.mark.parametrize(("key", "high"), rules("high"))
def test_a_value_above_the_range_is_refused_and_its_upper_end_accepted(key: str, high: float) -> None:
    message = refusal(**{key: high + 1})
    assert message.startswith(f"{key}={number(key, high + 1)}: must be ")
    assert message.endswith(f"at most {high:g}")
    assert accepted(key, high) == high


@pytest.mark.parametrize(("key", "bound", "inside"), [(k, b, b + 1e-6) for k, b in rules("above")])
def test_a_lower_bound_that_is_no_value_itself_is_refused(key: str, bound: float, inside: float) -> None:
    assert f"must be above {bound:g}" in refusal(**{key: bound})
    assert accepted(key, inside) == inside


@pytest.mark.parametrize(("key", "bound", "inside"), [(k, b, b - 1e-6) for k, b in rules("below")])
def test_an_upper_bound_that_is_no_value_itself_is_refused(key: str, bound: float, inside: float) -> None:
    assert refusal(**{key: bound}).endswith(f"below {bound:g}")
    assert accepted(key, inside) == inside


def test_the_ranges_are_those_of_the_quantities() -> None:
    assert {key for key, _ in rules("above")} == {
        "bn_momentum", "bn_eps", "stochastic_depth", "layer_lr_decay", "time_s",
    }  # fmt: skip
    assert {key for key, _ in rules("below")} == {"dropout"}
    counts = {"epochs", "batch_size", "accumulate", "limit", "eval_every", "threads", "repeated_augmentation", "white"}
    assert {key for key, low in rules("low") if low == 1} == counts
    shares = {"lr_drop_factor", "warmup_fraction", "momentum", "dampening", "label_smoothing", "ema_decay",
              "bn_momentum", "stochastic_depth", "random_resized_crop", "color_jitter", "random_erasing",
              "layer_lr_decay"}  # fmt: skip
    assert {key for key, high in rules("high") if high == 1} == shares


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["lr", "weight_decay", "dropout", "stochastic_depth"])
def test_a_number_that_is_not_finite_is_refused(key: str, value: float) -> None:
    assert refusal(**{key: value}).startswith(f"{key}={value}: must be ")


@pytest.mark.parametrize(
    ("key", "value"),
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
def test_a_value_of_another_type_is_refused_naming_field_and_value(key: str, value: Any) -> None:
    assert refusal(**{key: value}).startswith(f"{key}={value!r}: must be ")


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if type(None) not in get_args(field.kind)])
def test_none_is_refused_where_a_value_is_needed(key: str) -> None:
    assert refusal(**{key: None}) == f"{key}=None: needs a value"


@pytest.mark.parametrize("epochs", [(0, 60), (60, 60), (120, 60), (-1,)])
def test_drop_epochs_count_from_one_and_rise(epochs: tuple[int, ...]) -> None:
    assert refusal(lr_drop_epochs=epochs).startswith(f"lr_drop_epochs={epochs}: epochs counted from 1")


def test_no_drop_at_all_is_legal() -> None:
    assert Recipe.flat(lr_drop_epochs=()).schedule.lr_drop_epochs == ()


@pytest.mark.parametrize("values", [{"momentum": 0.0}, {"dampening": 0.1}])
def test_nesterov_without_momentum_or_with_dampening_is_refused_and_the_fix_named(values: dict[str, Any]) -> None:
    message = refusal(**values)
    (key, value), *_ = values.items()
    assert message.startswith("nesterov=True needs")
    assert f"{key}={value}" in message
    assert message.endswith("use nesterov=False")
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
    assert refusal(image_scales=scales).startswith(f"image_scales={scales}: pairs (start, scale)")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().schedule.lr = 1.0  # type: ignore[misc]


def test_lists_and_whole_floats_from_json_become_the_fields_types() -> None:
    recipe = Recipe.flat(epochs=5.0, lr=1, lr_drop_epochs=[2, 4], image_scales=[[0, 1]])
    assert (recipe.schedule.epochs, type(recipe.schedule.epochs)) == (5, int)
    assert (recipe.schedule.lr, type(recipe.schedule.lr)) == (1.0, float)
    assert recipe.schedule.lr_drop_epochs == (2, 4)
    assert recipe.feed.image_scales == ((0.0, 1.0),)
    hash(recipe)


recipes = st.builds(
    Recipe.flat,
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
    assert set(json.loads(path.read_text())) == set(FIELDS) - set(ADDED)
    assert Recipe.from_file(path) == Recipe.flat(lr=0.3)


def test_a_handwritten_file_may_leave_fields_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"lr": 0.05}')
    assert Recipe.from_file(path) == Recipe.flat(lr=0.05)


@pytest.mark.parametrize("make", [Recipe.from_json, lambda values: Recipe().replace(**values)])
def test_an_unknown_field_is_named_with_the_nearest(make: Any) -> None:
    with pytest.raises(UsageError, match=r"'momentun' does not exist; nearest: momentum$"):
        make({"momentun": 0.9})


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
    assert str(caught.value).startswith(f"{path}: cannot be read as JSON (")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: cannot be read \(No such file"):
        Recipe.from_file(tmp_path / "nothing.json")


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("null", "NoneType"), ("3", "int")])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str, kind: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"JSON object of fields, this is {kind}$"):
        Recipe.from_file(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr_drop_epochs", range(1, 10**6)), ("image_scales", [(i / 10**6, 1.0) for i in range(10**6)])],
)
def test_a_list_of_a_million_entries_is_refused_in_a_short_line(key: str, value: Any) -> None:
    message = refusal(**{key: value})
    assert re.match(rf"{key}: a list of (999,999|1,000,000) entries; must have at most 100$", message)
    assert len(refusal(**{key: [*value, "x"]})) < 200


def test_the_lists_of_fields_name_fields() -> None:
    assert {field.name for field in dataclasses.fields(NetworkOptions)} <= set(FIELDS)
    assert set(ELSEWHERE) <= set(FIELDS)
    assert set(SETTLED) <= set(FIELDS)


def test_an_execution_stores_its_decisions_under_the_keys_of_what_was_asked() -> None:
    execution = Execution(device="cpu", precision="bf16", kernels="winograd", layout="contiguous", threads=3)
    settled = execution.settled()
    assert settled == {
        "precision": "bf16", "kernels": "winograd", "layout": "contiguous", "threads": 3, "compile": False,
    }  # fmt: skip
    assert tuple(settled) == SETTLED
    machine = Recipe().replace(**settled).machine
    assert (machine.device, machine.precision, machine.threads) == ("auto", "bf16", 3)


def test_a_batch_has_no_more_parts_than_images() -> None:
    assert Recipe.flat(batch_size=4, accumulate=4).schedule.accumulate == 4
    message = refusal(batch_size=4, accumulate=5)
    assert message.startswith("accumulate=5: a batch of 4 ")
    assert message.endswith("use accumulate=4 or less")
