"""Folders of things that can be made again: downloads, caches, measurements."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_KERNELS = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.so")


def data_root() -> Path:
    """Return the folder for downloads, decoded images, compiled kernels and measurements.

    It is `$WRN_DATA`, else `~/.cache/wideresnet`.
    """
    return Path(os.path.expanduser(os.environ.get("WRN_DATA") or "~/.cache/wideresnet"))


def kernels_folder() -> Path:
    """Return the folder of compiled kernels."""
    return data_root() / "kernels"


def kernel_files() -> list[Path]:
    """Return the compiled kernels that exist, without unfinished builds and other files."""
    return matching_files(kernels_folder(), _KERNELS)


def measurements_file() -> Path:
    """Return the file of measured configurations."""
    return data_root() / "fastest.json"


def matching_files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the files in a folder whose whole name matches, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_file())


def is_private(path: Path) -> bool:
    """Tell whether only this user could have written a file, or put files into a folder.

    What is cached is trusted as it is, so that nobody else may plant it. Windows has no such modes: True if it exists.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
