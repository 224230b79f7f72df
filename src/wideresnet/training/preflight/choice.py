"""From a trial to a decision: which candidate, and whether the trial can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from wideresnet.spec.execution import Execution
from wideresnet.training.preflight.trial import MIN_CPU_SHARE, ROUNDS, Trial

CLEARLY_FASTER = 1.1
"""The first candidate is kept unless another is this many times as fast in every round."""

WORTH_ROUNDING = 1.3
"""bf16 changes results, not only last bits, so it must be this many times as fast as the fastest fp32, in every round.
Own choice."""

MAX_SCATTER = 1.25
"""How many times as fast a candidate's best round may be as its worst. Own choice."""


def choose(candidates: Sequence[Execution], trial: Trial) -> int:
    """Return the candidate to take: the first, unless others are clearly faster in every round.

    Args:
        candidates: all of the first one's precision, or in bf16 too if the first is in fp32.
        trial: what was measured.
    """
    rounds = {i: rates for i, rates in enumerate(trial.rates) if len(rates) == ROUNDS}
    if 0 not in rounds:
        return 0
    alike = [i for i in rounds if candidates[i].precision == candidates[0].precision]
    best_alike = [max(rates) for rates in zip(*(rounds[i] for i in alike), strict=True)]
    winners = [i for i in alike if _wins(rounds[i], rounds[0], CLEARLY_FASTER)]
    lower = [i for i in rounds if i not in alike and _wins(rounds[i], best_alike, WORTH_ROUNDING)]
    return max(lower or winners, key=lambda i: sum(rounds[i]), default=0)


def why_not_trusted(trial: Trial) -> str:
    """Say in a few words why a trial proves nothing; "" if it can be trusted."""
    if trial.cpu_share < MIN_CPU_SHARE:
        return f"other programs were computing: this one had {100 * trial.cpu_share:.0f} % of the time"
    scatter = max(max(rates) / min(rates) for rates in trial.rates)
    return f"its rounds scatter by a factor of {scatter:.2f}" if scatter > MAX_SCATTER else ""


def _wins(rates: Sequence[float], others: Sequence[float], factor: float) -> bool:
    """Tell whether the rate is at least `factor` times the other one's in every round."""
    return all(rate >= factor * other for rate, other in zip(rates, others, strict=True))
