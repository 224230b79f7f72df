"""Statistics over numbers and over runs, on values that can be checked by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wideresnet.report.statistics import group_equal, settings_of, summarize, varying
from wideresnet.spec.recipe import Recipe


def test_a_summary_holds_mean_sample_deviation_median_range_and_quartiles() -> None:
    over = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (over.n, over.mean, over.median, over.min, over.max) == (5, 3, 3, 1, 5)
    assert (over.quartile1, over.quartile3) == (2, 4)
    assert over.std == pytest.approx(2.5**0.5)  # ((2^2 + 1^2 + 0 + 1^2 + 2^2) / 4)^(1/2)


def test_a_single_number_has_no_deviation() -> None:
    over = summarize([7.0])
    assert over.std is None
    assert {over.mean, over.median, over.min, over.max, over.quartile1, over.quartile3} == {7.0}


def test_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_the_numbers_of_a_summary_are_in_order(values: list[float]) -> None:
    over = summarize(iter(values))
    assert over.min <= over.quartile1 <= over.median <= over.quartile3 <= over.max
    assert over.median == statistics.median(values)


def test_runs_that_differ_only_in_seed_and_place_have_equal_settings() -> None:
    def settings(data_name: str = "cifar10", **changes: object) -> dict[str, object]:
        return settings_of(Recipe.flat(**{"data": "cifar10", **changes}), data_name)

    alike = settings(seed=7, device="cpu", threads=2, eval_every=5, data="copies/cifar10")
    assert alike == settings()
    assert settings(lr=0.2) != settings()
    assert settings("digits") != settings()
    assert varying([settings(lr=0.2), settings(epochs=3), settings()]) == ["epochs", "lr"]
    assert varying([settings()]) == []


def test_groups_and_their_members_keep_the_order_of_the_first() -> None:
    words = ["two", "three", "six", "seven", "a"]
    assert group_equal(words, lambda word: {"length": len(word)}) == [["two", "six"], ["three", "seven"], ["a"]]
