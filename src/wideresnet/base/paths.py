"""Folders of things that can be made again: downloads, caches, measurements."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Return the folder for downloads, decoded images, compiled kernels and measurements.

    It is `$WRN_DATA`, else `~/.cache/wideresnet`.
    """
    return Path(os.path.expanduser(os.environ.get("WRN_DATA") or "~/.cache/wideresnet"))


def kernels_folder() -> Path:
    """Return the folder of compiled kernels."""
    return data_root() / "kernels"


def measurements_file() -> Path:
    """Return the file of measured configurations."""
    return data_root() / "fastest.json"
