"""Write the tables of docs/reliability.md from the committed records in results/reliability/.

python tools/reliability.py           write them
python tools/reliability.py --check   exit 1 if they are not what the records say

`sweep.json` is the crash sweep: `configurations`, each with `name`, `points` (file operations at which the process was
ended) and `identical` (resumes that ended with the same bits). Every other file is the fuzzing of one reader by
tools/fuzz.py: `reader`, `inputs`, `seconds`, `outcomes` (outcome -> number of inputs), `max_memory_mib`, `slowest_s`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pages import ROOT, between, write_or_check
from wideresnet.base.format import human_seconds

SWEEP_BEGIN, SWEEP_END = "<!-- sweep: made by tools/reliability.py -->", "<!-- end of sweep -->"
FUZZ_BEGIN, FUZZ_END = "<!-- fuzz: made by tools/reliability.py -->", "<!-- end of fuzz -->"
READERS = ("images", "npz", "parquet", "folders", "weights", "checkpoint", "predictions", "recipe", "metrics", "result")
"""What reads files of unknown origin, or files that a kill or a disk may have damaged."""


def read_records(root: Path = ROOT) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Read the crash sweep, None if it is missing, and the fuzzing of each reader, in the order of their names."""
    records = {path.name: json.loads(path.read_text()) for path in (root / "results" / "reliability").glob("*.json")}
    sweep = records.pop("sweep.json", None)
    return sweep, sorted(records.values(), key=lambda record: record["reader"])


def sweep_table(sweep: dict[str, Any] | None) -> str:
    """Write a row per configuration of the crash sweep, and their sum."""
    if sweep is None:
        return "The record of the sweep is missing."
    rows = ["| configuration | ended at | resumed with the same bits |", "|---|---|---|"]
    runs = sweep["configurations"]
    for run in [*runs, {"name": "all", **{key: sum(run[key] for run in runs) for key in ("points", "identical")}}]:
        rows.append(_row(run["name"], f"{run['points']:,} points", f"{run['identical']:,} of {run['points']:,}"))
    return "\n".join(rows)


def fuzz_table(records: list[dict[str, Any]]) -> str:
    """Write a row per reader that was fuzzed; readers without a record are named."""
    rows = [
        "| reader | damaged inputs | outcomes | time | highest memory | slowest input |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        outcomes = sorted(record["outcomes"].items(), key=lambda item: -item[1])
        rows.append(
            _row(
                record["reader"],
                f"{record['inputs']:,}",
                ", ".join(f"{name} {count:,}" for name, count in outcomes),
                human_seconds(record["seconds"]),
                f"{record['max_memory_mib']:,.0f} MiB",
                f"{record['slowest_s']:.2g} s",
            )
        )
    measured = {record["reader"] for record in records}
    if missing := [name for name in READERS if name not in measured]:
        rows.append(f"\nWithout a record: {', '.join(missing)}.")
    return "\n".join(rows if records else rows[2:]).strip()


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def main() -> int:
    """Write or check the page."""
    sweep, records = read_records()
    page = ROOT / "docs" / "reliability.md"
    text = between(page.read_text(), SWEEP_BEGIN, SWEEP_END, sweep_table(sweep))
    return write_or_check({page: between(text, FUZZ_BEGIN, FUZZ_END, fuzz_table(records))}, "results/reliability/")


if __name__ == "__main__":
    sys.exit(main())
