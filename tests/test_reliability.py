"""The tables of docs/reliability.md, from records as the sweep and the fuzzer write them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SWEEP = {
    "cases": [
        {"case": "plain", "values": {}, "points": 130, "tried": 66, "identical": 66, "differ": []},
        {"case": "a | b", "values": {}, "points": None, "tried": 4, "identical": 3, "differ": ["2: fsync"]},
    ]
}
FUZZ = {
    "reader": "npz", "seed": 0, "first": 0, "inputs": 2000, "seconds": 75.0, "outcomes": {"read": 39, "refused": 1960,
    "hangs": 1}, "slowest": {"index": 3, "seconds": 0.5123}, "highest": {"index": 7, "peak_mib": 210.4},
    "failures": [{"index": 3, "kind": "hangs", "detail": ""}],
}  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("reliability")


def test_the_sweep_has_a_row_per_configuration_and_their_sum(tool: Any) -> None:
    rows = tool.sweep_table(SWEEP).splitlines()[2:]
    assert rows == [
        "| plain | 130 | 66 | 66 of 66 |",
        "| a / b | not counted | 4 | 3 of 4 |",
        "| all |  | 70 | 69 of 70 |",
    ]


def test_fuzzing_has_a_row_per_reader_and_names_those_without_a_record(tool: Any) -> None:
    table = tool.fuzz_table([FUZZ])
    assert "| npz | 2,000 | 1,960 refused, 39 read, 1 hangs | 1 | 1 min | 210 MiB | 0.5 s |" in table
    assert ": images, parquet" in table.splitlines()[-1]
    assert "npz" not in table.splitlines()[-1]


def test_missing_records_are_said_to_be_missing(tool: Any, tmp_path: Path) -> None:
    sweep, records = tool.read_records(tmp_path)
    assert "missing" in tool.sweep_table(sweep)
    assert "Without a record" in tool.fuzz_table(records)
    assert ": images, npz" in tool.fuzz_table(records)


def test_records_are_read_from_any_number_of_files_in_the_order_of_the_readers(tool: Any, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "reliability"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(SWEEP))
    (folder / "a.json").write_text(json.dumps({"readers": [FUZZ]}))
    (folder / "b.json").write_text(json.dumps({"readers": [{**FUZZ, "reader": "images"}]}))
    sweep, records = tool.read_records(tmp_path)
    assert sweep == SWEEP
    assert [record["reader"] for record in records] == ["images", "npz"]
