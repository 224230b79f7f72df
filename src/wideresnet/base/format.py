"""Numbers and suggestions in the form that people read."""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Iterable
from typing import Any


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


def human_number(value: float, digits: int = 3) -> str:
    """Write a number rounded to significant digits, without an exponent: 7051.3 -> '7,050', 0.01234 -> '0.0123'."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: '1 file', '2,000 files', '2 classes'."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: str, keep: str = "") -> str:
    """Write characters that a terminal obeys rather than shows as escapes: ESC -> '\\x1b', U+202E -> '\\u202e'.

    Names of files, classes and data sets come from strangers. Control characters can retitle, clear or overwrite a
    terminal, and format characters reorder or hide text.

    Args:
        text: any text, also with lone surrogates, as undecodable file names have them.
        keep: control characters that stay, e.g. a line break.

    Returns:
        The text with visible characters and spaces only, and those of `keep`.
    """
    if text.isprintable():
        return text
    shown = (c in keep or c.isprintable() or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if is_shown else escape_character(c) for c, is_shown in zip(text, shown, strict=True))


def printable_values(value: Any) -> Any:
    """Return a document of JSON values with every text in it made `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(item) for item in value]
    return value


def escape_character(character: str) -> str:
    """Write a character as an escape; a byte of a file name that is not UTF-8 (PEP 383) as that byte."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


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
