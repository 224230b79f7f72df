"""The library's errors speak of arguments (`limit=100`); people who type commands know flags (`--limit 100`)."""

from __future__ import annotations

import re
from collections.abc import Iterable


def to_flags(message: str, names: Iterable[str], typed: Iterable[str] = ()) -> str:
    """Write `name=value` as `--name value`, `name=True` as `--name` and `name=False` as `--no-name`.

    Args:
        message: an error of the library.
        names: arguments that are flags; other words with an equals sign stay as they are.
        typed: words of the command line; they stay as they are too, so that a path may contain `limit=3`.
    """
    kept = [re.escape(word) for word in sorted(typed, key=len, reverse=True) if "=" in word]
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = "|".join([*kept, rf"(?<![\w./\\'-])({known})=(?:(True|False)\b|'(\w+)')?"])

    def flag(match: re.Match[str]) -> str:
        if not match[1]:
            return match[0]
        name = match[1].replace("_", "-")
        if match[2]:
            return f"--{name}" if match[2] == "True" else f"--no-{name}"
        if match[3]:
            return f"--{name} {match[3]}"
        at_end = match.end() >= len(message) or message[match.end()] in " ,;:.)"
        return f"--{name}" if at_end else f"--{name} "

    return re.sub(pattern, flag, message)
