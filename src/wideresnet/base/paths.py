"""Folders of things that can be made again: downloads, caches, measurements. They are for their user alone."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

_KERNELS = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.so")
_MODELS = re.compile(r"\.?[0-9a-f]{32}-[0-9a-f]{32}\.onnx(\.\d+\.part)?")  # .part: unfinished
_LEFTOVER_S = 86_400.0  # what is in a temporary folder can be made again, even if its process should still run
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def data_root() -> Path:
    """Return the absolute path of the folder for downloads, decoded images, compiled kernels and measurements.

    It is `$WRN_DATA`, else `~/.cache/wideresnet`. A user without a home gets a private temporary folder. The folder
    may not exist yet: whoever writes there creates it by `private_folder`.
    """
    root = os.path.expanduser(os.environ.get("WRN_DATA") or "~/.cache/wideresnet")
    if root.startswith("~"):  # HOME is not set and the system does not know this user, as in some containers
        return private_temporary_folder()
    return Path(root).absolute()


def kernels_folder() -> Path:
    """Return the folder of compiled kernels."""
    return data_root() / "kernels"


def kernel_files() -> list[Path]:
    """Return the compiled kernels that exist, without unfinished builds and other files."""
    return matching_files(kernels_folder(), _KERNELS)


def models_folder() -> Path:
    """Return the folder of networks that were converted for other engines."""
    return data_root() / "models"


def model_files() -> list[Path]:
    """Return the converted networks that exist, also those that a killed process has left unfinished."""
    return matching_files(models_folder(), _MODELS)


def measurements_file() -> Path:
    """Return the file of measured configurations."""
    return data_root() / "fastest.json"


def matching_files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the files in a folder whose whole name matches, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_file())


def private_folder(path: Path) -> Path:
    """Create a folder, and the missing ones above it, for this user alone (0700, whatever the umask is).

    Folders that exist keep their mode: `is_private` tells whether others can write to them.

    Returns:
        `path`.

    Raises:
        OSError: it cannot be created.
    """
    if not path.is_dir():
        if path.parent != path:
            private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def is_private(path: Path | int) -> bool:
    """Return whether only this user, who owns it, can change a file or folder. False if it does not exist.

    Whatever others plant belongs to them, so a file that is read only if it is private is this user's own.

    Args:
        path: of the file; or its descriptor, which nobody can exchange between this check and the reading.
    """
    try:
        status = path.stat() if isinstance(path, Path) else os.fstat(path)
    except OSError:
        return False
    if not hasattr(os, "getuid"):  # Windows: the mode says nothing; a profile's folders are its user's
        return True
    return status.st_uid == os.getuid() and not status.st_mode & _WRITABLE_BY_OTHERS


def is_private_chain(folder: Path) -> bool:
    """Return whether a folder is private and nobody else (but root) can put another one in its place."""
    if not is_private(folder):
        return False
    return not hasattr(os, "getuid") or not any(
        _can_be_renamed_in(above) for above in {*folder.absolute().parents, *folder.resolve().parents}
    )


def _can_be_renamed_in(folder: Path) -> bool:
    """Return whether others can rename what this user has in a folder: in a sticky one, such as /tmp, they cannot."""
    status = folder.stat()
    is_theirs = status.st_uid not in (0, os.getuid())
    return is_theirs or bool(status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX)


def private_temporary_folder() -> Path:
    """Return a private folder in the temporary folder: the same one for all processes of this user.

    If another user has taken its name, the folder is this process's own and is removed when the process ends.
    """
    shared = Path(tempfile.gettempdir()).resolve() / f"wideresnet-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        if is_private_chain(private_folder(shared)) and not shared.is_symlink():
            return shared
    except OSError:
        pass
    return _folder_of_process(os.getpid())


@functools.cache
def _folder_of_process(pid: int) -> Path:
    for old in Path(tempfile.gettempdir()).glob("wideresnet-process-*"):  # of processes that were killed
        if is_private(old) and old.stat().st_mtime < time.time() - _LEFTOVER_S:
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="wideresnet-process-"))

    def remove() -> None:
        if os.getpid() == pid:  # a fork inherits this function, not the folder
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
