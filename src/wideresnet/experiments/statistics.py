"""Several seeds in one document: each one's error, their mean, spread and median."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import SeedsFolder


def summarise(
    folder: SeedsFolder,
    recipe: Recipe,
    seeds: Iterable[int],
    seconds: float,
    at_once: int,
    rates: Mapping[int, float],
) -> dict[str, Any]:
    """What `seeds.json` holds.

    Args:
        recipe: of the first seed.
        seconds: from the start of the first to the end of the last, all sessions together.
        at_once: the most that trained at once.
        rates: images/s of all together by how many at once, where that was measured.

    Returns:
        n: finished seeds, which all other numbers are over. test_error_pct_mean, test_error_pct_std (of the sample,
        n - 1; None for one seed), test_error_pct_median: of the error after the last epoch, percent; None for no seed.
        runs: each finished seed with its own. unfinished: seeds that are not.
    """
    results = {seed: folder.run(seed).read_result() for seed in seeds if folder.run(seed).result.is_file()}
    errors = [float(result["test_error_pct"]) for result in results.values()]
    kept = ("seed", "test_error_pct", "seconds", "images_per_s", "peak_memory_mib")
    return {
        "n": len(errors),
        "test_error_pct_mean": statistics.fmean(errors) if errors else None,
        "test_error_pct_std": statistics.stdev(errors) if len(errors) > 1 else None,
        "test_error_pct_median": statistics.median(errors) if errors else None,
        "runs": [
            {"folder": folder.run(seed).path.name, **{name: result[name] for name in kept}}
            for seed, result in results.items()
        ],
        "unfinished": [seed for seed in seeds if seed not in results],
        "seconds": round(seconds, 3),
        "at_once": at_once,
        "images_per_s_at_once": {str(number): round(rate, 1) for number, rate in rates.items()},
        "recipe": recipe.to_json(),
    }


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds as a message names them: 'seed 3', 'seeds 0, 2 and 4'."""
    *first, last = map(str, seeds)
    return f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"
