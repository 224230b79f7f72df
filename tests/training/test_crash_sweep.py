"""A kill before or half-way through any file operation costs nothing: the resumed run leaves the same files.

`tools/crash_sweep.py` tries every point of every case; here the points are fewer where a case repeats another.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from crash_sweep import CASES, Case, Killed, killed_at, make_data, sweep, sweep_processes

EVERY = {"plain": 1}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_killed_at_any_file_operation_and_resumed_leaves_the_same_files(case: Case, tmp_path: Path) -> None:
    fewer = dataclasses.replace(case, every=EVERY.get(case.name, 5))
    found = sweep(fewer, tmp_path, make_data(tmp_path))
    assert found["differ"] == []
    assert found["tried"] == found["identical"] >= found["points"] // fewer.every > 5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_two_processes_killed_at_once_and_resumed_leave_the_same_files(tmp_path: Path) -> None:
    found = sweep_processes(tmp_path, make_data(tmp_path), num_kills=2)
    assert (found["identical"], found["differ"]) == (2, [])


def test_the_points_are_those_of_the_run_and_nothing_changes_after_a_kill(tmp_path: Path) -> None:
    with killed_at(1) as passed:
        (tmp_path / "a").mkdir()
        with pytest.raises(Killed):
            (tmp_path / "b").mkdir()
        with pytest.raises(Killed):
            (tmp_path / "a").rmdir()
    assert passed == ["mkdir", "mkdir"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
