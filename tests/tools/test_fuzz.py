"""The fuzzer finds what it is for, and a short run over every reader finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "tools/fuzz.py"

BAD_READERS = """
import os, sys
from wideresnet.base.errors import DataError

class Reader:
    declared_mib = 0

    def __init__(self, name, read):
        self.name, self.read = name, read

    def write(self, folder, random):
        folder.mkdir(parents=True)
        (folder / "input").write_bytes(random.randbytes(8))

    def remove(self, folder):
        (folder / "input").unlink()
        folder.rmdir()

def refuse(folder):
    raise DataError("one line")

def chatter(folder):
    raise DataError("two\\nlines")

def fail(folder):
    raise KeyError("x")

READERS = {name: Reader(name, read) for name, read in {
    "good": lambda folder: None, "refuse": refuse, "chatter": chatter, "fail": fail,
    "print": lambda folder: os.write(2, b"noise"), "die": lambda folder: os._exit(3),
    "eat": lambda folder: len(b"x" * (1100 * 2**20)), "leave": lambda folder: sys.exit(),
}.items()}
"""


def fuzzed(folder: Path, *arguments: str, fails: bool = False) -> dict[str, dict[str, Any]]:
    """Run the fuzzer. Return its record by reader."""
    record = folder / "record.json"
    command = [sys.executable, FUZZ, *arguments, "--record", record, "--keep", folder / "kept", "--seconds", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == int(fails), done.stdout + done.stderr
    document = json.loads(record.read_text())
    assert {"python", "Pillow", "pyarrow"} <= document["versions"].keys()
    return {reader["reader"]: reader for reader in document["readers"]}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_every_kind_of_failure_is_found_and_kept(tmp_path: Path) -> None:
    table = tmp_path / "bad.py"
    table.write_text(BAD_READERS)
    records = fuzzed(tmp_path, "--table", str(table), "--count", "2", fails=True)
    kinds = {name: list(record["outcomes"].items()) for name, record in records.items()}
    assert kinds == {
        "good": [("result", 2)],
        "refuse": [("DataError", 2)],
        "chatter": [("several lines", 2)],
        "fail": [("KeyError", 2)],
        "print": [("noise", 2)],
        "die": [("crash", 2)],
        "eat": [("memory", 2)],
        "leave": [("SystemExit", 2)],
    }
    kept = tmp_path / "kept/fail-0-1"
    assert (kept / "command.txt").read_text() == "python tools/fuzz.py fail --seed 0 --first 1 --count 1\n"
    assert "KeyError: 'x'" in (kept / "outcome.txt").read_text()
    assert len((kept / "input/input").read_bytes()) == 8
    again = fuzzed(tmp_path, "fail", "--table", str(table), "--first", "1", "--count", "1", fails=True)
    assert again["fail"]["failures"][0]["index"] == 1


FILES = [
    "names",
    "images",
    "npz",
    "parquet",
    "folders",
    "weights",
    "config",
    "recipe",
    "metrics",
    "result",
    "predictions",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("readers", "count"),
    [(FILES, 60), (["report"], 5)],  # a report draws a page
)
def test_damaged_files_of_every_kind_give_a_result_or_one_line(tmp_path: Path, readers: list[str], count: int) -> None:
    records = fuzzed(tmp_path, *readers, "--count", str(count), "--seed", "1")
    assert list(records) == readers
    for name, record in records.items():
        assert record["inputs"] == count, name
        assert set(record["outcomes"]) <= {"result", "DataError", "UsageError", "WRNError"}, name
        assert "result" in record["outcomes"], f"{name}: no input was read, so that nothing was tried"


@pytest.mark.slow
def test_a_parquet_file_with_damaged_metadata_of_a_column_does_not_end_the_process(tmp_path: Path) -> None:
    # pyarrow 26 aborts when it is asked for such a column's sizes; the fuzzer had found these two
    for index in ("126", "2308"):
        fuzzed(tmp_path, "parquet", "--seed", "5", "--first", index, "--count", "1")
