"""What several seeds say about a published error: statistics, an interval, a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wideresnet.report.statistics import Summary, summarize

MEDIAN_VARIANCE = math.pi / 2
"""Variance of a median of many normal numbers, as a multiple of their mean's. Source: asymptotic theory; 1.43 for 5."""

SAME_WITHIN = 0.1
"""An interval that lies within this share of the published error calls it reproduced. This package's choice: 0.4 points
for 4 %."""

POWER = 0.8
"""The smallest detectable difference is one that would be found with this probability. The usual choice."""


@dataclass(frozen=True)
class Verdict:
    """Errors of several seeds against a published one; percent, and points of percent.

    Attributes:
        summary: of the seeds that finished; None if none has.
        num_failed: seeds that ended without a result. They count against the reproduction, and are not replaced.
        published_pct: the paper's figure; None if it has none.
        difference_pct: the mean of the seeds minus the published figure; None if either is missing.
        half_width_pct: of the 95 % interval of that difference; None for fewer than two seeds.
        detectable_pct: the smallest difference that this number of seeds would probably have shown, likewise.
        text: "reproduced", "differs by -0.31 ± 0.20", "n too small to tell", ...
    """

    summary: Summary | None
    num_failed: int
    published_pct: float | None
    difference_pct: float | None
    half_width_pct: float | None
    detectable_pct: float | None
    text: str


def judge(
    errors_pct: Sequence[float], published_pct: float | None, published_runs: int | None = None, num_failed: int = 0
) -> Verdict:
    """Compare the errors of several seeds with a published error.

    The published figure is uncertain, too: it counts as the median of `published_runs` with the spread that the seeds
    have here, and as a single run if that number is unknown.

    Args:
        errors_pct: last-epoch test errors, percent, one per finished seed.
        published_pct: the paper's figure, percent; None if it has none.
        published_runs: runs behind it; None if the paper does not say.
        num_failed: seeds that ended without a result.
    """
    if not errors_pct:
        return Verdict(None, num_failed, published_pct, None, None, None, "failed" if num_failed else "not run")
    over = summarize(errors_pct)
    if published_pct is None:
        return Verdict(over, num_failed, None, None, None, None, "not in the paper")
    difference = over.mean - published_pct
    if over.std is None:
        return Verdict(over, num_failed, published_pct, difference, None, None, "n too small to tell")
    from scipy.stats import t  # with scikit-learn

    runs = published_runs or 1
    share = 1 / over.n + (MEDIAN_VARIANCE if runs > 1 else 1.0) / runs
    error = over.std * math.sqrt(share)
    half_width = float(t.ppf(0.975, over.n - 1)) * error
    detectable = half_width + float(t.ppf(POWER, over.n - 1)) * error
    if abs(difference) > half_width:
        text = f"differs by {difference:+.2f} ± {half_width:.2f}"
    elif abs(difference) + half_width <= SAME_WITHIN * published_pct:
        text = "reproduced"
    else:
        text = "n too small to tell"
    if num_failed:
        text += f", {num_failed} of {over.n + num_failed} failed"
    return Verdict(over, num_failed, published_pct, difference, half_width, detectable, text)
