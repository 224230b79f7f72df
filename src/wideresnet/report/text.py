"""Text that terminal and pages share: how results were computed; commands in a form that a shell runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from wideresnet.base.format import printable


def arithmetic(result: Mapping[str, Any]) -> str:
    """Say by what and in which precision a result was computed: "cpu, fp32", or the name of another engine."""
    return result.get("engine") or f"{result['device']}, {result['precision']}"


def shell_command(words: Iterable[str]) -> str:
    """Write a command so that a shell runs it; a word that cannot be shown is quoted as $'caf\\xe9', byte by byte."""
    return " ".join(shlex.quote(word) if printable(word) == word else f"$'{_escaped(word)}'" for word in words)


def _escaped(word: str) -> str:
    safe = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-/=,:+@%")
    escaped = ""
    for character in word:
        is_byte = "\udc80" <= character <= "\udcff"  # a byte of a file name that is not UTF-8
        for byte in character.encode("utf-8", "surrogateescape" if is_byte else "replace"):
            escaped += chr(byte) if byte in safe else f"\\x{byte:02x}"
    return escaped
