"""What `autotune` has found on this machine: `fastest.json`, written by one process at a time.

Whoever measures holds a lock while it does. Processes that ask at the same time wait: trials would disturb each other,
and the same command started twice must give the same network twice. An answer that cannot be trusted is not stored.
It is only left in the lock's file, for those that were waiting for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wideresnet.base.errors import WRNError
from wideresnet.base.paths import measurements_file, private_folder
from wideresnet.machine.process import process_age_s
from wideresnet.spec.files import read_json, write_json
from wideresnet.training.preflight.trial import Tell

Answer = dict[str, Any]
"""`settings`: of the configuration; `told`: the note; `measured`: conditions and rates."""

MAX_STORED = 200
WAIT_S = 300.0  # a trial takes seconds, on a slow machine a minute; several different ones may be queued
RECENT_S = 600.0  # after this an answer that is not trusted has no takers


def find(key: str) -> Answer | None:
    """Return the stored answer; None if there is none or the file is damaged."""
    return _read(measurements_file()).get(key)


def store(key: str, answer: Answer) -> None:
    """Add an answer to the file while `turn` holds the lock; a read-only folder costs only time."""
    path = measurements_file()
    known = {other: value for other, value in _read(path).items() if other != key}
    newest = dict(list(known.items())[-(MAX_STORED - 1) :])
    with suppress(OSError, WRNError):
        write_json(path, {**newest, key: answer})
        path.chmod(0o600)


class Turn:
    """The right to measure.

    Args:
        file: descriptor of the lock's file; None where there is no lock.
    """

    def __init__(self, file: int | None) -> None:
        self._file = file

    def left(self, key: str) -> Answer | None:
        """Return an answer that was left for this process: by another one, since this one started."""
        now, age = time.time(), process_age_s()
        for answer in self._answers():
            if answer["key"] == key and answer["pid"] != os.getpid() and now - answer["time"] < min(age, RECENT_S):
                return answer["answer"]
        return None

    def leave(self, key: str, answer: Answer) -> None:
        """Leave an answer that is not trusted to the processes that are waiting for it."""
        now = time.time()
        own = {"key": key, "answer": answer, "pid": os.getpid(), "time": now}
        others = [other for other in self._answers() if other["key"] != key and now - other["time"] < RECENT_S]
        if self._file is not None:
            with suppress(OSError):  # a full disk
                os.ftruncate(self._file, 0)
                os.lseek(self._file, 0, os.SEEK_SET)
                os.write(self._file, json.dumps([*others, own]).encode())

    def _answers(self) -> list[dict[str, Any]]:
        if self._file is None:
            return []
        try:
            os.lseek(self._file, 0, os.SEEK_SET)
            content = json.loads(os.read(self._file, os.fstat(self._file).st_size))
            return [{name: answer[name] for name in ("key", "answer", "pid", "time")} for answer in content]
        except (OSError, ValueError, KeyError, TypeError):  # empty, or cut off by a kill
            return []


@contextmanager
def turn(
    tell: Tell,
    *,
    wait_s: float = WAIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Turn | None]:
    """Wait for the right to measure and hold it; None if others held it for too long.

    Args:
        tell: shows that this process is waiting.
        wait_s: how long at most.
        clock, sleep: seconds.
    """
    path = measurements_file()
    try:
        private_folder(path.parent)
        file = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError:  # a read-only folder, in which nothing can be stored either
        yield Turn(None)
        return
    try:
        started = clock()
        while not _lock(file):
            if (waited := clock() - started) >= wait_s:
                yield None
                return
            tell(f"waiting for another process that is timing configurations, {waited:.0f} s of at most {wait_s:.0f}")
            sleep(0.1)
        yield Turn(file)
    finally:
        os.close(file)  # which releases the lock


def _lock(file: int) -> bool:
    """Take the lock if it is free; a system without locks has it always free."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, WRNError):  # damaged or missing: measured again
        return {}
