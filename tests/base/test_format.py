from __future__ import annotations

import pytest

from wideresnet.base.format import human_bytes, human_count, human_seconds, nearest


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
