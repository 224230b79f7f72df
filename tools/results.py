"""Write the results tables of README.md and docs/results.md from the committed records in results/.

python tools/results.py           write them
python tools/results.py --check   exit 1 if they are not what the records say
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import ROOT, between, write_or_check
from wideresnet.base.format import human_count, human_seconds
from wideresnet.data import FACTS
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.report.statistics import group_equal, settings_of, summarize
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import base_of, changes_in_record
from wideresnet.spec.record import RunFolder, read_json

BEGIN, END = "<!-- results: made by tools/results.py -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: relative to the project's folder.
        recipe, result, env: what `recipe.json`, `result.json` and `env.json` hold.
        metrics: what `metrics.jsonl` holds, by epoch.
    """

    folder: str
    recipe: Recipe
    result: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]


def read_records(root: Path = ROOT) -> list[Record]:
    """Read every finished run in results/, in the order of their names."""
    folders = [RunFolder(path.parent) for path in sorted((root / "results").glob("*/result.json"))]
    return [
        Record(
            folder=folder.path.relative_to(root).as_posix(),
            recipe=folder.read_recipe(),
            result=folder.read_result(),
            env=read_json(folder.env),
            metrics=folder.read_metrics(),
        )
        for folder in folders
    ]


def summary(records: list[Record], prefix: str = "") -> str:
    """Write one row for all seeds of a recipe on the same hardware.

    Args:
        records: the runs.
        prefix: the way from the page to the project's folder, for links.
    """
    rows = [
        "| network | data | recipe | epochs | parameters | test error, last epoch | images/s | time | on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in group_equal(records, repeated):
        first, results = group[0], [record.result for record in group]
        cells = (
            first.result["network"],
            first.result["dataset"],
            f"[{first.result['recipe']}]({prefix}{first.folder}/recipe.json){changes(first)}",
            first.result["epochs"],
            human_count(first.result["params"]),
            error([result["test_error_pct"] for result in results], [result["seed"] for result in results]),
            f"{summarize(result['images_per_s'] for result in results).median:,.0f}",
            human_seconds(summarize(result["seconds"] for result in results).median),
            hardware(first),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def repeated(record: Record) -> dict[str, Any]:
    """Collect what runs that share a row have in common: everything but the seed, and the hardware for the times."""
    return {**settings_of(record.recipe, record.result["dataset"]), "hardware": hardware(record)}


def error(percents: list[float], seeds: list[int]) -> str:
    """Write the test error of one run with its seed, or the mean of several with their standard deviation and each."""
    over = summarize(percents)
    if over.std is None:
        return f"{over.mean:.2f} % (seed {seeds[0]})"
    each = ", ".join(f"{percent:.2f}" for percent in percents)
    return f"{over.mean:.2f} ± {over.std:.2f} % (mean of {over.n} seeds: {each})"


def changes(record: Record) -> str:
    """Name what was overridden in the recipe, if anything."""
    recipe, facts = record.recipe, FACTS[record.result["dataset"]]
    base = base_of(recipe.name, recipe.network, recipe.data, known_as=facts.name, num_train=facts.num_train)
    changed = changes_in_record(recipe, base)
    return "".join(f", {key} {new}" for key, (_, new) in changed.items() if key != "seed")  # shown with the error


def hardware(record: Record) -> str:
    """Name what the run ran on, in which precision and with which PyTorch."""
    return f"{hardware_text(record.env)}, {record.result['precision']}, {torch_text(record.env)}"


def details(records: list[Record]) -> str:
    """Write the page docs/results.md: the table, and each run epoch by epoch."""
    parts = [
        "# Results",
        "Made from the records in `results/` by `tools/results.py`. The result of a run is its last epoch, never its "
        "best one. `images/s` is training alone; `time` includes evaluation; of several seeds both are medians.",
        summary(records, "../"),
    ]
    for record in records:
        result = record.result
        what = f"{result['recipe']}{changes(record)}, seed {result['seed']}"
        parts.append(f"## {result['network']}, {result['dataset']}, {what}")
        parts.append(f"`{record.env['command']}`")
        rows = [
            "| epoch | lr at its end | images scaled by | train loss | train error % | test error % |",
            "|---|---|---|---|---|---|",
        ]
        for epoch in record.metrics:
            test = f"{epoch['test_error_pct']:.2f}" if "test_error_pct" in epoch else ""
            rows.append(
                f"| {epoch['epoch']} | {epoch['lr']:.4g} | {epoch['image_scale']:g} | {epoch['train_loss']:.3f} "
                f"| {epoch['train_error_pct']:.2f} | {test} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write or check both pages."""
    records, readme = read_records(), ROOT / "README.md"
    pages = {
        readme: between(readme.read_text(), BEGIN, END, summary(records)),
        ROOT / "docs" / "results.md": details(records),
    }
    return write_or_check(pages, "results/")


if __name__ == "__main__":
    sys.exit(main())
