"""The folders of files that can be downloaded, compiled or measured again."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Return the folder of downloads, decoded images, compiled kernels and measurements.

    It is `$WRN_DATA`, or `~/.cache/wideresnet` if that is not set.
    """
    return Path(os.path.expanduser(os.environ.get("WRN_DATA") or "~/.cache/wideresnet"))


def kernels_folder() -> Path:
    """Return the folder of compiled kernels."""
    return data_root() / "kernels"


def measurements_file() -> Path:
    """Return the file of the fastest configurations that were measured."""
    return data_root() / "fastest.json"
