"""Write the tables of docs/reliability.md from the committed records in results/reliability/.

python tools/reliability.py           write them
python tools/reliability.py --check   exit 1 if they are not what the records say

`sweep.json` is what tools/crash_sweep.py writes: `cases`, each with `case` (its name), `points` (its file operations,
None if they are not counted), `tried` (of these, how many a run was killed at) and `identical`. Every other file is
what tools/fuzz.py writes: `readers`, each with `reader`, `inputs`, `seconds`, `outcomes` (outcome -> number of inputs),
`highest` and `slowest` (the inputs that took the most memory and time) and `failures`.
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
READERS = (
    "images", "npz", "parquet", "folders", "weights", "config", "recipe", "metrics", "result", "predictions", "names",
    "report",
)  # fmt: skip
"""The readers of tools/fuzz.py; those without a record are named."""


def read_records(root: Path = ROOT) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Read the crash sweep, None if it is missing, and the fuzzing of each reader, in the order of `READERS`."""
    records = {path.name: json.loads(path.read_text()) for path in (root / "results" / "reliability").glob("*.json")}
    sweep = records.pop("sweep.json", None)
    order = {name: place for place, name in enumerate(READERS)}
    fuzzed = [reader for record in records.values() for reader in record["readers"]]
    return sweep, sorted(fuzzed, key=lambda reader: order.get(reader["reader"], len(order)))


def sweep_table(sweep: dict[str, Any] | None) -> str:
    """Write a row per case of the crash sweep, and their sum."""
    if sweep is None:
        return "The record is missing: `python tools/crash_sweep.py --record results/reliability/sweep.json` writes it."
    rows = ["| run | file operations | killed at | the same files after resuming |", "|---|---|---|---|"]
    for case in sweep["cases"]:
        points = "not counted" if case["points"] is None else f"{case['points']:,}"
        rows.append(_row(case["case"], points, f"{case['tried']:,}", f"{case['identical']:,} of {case['tried']:,}"))
    tried, identical = (sum(case[key] for case in sweep["cases"]) for key in ("tried", "identical"))
    rows.append(_row("all", "", f"{tried:,}", f"{identical:,} of {tried:,}"))
    return "\n".join(rows)


def fuzz_table(records: list[dict[str, Any]]) -> str:
    """Write a row per reader that was fuzzed; readers without a record are named."""
    rows = [
        "| reader | inputs | outcomes | failures | time | most memory | slowest input |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        outcomes = sorted(record["outcomes"].items(), key=lambda item: -item[1])
        rows.append(
            _row(
                record["reader"],
                f"{record['inputs']:,}",
                ", ".join(f"{count:,} {name}" for name, count in outcomes),
                len(record["failures"]),
                human_seconds(record["seconds"]),
                f"{record['highest']['peak_mib']:,.0f} MiB",
                f"{record['slowest']['seconds']:.1f} s",
            )
        )
    parts = ["\n".join(rows)] if records else []
    measured = {record["reader"] for record in records}
    if missing := [name for name in READERS if name not in measured]:
        parts.append(f"Without a record, which `python tools/fuzz.py --record FILE` writes: {', '.join(missing)}.")
    return "\n\n".join(parts)


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
