from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wideresnet.experiments.lease import STALE_S, Lease


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def test_only_one_holds_it(path: Path) -> None:
    first, second = Lease(path), Lease(path)
    assert first.acquire()
    assert not second.acquire()
    assert second.owner()["pid"] == os.getpid()
    first.release()
    assert second.acquire()
    second.release()
    assert not path.exists()


def test_the_lease_of_a_dead_owner_is_taken_over(path: Path) -> None:
    dead, heir = Lease(path), Lease(path)
    assert dead.acquire()
    long_ago = path.stat().st_mtime - STALE_S - 1
    os.utime(path, (long_ago, long_ago))
    assert heir.acquire()
    dead.release()  # it was only slow: what is not its own anymore stays
    assert heir.owner() != {}
    assert path.exists()
    heir.release()


def test_a_damaged_lock_file_has_no_owner_but_holds(path: Path) -> None:
    path.write_text("{")
    assert Lease(path).owner() == {}
    assert not Lease(path).acquire()


def test_an_owner_of_this_machine_whose_process_has_ended_is_dead_at_once(path: Path) -> None:
    words = [sys.executable, "-c", f"from {Lease.__module__} import Lease; from pathlib import Path; import os; "
             f"assert Lease(Path({str(path)!r})).acquire(); os._exit(0)"]  # fmt: skip
    subprocess.run(words, check=True)
    assert path.exists()
    heir = Lease(path)
    assert heir.acquire()
    heir.release()


def test_an_owner_on_another_machine_is_believed_to_live(path: Path) -> None:
    path.write_text(json.dumps({"host": "elsewhere", "pid": 2**22 + 1, "token": "x"}))
    assert not Lease(path).acquire()


def test_an_owner_that_seemed_dead_learns_that_it_has_lost_the_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wideresnet.experiments.lease.BEAT_S", 0.05)
    lost = threading.Event()
    suspended, heir = Lease(path, when_lost=lost.set), Lease(path, clock=lambda: time.time() + STALE_S + 1)
    assert suspended.acquire()
    assert heir.acquire()
    assert lost.wait(10)
    suspended.release()
    assert path.exists()
    heir.release()
