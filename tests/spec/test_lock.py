"""A folder is written by one process at a time, whatever happens to that one."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.spec.files import release_folders, reserve_folder
from wideresnet.spec.lock import LOCK, locked
from wideresnet.spec.record import RunFolder

fcntl = pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
from wideresnet.spec.record import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(100)
"""

CREATE = """
import sys
from pathlib import Path
from wideresnet.base.errors import UsageError
from wideresnet.spec.record import RunFolder
for line in sys.stdin:
    folder = RunFolder(Path(line.strip()))
    try:
        with folder.held():
            folder.create()
            folder.recipe.write_text("{}")
        print("created", flush=True)
    except UsageError:
        print("refused", flush=True)
"""


def start(program: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_another_process_is_refused_and_told_who_holds_the_folder_until_that_one_is_killed(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path / "run")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match=rf"a run is under way here, pid {process.pid}; wait"),
            RunFolder(tmp_path / "run").held(),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run" / LOCK).exists()
        with RunFolder(tmp_path / "run").held():
            pass
        assert list((tmp_path / "run").iterdir()) == []
    finally:
        end(process)


def test_a_second_hold_in_this_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UsageError, match=f"pid {os.getpid()}"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_of_two_processes_that_create_a_folder_at_the_same_moment_one_is_refused(tmp_path: Path) -> None:
    processes = [start(CREATE), start(CREATE)]
    try:
        for trial in range(200):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{tmp_path / str(trial)}\n")
            for process in processes:
                assert process.stdin is not None
                process.stdin.flush()
            said = [process.stdout.readline().strip() for process in processes if process.stdout]
            assert sorted(said) == ["created", "refused"]
    finally:
        for process in processes:
            end(process)


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    (record,) = caplog.records
    assert (record.levelno, "has no locks" in record.getMessage()) == (logging.WARNING, True)


def test_a_folder_that_an_error_leaves_empty_is_removed_with_those_above_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "a" / "b").held():
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "a" / "b" / "file"
    with pytest.raises(ZeroDivisionError), RunFolder(file.parent).held():
        file.write_text(str(file.touch() or 1 / 0))
    assert file.exists()


def test_a_lock_does_not_make_a_folder_used(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("123 elsewhere")
    RunFolder(tmp_path).check_free()


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    names = [reserve_folder(tmp_path / "runs" / "WRN-10-1").name for _ in range(3)]
    assert names == ["WRN-10-1", "WRN-10-1-2", "WRN-10-1-3"]
    release_folders()
    assert list(tmp_path.iterdir()) == []  # nothing was written to them
    (tmp_path / "WRN-10-1").touch()
    assert reserve_folder(tmp_path / "WRN-10-1").name == "WRN-10-1-2"
    release_folders()
