"""The library's errors speak of arguments (`limit=100`); people who type commands know flags (`--limit 100`)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

from wideresnet.commands.flags import FLAGS

NO_FLAGS = {"argv", "verb", "job", "resume_command", "network", "networks", "weights", "images", "runs"}
"""What parsed arguments hold besides flags."""


def flag_names(args: argparse.Namespace) -> set[str]:
    """Return the names that are flags of the verb, or of a recipe."""
    return (vars(args).keys() - NO_FLAGS) | set(FLAGS)


def to_flags(message: str, names: Iterable[str]) -> str:
    """Write `name=value` as `--name value`, `name=True` as `--name` and `name=False` as `--no-name`.

    Args:
        message: an error of the library.
        names: arguments that are flags; other words with an equals sign stay as they are.
    """
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = rf"(?<![\w./\\-])({known})=(?:(True|False)\b|'(\w+)')?"

    def flag(match: re.Match[str]) -> str:
        name = match[1].replace("_", "-")
        if match[2]:
            return f"--{name}" if match[2] == "True" else f"--no-{name}"
        if match[3]:
            return f"--{name} {match[3]}"
        at_end = match.end() >= len(message) or message[match.end()] in " ,;:.)"
        return f"--{name}" if at_end else f"--{name} "

    return re.sub(pattern, flag, message)
