from __future__ import annotations

import math

import numpy as np
import pytest

from wideresnet.experiments.verdict import judge


def test_nothing_is_said_without_seeds() -> None:
    assert judge([], 4.0).text == "not run"
    assert judge([], 4.0, num_failed=2).text == "failed"


def test_one_seed_is_too_few_to_tell() -> None:
    verdict = judge([4.1], 4.0, 5)
    assert verdict.text == "n too small to tell"
    assert verdict.half_width_pct is None
    assert verdict.difference_pct == pytest.approx(0.1)


def test_close_seeds_around_the_published_error_reproduce_it() -> None:
    verdict = judge([4.0, 4.05, 3.98, 4.02, 3.97], 4.0, 5)
    assert verdict.text == "reproduced"
    assert verdict.summary is not None
    assert verdict.summary.median == 4.0


def test_a_clear_difference_is_given_with_its_interval() -> None:
    verdict = judge([4.6, 4.65, 4.58, 4.62, 4.57], 4.0, 5)
    assert verdict.text.startswith("differs by +0.60 ± 0.")


def test_scattered_seeds_do_not_reproduce_by_being_vague() -> None:
    assert judge([3.5, 4.5, 4.1], 4.0, 5).text == "n too small to tell"


def test_failed_seeds_are_counted() -> None:
    assert judge([4.0, 4.05, 3.98, 4.02], 4.0, 5, num_failed=1).text == "reproduced, 1 of 5 failed"


def test_the_interval_is_students_for_the_mean_against_a_median_of_published_runs() -> None:
    errors = [4.0, 4.2, 4.4, 4.1]
    verdict = judge(errors, 4.0, 5)
    std = float(np.std(errors, ddof=1))
    expected = 3.182446 * std * math.sqrt(1 / 4 + (math.pi / 2) / 5)  # t of 3 degrees of freedom, 97.5 %
    assert verdict.half_width_pct == pytest.approx(expected, rel=1e-5)
    assert verdict.detectable_pct is not None
    assert verdict.detectable_pct > expected


def test_an_unknown_number_of_published_runs_counts_as_one() -> None:
    assert judge([4.0, 4.2], 4.0, None).half_width_pct == judge([4.0, 4.2], 4.0, 1).half_width_pct


def test_the_interval_covers_the_truth_in_about_95_percent_of_experiments() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        published = float(np.median(rng.normal(5.0, 0.2, 5)))
        verdict = judge(rng.normal(5.0, 0.2, 5).tolist(), published, 5)
        assert verdict.half_width_pct is not None
        assert verdict.difference_pct is not None
        covered += abs(verdict.difference_pct) <= verdict.half_width_pct
    assert 0.92 < covered / 400 < 0.99
