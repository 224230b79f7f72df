"""Flags are the recipe's fields: help with default and source, and values that read as they are shown."""

from __future__ import annotations

import argparse
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.commands.flags import FLAGS, add_recipe_flags, given_flags
from wideresnet.spec.fields import show_value
from wideresnet.spec.recipe import FIELDS, GROUPS
from wideresnet.spec.recipes import paper, quick

PAPER = paper("WRN-28-10", "cifar10").values()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    return parser


PARSER = make_parser()


def flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")


def parse(*words: str) -> dict[str, Any]:
    return given_flags(PARSER.parse_args(words))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        PARSER.parse_args(words)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_every_field_but_what_is_trained_is_a_flag() -> None:
    assert set(FLAGS) == set(FIELDS) - {"network", "data", "recipe", "init_from", "init_sha256"}
    assert len(FLAGS) == len(set(FLAGS))


@pytest.mark.parametrize("key", FLAGS)
def test_every_flag_has_help_that_states_default_and_source(key: str) -> None:
    action, field = PARSER._option_string_actions[flag(key)], FIELDS[key].metadata
    assert action.help is not None
    shown = action.help.replace("%%", "%")
    assert shown.startswith(field["help"])
    assert f"[{show_value(PAPER[key])}]" in shown
    if field["source"]:
        assert f"source: {field['source']}" in shown
    assert list(action.choices or ()) == list(field["choices"])


def test_the_help_can_be_printed() -> None:
    text = PARSER.format_help()
    assert "Nesterov" in text
    assert "paper, section 3" in text


def test_network_data_and_recipe_are_not_flags_of_this_list() -> None:
    for name in GROUPS["what"]:
        assert flag(name) not in PARSER._option_string_actions


def test_only_flags_that_were_given_come_back() -> None:
    assert parse() == {}
    assert parse("--epochs", "3", "--no-flip", "--schedule", "one_cycle") == {
        "epochs": 3,
        "flip": False,
        "schedule": "one_cycle",
    }


def test_other_arguments_of_the_command_are_not_taken_for_fields() -> None:
    parser = make_parser()
    parser.add_argument("network")
    parser.add_argument("--out")
    assert given_flags(parser.parse_args(["WRN-16-2", "--out", "here", "--lr", "0.5"])) == {"lr": 0.5}


def test_a_flag_given_at_its_default_still_counts_as_given() -> None:
    assert parse("--lr", "0.1", "--flip") == {"lr": 0.1, "flip": True}


def test_lists_are_read() -> None:
    assert parse("--lr-drop-epochs", "30,60") == {"lr_drop_epochs": (30, 60)}
    assert parse("--lr-drop-epochs", "none") == {"lr_drop_epochs": ()}
    assert parse("--image-scales", "0:0.5,0.25:1") == {"image_scales": ((0.0, 0.5), (0.25, 1.0))}


def test_a_value_can_be_unset() -> None:
    assert parse("--limit", "none", "--stochastic-depth", "none") == {"limit": None, "stochastic_depth": None}


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("lr_drop_epochs", "60;120", "N,N"),
        ("lr_drop_epochs", "60,", "N,N"),
        ("image_scales", "0.5", "START:SCALE,..."),
        ("image_scales", "0:1:2", "START:SCALE,..."),
        ("epochs", "many", "N"),
        ("epochs", "1.5", "N"),
        ("limit", "half", "N"),
        ("lr", "fast", "X"),
        ("stochastic_depth", "half", "X"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named_with_its_value_and_form(
    capsys: pytest.CaptureFixture[str], name: str, text: str, form: str
) -> None:
    message = refusal(capsys, flag(name), text)
    assert flag(name) in message
    assert f"{text!r}: must be like {form}" in message


def test_a_choice_that_does_not_exist_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--schedule", "cosin")
    assert "--schedule" in message
    assert "one_cycle" in message


@pytest.mark.parametrize("key", FLAGS)
def test_every_default_can_be_given_back_as_it_is_shown(key: str) -> None:
    kind, shown = FIELDS[key].kind, show_value(PAPER[key])
    if bool in (kind, *get_args(kind)):
        assert shown == {None: "none", True: "on", False: "off"}[PAPER[key]]
    elif not (PAPER[key] is None and FIELDS[key].metadata["choices"]):  # "none" is no choice
        assert parse(flag(key), shown) == {key: PAPER[key]}


def test_the_scales_of_quick_can_be_given_back_as_they_are_shown() -> None:
    scales = quick("WRN-16-2", "cifar10").feed.image_scales
    assert parse("--image-scales", show_value(scales)) == {"image_scales": scales}


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just("lr"), st.floats(0, 1e9)),
        st.tuples(st.just("epochs"), st.integers(1, 10**12)),
        st.tuples(st.just("limit"), st.none() | st.integers(1, 10**12)),
        st.tuples(st.just("stochastic_depth"), st.none() | st.floats(0, 1)),
        st.tuples(st.just("lr_drop_epochs"), st.lists(st.integers(1, 10**6), max_size=4).map(tuple)),
        st.tuples(
            st.just("image_scales"),
            st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2)), min_size=1, max_size=3).map(tuple),
        ),
    )
)
def test_showing_a_value_and_reading_it_are_inverse(case: tuple[str, Any]) -> None:
    name, value = case
    assert parse(flag(name), show_value(value)) == {name: value}


def test_common_values_are_shown_as_people_write_them() -> None:
    assert show_value(5e-4) == "0.0005"
    assert show_value(1.0) == "1"
    assert show_value(((0.0, 0.625), (0.5, 1.0))) == "0:0.625,0.5:1"
    assert show_value((60, 120)) == "60,120"
