"""This process, as the system sees it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_age_s(root: Path = Path("/")) -> float:
    """Return the seconds since this process started.

    Args:
        root: the folder that holds `proc`.

    Returns:
        Seconds; 0 if the system does not say (macOS, Windows).

    Source: Linux, proc(5): the 22nd field of `stat`, in clock ticks since the machine started.
    """
    try:
        fields = (root / "proc/self/stat").read_text().rpartition(")")[2].split()  # the name before it may hold spaces
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
