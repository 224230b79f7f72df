"""Statistics of repeated measurements and of runs that differ only in their seed; the one implementation of both.

They are in `report` because imports only go down: `bench`, `experiments`, the commands and `tools/` need them as much
as the pages do, and `report` is the highest room that all of them may import. It is also the room that knows run
records.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wideresnet.spec.execution import ELSEWHERE, SETTLED
from wideresnet.spec.fields import show_value
from wideresnet.spec.recipe import Recipe

if TYPE_CHECKING:
    from wideresnet.report.runs import Run

T = TypeVar("T")

MAX_NAMED = 4
"""How many runs a sentence names."""


@dataclass(frozen=True)
class Summary:
    """A list of numbers in a few; all but `n` in the unit of the numbers.

    Attributes:
        n: how many numbers there are.
        mean: the arithmetic mean.
        std: standard deviation of the sample (divided by n - 1); None for a single number, which has no spread.
        median: the middle number, or the mean of the two middle ones.
        min: the lowest number.
        max: the highest number.
        quartile1: a quarter of the numbers are below it, interpolated between neighbors; min and max are included.
        quartile3: a quarter of the numbers are above it, likewise.
    """

    n: int
    mean: float
    std: float | None
    median: float
    min: float
    max: float
    quartile1: float
    quartile3: float


def summarize(values: Iterable[float]) -> Summary:
    """Summarize numbers.

    Args:
        values: at least one finite number.

    Raises:
        ValueError: there are no numbers.
    """
    numbers = list(values)
    if not numbers:
        raise ValueError("no values: a summary needs at least one")
    is_single = len(numbers) == 1
    quartile1, median, quartile3 = statistics.quantiles(numbers * 2 if is_single else numbers, n=4, method="inclusive")
    return Summary(
        n=len(numbers),
        mean=statistics.fmean(numbers),
        std=None if is_single else statistics.stdev(numbers),
        median=median,
        min=min(numbers),
        max=max(numbers),
        quartile1=quartile1,
        quartile3=quartile3,
    )


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, 0..1, that was counted in a sample.

    It stays within 0..1 and has a width also if all or none were counted. Brown, Cai & DasGupta 2001, "Interval
    estimation for a binomial proportion", recommend it over the textbook's one, above all for small samples.

    Args:
        count: how many of the sample have the property.
        total: size of the sample, at least 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    # as `scipy.stats` computes it, whose import takes over a second, at the end of every run
    z, share = statistics.NormalDist().inv_cdf(0.975), count / total
    middle = 2 * count + z**2
    half_width = z * math.sqrt(4 * count * (1 - share) + z**2)
    low, high = ((middle + sign * half_width) / (2 * (total + z**2)) for sign in (-1, 1))
    return low if count else 0.0, high if count < total else 1.0


def settings_of(recipe: Recipe, data_name: str) -> dict[str, Any]:
    """Collect what decides a run's result except its seed: runs with equal settings are repetitions of each other.

    Left out are also what changes a result by rounding alone (where the run took place) and how often it was evaluated.

    Args:
        recipe: the recipe that the run ended with.
        data_name: the name of the data set, which stands in for the path that it was read from.
    """
    settings = recipe.values()
    for name in ("seed", "eval_every", "feed", *ELSEWHERE):
        del settings[name]
    return settings | {"data": data_name}


def group_equal(items: Iterable[T], settings: Callable[[T], Mapping[str, Any]]) -> list[list[T]]:
    """Put items with equal settings together.

    Args:
        items: e.g. runs.
        settings: returns an item's settings, e.g. by `settings_of`; all have the same keys.

    Returns:
        The groups, and the items in each, in the order in which they first occur.
    """
    groups: dict[tuple[Any, ...], list[T]] = {}
    for item in items:
        groups.setdefault(tuple(settings(item).items()), []).append(item)
    return list(groups.values())


def varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names whose values are not equal in all settings, in the order of the first."""
    first = settings[0]
    return [name for name in first if any(other[name] != first[name] for other in settings)]


def settled_differently(runs: Sequence[Run]) -> list[str]:
    """Say which runs of equal settings were computed differently: in another precision, by other kernels, ...

    Args:
        runs: to be compared.

    Returns:
        A text for each group of such runs.
    """

    def asked(run: Run) -> dict[str, Any]:
        settings = settings_of(run.recipe, run.data_name)
        del settings["precision"]
        return settings

    texts = []
    for group in group_equal(runs, asked):
        settled = {run.curve.label: {name: run.recipe.values()[name] for name in SETTLED} for run in group}
        names = varying(list(settled.values()))
        ways = [
            f"{name} {show_value(value)} in {_listed([label for label, own in settled.items() if own[name] == value])}"
            for name in names
            for value in dict.fromkeys(own[name] for own in settled.values())
        ]
        if ways:
            effect = "another precision gives other results" if "precision" in names else "results differ by rounding"
            texts.append(f"Equal settings, but computed differently, so {effect}: {'; '.join(ways)}.")
    return texts


def _listed(labels: Sequence[str]) -> str:
    more = len(labels) - MAX_NAMED
    return ", ".join(labels[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
