"""A folder that one process writes at a time."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wideresnet.base.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process out there
    fcntl = None

LOCK = ".lock"
"""The hidden file of a folder that is being written; it holds the process and the machine."""

log = logging.getLogger(__name__)


class FolderInUse(UsageError):
    """Another process writes the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder that exists.

    The lock ends with the process, however it ends: the file that a kill leaves behind means nothing.

    Raises:
        FolderInUse: another process holds the folder.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    file = _open_locked(path)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} {socket.gethostname()}".encode())
        yield
    finally:
        try:
            with suppress(OSError):
                path.unlink()  # while it is held: whoever has opened it meanwhile looks again
        finally:
            os.close(file)


def _open_locked(path: Path) -> int:
    assert fcntl is not None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file)):
                return file
        except BlockingIOError:
            owner = os.read(file, 200).decode(errors="replace").split()
            os.close(file)
            raise FolderInUse(
                f"{path.parent}: a run is under way here, {_owner_text(owner)}; wait until it has ended, or use "
                "another folder"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                log.warning(f"{path.parent}: its file system has no locks, so nothing keeps a second run out of it")
                return file
            os.close(file)
            raise
        os.close(file)  # its holder has ended and removed it meanwhile


def _owner_text(owner: list[str]) -> str:
    """Name the process from what its lock holds, and the machine if it is another one."""
    if len(owner) != 2:
        return "by another process"
    pid, host = owner
    return f"pid {pid}" + ("" if host == socket.gethostname() else f" on {host}")
