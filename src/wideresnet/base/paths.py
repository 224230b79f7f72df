"""Where things are kept that can be had again."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder for downloads, decoded images, compiled kernels and measurements: `$WRN_DATA`, else
    `~/.cache/wideresnet`."""
    return Path(os.path.expanduser(os.environ.get("WRN_DATA") or "~/.cache/wideresnet"))


def kernels_folder() -> Path:
    """The folder of compiled kernels."""
    return data_root() / "kernels"


def measurements_file() -> Path:
    """The fastest ways to train that were measured."""
    return data_root() / "fastest.json"
