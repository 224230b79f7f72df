"""Statistics over numbers and over runs, on values that can be checked by hand."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wideresnet.report.statistics import group_equal, settings_of, settled_differently, summarize, varying
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


def a_run(label: str, **changes: object) -> Any:
    recipe = Recipe.flat(**{"data": "cifar10", "precision": "fp32", "kernels": "winograd", "threads": 2, **changes})
    return SimpleNamespace(recipe=recipe, data_name="cifar10", curve=SimpleNamespace(label=label))


def test_runs_of_equal_settings_that_were_computed_differently_are_told_apart() -> None:
    alike = [a_run(f"seed{seed}", seed=seed) for seed in range(3)]
    assert settled_differently(alike) == []
    assert settled_differently([*alike, a_run("other", lr=0.3, kernels="pytorch", precision="bf16")]) == []
    assert settled_differently([*alike, a_run("d", threads=1)]) == [
        "Equal settings, but computed differently, so results differ by rounding: threads 2 in seed0, seed1, seed2; "
        "threads 1 in d."
    ]
    (text,) = settled_differently([a_run("a"), a_run("b", precision="bf16", kernels="pytorch")])
    assert text == (
        "Equal settings, but computed differently, so another precision gives other results: precision fp32 in a; "
        "precision bf16 in b; kernels winograd in a; kernels pytorch in b."
    )
    (text,) = settled_differently([a_run("z", threads=1), *(a_run(f"s{seed}", seed=seed) for seed in range(6))])
    assert text.endswith("threads 2 in s0, s1, s2, s3 and 2 more.")


def test_groups_and_their_members_keep_the_order_of_the_first() -> None:
    words = ["two", "three", "six", "seven", "a"]
    assert group_equal(words, lambda word: {"length": len(word)}) == [["two", "six"], ["three", "seven"], ["a"]]
