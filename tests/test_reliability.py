"""The tables of docs/reliability.md, from records as the sweep and the fuzzer write them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SWEEP = {
    "configurations": [{"name": "plain", "points": 66, "identical": 66}, {"name": "a | b", "points": 4, "identical": 3}]
}
FUZZ = {
    "reader": "npz", "inputs": 2000, "seconds": 75.0, "outcomes": {"same": 40, "refused": 1960},
    "max_memory_mib": 210.4, "slowest_s": 0.5123,
}  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("reliability")


def test_the_sweep_has_a_row_per_configuration_and_their_sum(tool: Any) -> None:
    rows = tool.sweep_table(SWEEP).splitlines()[2:]
    assert rows == [
        "| plain | 66 points | 66 of 66 |",
        "| a / b | 4 points | 3 of 4 |",
        "| all | 70 points | 69 of 70 |",
    ]


def test_fuzzing_has_a_row_per_reader_and_names_those_without_a_record(tool: Any) -> None:
    table = tool.fuzz_table([FUZZ])
    assert "| npz | 2,000 | refused 1,960, same 40 | 1 min | 210 MiB | 0.51 s |" in table
    assert "Without a record: images, parquet" in table
    assert "npz" not in table.splitlines()[-1]


def test_missing_records_are_said_to_be_missing(tool: Any, tmp_path: Path) -> None:
    sweep, records = tool.read_records(tmp_path)
    assert "missing" in tool.sweep_table(sweep)
    assert tool.fuzz_table(records).startswith("Without a record: images, npz")
