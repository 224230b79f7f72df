from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wideresnet.base.format import (
    counted,
    human_bytes,
    human_count,
    human_number,
    human_seconds,
    nearest,
    printable,
    printable_values,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20, "1.0 MiB"),
        (16 * 2**30, "16.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_bytes_are_written_in_binary_units(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1 k"),
        (1000, "1 k"),
        (77_850, "77.8 k"),
        (999_999, "1 M"),
        (36_479_194, "36.5 M"),
        (5.24e9, "5.24 G"),
        (3.1e17, "310 P"),
        (2e18, "2 E"),
    ],
)
def test_counts_are_written_in_decimal_units(count: float, text: str) -> None:
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (3569, "59 min"),
        (3599, "1 h 00 min"),
        (3700, "1 h 02 min"),
    ],
)
def test_durations_are_written_in_seconds_minutes_or_hours(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_the_closest_choice_comes_first_and_all_are_listed() -> None:
    assert nearest("quik", ["paper", "quick"]) == "did you mean quick? (one of paper, quick)"


def test_a_word_unlike_all_choices_gets_only_the_list() -> None:
    assert nearest("zzz", ["paper", "quick"]) == "one of paper, quick"


def test_choices_may_be_an_iterator() -> None:
    assert nearest("quik", iter(["paper", "quick"])).startswith("did you mean quick?")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 3, "0"),
        (0.01234, 3, "0.0123"),
        (0.9996, 3, "1.00"),
        (9.996, 3, "10.0"),
        (7051.3, 3, "7,050"),
        (12345, 4, "12,340"),
        (-1.5, 3, "-1.50"),
        (1e9, 3, "1,000,000,000"),
        (float("inf"), 3, "inf"),
    ],
)
def test_numbers_have_significant_digits_and_no_exponent(value: float, digits: int, text: str) -> None:
    assert human_number(value, digits) == text


def test_one_thing_is_not_many() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 2000)] == ["0 files", "1 file", "2 files", "2,000 files"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\xe9 猫 🐱 a\u202fb\u3000c", None),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\r\nb\tc\x00", r"a\r\nb\tc\x00"),
        ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
        ("\u202egpj\u2066\u200b\ufeff\U000e0041", r"\u202egpj\u2066\u200b\ufeff\U000e0041"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("caf\udce9", r"caf\xe9"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_an_escape(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)


def test_a_log_keeps_its_line_breaks() -> None:
    assert printable("a\x1b\n\tb", keep="\n\t") == "a\\x1b\n\tb"


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_a_name_holds_its_printable_form_is_printable_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
    assert shown.encode().decode() == shown
    assert printable(shown) == shown


def test_all_text_of_a_document_is_made_printable_and_numbers_stay() -> None:
    document = {"a\x1b": ["b\x07", 1, None, {"c": "\u202e"}], "d": (True, 0.5)}
    assert printable_values(document) == {"a\\x1b": ["b\\x07", 1, None, {"c": "\\u202e"}], "d": [True, 0.5]}
