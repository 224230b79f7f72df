"""A lock file with an owner and a heartbeat, which keeps two reproductions apart, also on different machines."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BEAT_S = 10.0
"""The owner touches its file this often."""

STALE_S = 120.0
"""An owner that has not touched its file for this long has died. Clocks of machines may differ by less."""


class Lease:
    """The right to work on something, held by one process until it releases it or dies.

    File locks end with their process, but do not hold between machines on every shared file system. A file that is
    created exclusively does, and its age tells whether the owner lives.

    Args:
        path: of the lock file; its folder exists.
        clock: returns the time, s, comparable with that of files.
        when_lost: called in a thread if another process has taken the lease, because this one seemed dead.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        when_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.path, self._clock, self._when_lost = path, clock, when_lost
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()

    def acquire(self) -> bool:
        """Take the lease if it is free or its owner has died; tell whether that worked."""
        with suppress(FileNotFoundError):
            before = self.owner()
            if self._clock() - self.path.stat().st_mtime > STALE_S or _is_dead(before):
                self._remove(before)
        try:
            with self.path.open("x", encoding="utf-8") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}, file)
        except FileExistsError:
            return False
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _remove(self, dead: dict[str, Any]) -> None:
        """Remove the file of a dead owner; of several processes that try, one renames it, and others find it gone.

        Raises:
            FileNotFoundError: another process was faster.
        """
        aside = self.path.with_suffix(f".{self._token}")
        self.path.rename(aside)
        if _read(aside) != dead:  # another process was faster still, and this is its file: put it back
            with suppress(OSError):  # it has a new owner already, or the file system has no links
                os.link(aside, self.path)
        aside.unlink()

    def owner(self) -> dict[str, Any]:
        """Return host and pid of the process that holds the lease; empty if nobody does."""
        return _read(self.path)

    def release(self) -> None:
        """Give the lease back, unless somebody has taken it in the meantime."""
        self._ended.set()
        if self.owner().get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            if self.owner().get("token") not in (self._token, None):  # None: the storage may be away for a while
                self._when_lost()
                return
            with suppress(OSError):
                os.utime(self.path)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_dead(owner: dict[str, Any]) -> bool:
    """Tell whether an owner on this machine has ended. Of other machines only the age of the file tells."""
    pid = owner.get("pid")
    if os.name == "nt" or owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False  # on Windows, signal 0 is Ctrl-C
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and belongs to somebody else
        return False
    return False
