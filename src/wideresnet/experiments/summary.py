"""Several seeds in one document: the error of each, and the statistics over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wideresnet.report.statistics import summarize
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import SeedsFolder

METRICS = ("test_error_pct", "test_loss", "test_ece_pct")
"""The fields of `result.json` that are summarized over seeds."""


def seeds_document(
    folder: SeedsFolder,
    recipe: Recipe,
    seeds: Iterable[int],
    seconds: float,
    at_once: int,
    rates: Mapping[int, float],
) -> dict[str, Any]:
    """Assemble what `seeds.json` holds.

    Args:
        folder: the folder of the seeds.
        recipe: of the first seed.
        seeds: those to count; a seed whose run has not finished is named and not counted.
        seconds: from the start of the first seed to the end of the last, over all sessions.
        at_once: how many seeds trained at the same time, at most.
        rates: images/s of all seeds together, by how many trained at once; empty if that was not measured.

    Returns:
        Values for JSON. n: number of finished seeds, which the statistics are over. test_error_pct_mean,
        test_error_pct_std (as in `report.statistics.Summary`; None for one seed), test_error_pct_median: of the test
        error after the last epoch, percent; None if no seed has finished. test_loss_... and test_ece_pct_...: likewise
        of the negative log likelihood, nats, and of the expected calibration error, percent; of the latter None if
        older records lack it. runs: each finished seed with its own numbers. unfinished: the other seeds.
    """
    results = {seed: folder.run(seed).read_result() for seed in seeds if folder.run(seed).result.is_file()}
    kept = ("seed", *METRICS, "seconds", "images_per_s", "peak_memory_mib")
    return {
        "n": len(results),
        **{key: value for name in METRICS for key, value in _statistics(name, list(results.values())).items()},
        "runs": [
            {"folder": folder.run(seed).path.name, **{name: result.get(name) for name in kept}}
            for seed, result in results.items()
        ],
        "unfinished": [seed for seed in seeds if seed not in results],
        "seconds": round(seconds, 3),
        "at_once": at_once,
        "images_per_s_at_once": {str(number): round(rate, 1) for number, rate in rates.items()},
        "recipe": recipe.to_json(),
    }


def _statistics(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Summarize a number of all results; None if there are no results, or one lacks the number."""
    values = [float(result[name]) for result in results if name in result]
    over = summarize(values) if values and len(values) == len(results) else None
    return {f"{name}_{kind}": getattr(over, kind, None) for kind in ("mean", "std", "median")}


def seeds_text(seeds: Sequence[int]) -> str:
    """Name seeds as a message does: 'seed 3', 'seeds 0, 2 and 4'."""
    *others, last = map(str, seeds)
    return f"seeds {', '.join(others)} and {last}" if others else f"seed {last}"
