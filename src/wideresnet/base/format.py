"""Numbers and suggestions in the form that people read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def human_bytes(num_bytes: float) -> str:
    """Write bytes in binary units: 1536 -> '1.5 KiB'."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < (1024 if unit == "B" else 1023.95):  # 1023.95 would be written as 1024.0
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def human_count(count: float) -> str:
    """Write a count in decimal units: 36479194 -> '36.5 M'."""
    value = float(count)
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 999.5:  # 999.5 would be written as 1000
            return f"{value:.0f}" if unit == "" else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} E"


def human_seconds(seconds: float) -> str:
    """Write a duration: 42 -> '42 s', 3700 -> '1 h 02 min'."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def nearest(value: str, choices: Iterable[str]) -> str:
    """List choices for an error message, the one that resembles the value first.

    Args:
        value: what was given.
        choices: what is allowed.

    Returns:
        'did you mean quick? (one of paper, quick)', or without a similar choice 'one of paper, quick'.
    """
    known = list(choices)
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    listed = ", ".join(known)
    return f"did you mean {close[0]}? (one of {listed})" if close else f"one of {listed}"
