"""Write the results tables of README.md and docs/results.md from the committed records in results/.

python tools/results.py           write them
python tools/results.py --check   exit 1 when they are not what the records say
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from wideresnet.base.format import human_count, human_seconds
from wideresnet.data import FACTS
from wideresnet.spec.execution import SETTLED
from wideresnet.spec.recipe import Recipe, overridden
from wideresnet.spec.recipes import base_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: made by tools/results.py -->", "<!-- end of results -->"


def read_records() -> list[dict[str, Any]]:
    """Every finished run under results/, in the order of their names."""
    records = []
    for path in sorted((ROOT / "results").glob("*/result.json")):
        folder = path.parent
        record = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("result", "recipe", "env")}
        record["metrics"] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        record["folder"] = folder.relative_to(ROOT).as_posix()
        records.append(record)
    return records


def summary(records: list[dict[str, Any]], prefix: str = "") -> str:
    """One row for all seeds of a recipe on the same hardware; links are relative to a page that is `prefix` away from
    the project's folder."""
    rows = [
        "| network | data | recipe | epochs | parameters | test error, last epoch | images/s | time | on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for what, seeds in groupby(records, key=subject):
        first, *_ = same = list(seeds)
        results = [record["result"] for record in same]
        network, dataset, recipe, changed, epochs, place = what
        cells = (
            network,
            dataset,
            f"[{recipe}]({prefix}{first['folder']}/recipe.json){changed}",
            epochs,
            human_count(results[0]["params"]),
            error([result["test_error_pct"] for result in results], [result["seed"] for result in results]),
            f"{median(result['images_per_s'] for result in results):,.0f}",
            human_seconds(median(result["seconds"] for result in results)),
            place,
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def subject(record: dict[str, Any]) -> tuple[Any, ...]:
    """What runs that differ by their seed alone have in common."""
    result = record["result"]
    same = (result["network"], result["dataset"], result["recipe"], changes(record), result["epochs"])
    return *same, hardware(record)


def error(percents: list[float], seeds: list[int]) -> str:
    """One run's test error with its seed; of several runs the mean, the standard deviation between them, and each."""
    if len(percents) == 1:
        return f"{percents[0]:.2f} % (seed {seeds[0]})"
    each = ", ".join(f"{percent:.2f}" for percent in percents)
    return f"{fmean(percents):.2f} ± {stdev(percents):.2f} % (mean of {len(percents)} seeds: {each})"


def changes(record: dict[str, Any]) -> str:
    """What was overridden in the named recipe, if anything."""
    result, recipe = record["result"], Recipe.from_json(record["recipe"])
    facts = FACTS[result["dataset"]]
    base = base_of(recipe.name, recipe.network, recipe.data, known_as=facts.name, num_train=facts.num_train)
    settled = (*SETTLED, "family", "seed")  # by data and machine; the seed is shown beside the error
    return "".join(f", {name} {new}" for name, (_, new) in overridden(recipe, base).items() if name not in settled)


def hardware(record: dict[str, Any]) -> str:
    """What a run ran on, with the version of PyTorch."""
    env, result = record["env"], record["result"]
    place = env["gpu"] or f"{env['num_threads']} threads of {env['cpu']} ({env['cpu_capability']})"
    return f"{place}, {result['precision']}, torch {env['torch'].split('+')[0]}"


def details(records: list[dict[str, Any]]) -> str:
    """The page docs/results.md: the table, and each run epoch by epoch."""
    parts = [
        "# Results",
        "Made from the records in `results/` by `tools/results.py`. The result of a run is its last epoch, never its "
        "best one. `images/s` is training alone; `time` includes evaluation; of several seeds both are medians.",
        summary(records, "../"),
    ]
    for record in records:
        result = record["result"]
        what = f"{result['recipe']}{changes(record)}, seed {result['seed']}"
        parts.append(f"## {result['network']}, {result['dataset']}, {what}")
        parts.append(f"`{record['env']['command']}`")
        rows = [
            "| epoch | lr at its end | images scaled by | train loss | train error % | test error % |",
            "|---|---|---|---|---|---|",
        ]
        for epoch in record["metrics"]:
            test = f"{epoch['test_error_pct']:.2f}" if "test_error_pct" in epoch else ""
            rows.append(
                f"| {epoch['epoch']} | {epoch['lr']:.4g} | {epoch['image_scale']:g} | {epoch['train_loss']:.3f} "
                f"| {epoch['train_error_pct']:.2f} | {test} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write or check both pages."""
    records = read_records()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    pages = {
        readme: f"{before}{BEGIN}\n\n{summary(records)}\n\n{END}{after}",
        ROOT / "docs" / "results.md": details(records),
    }
    stale = [path for path, content in pages.items() if not path.is_file() or path.read_text() != content]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(
                f"{path.relative_to(ROOT)} is not what the records in results/ say: run `make results`", file=sys.stderr
            )
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
