"""The library's errors speak of arguments (`limit=100`); people who type commands know flags (`--limit 100`)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable

from wideresnet.commands.flags import FLAGS

RENAMED = {"init_from": "from", "time_s": "time"}
"""Arguments whose flag has another name."""

NO_FLAGS = {
    "argv", "began", "verb", "job", "resume_command", "own_flags", "network", "networks", "weights", "paths", "runs",
}  # fmt: skip
"""What parsed arguments hold besides flags."""


def flag_names(args: argparse.Namespace) -> set[str]:
    """Return the names that are flags of the verb, or of a recipe."""
    return (vars(args).keys() - NO_FLAGS) | set(getattr(args, "own_flags", FLAGS))


def translator(args: argparse.Namespace) -> Callable[[str], str]:
    """Return a function that puts the library's messages in the words of this command line."""
    names = flag_names(args)
    typed = [part for word in map(str, args.argv) for part in (word, word.partition("=")[2])]
    return lambda message: to_flags(message, names, typed)


def to_flags(message: str, names: Iterable[str], typed: Iterable[str] = ()) -> str:
    """Write `name=value` as `--name value`, `name=True` as `--name` and `name=False` as `--no-name`.

    Flags have no units in their names: `checkpoint_every_s=5` is `--checkpoint-every 5`.

    Args:
        message: an error of the library.
        names: arguments that are flags; other words with an equals sign stay as they are.
        typed: words of the command line; they stay as they are too, so that a path may contain `limit=3`.
    """
    kept = [re.escape(word) for word in sorted(typed, key=len, reverse=True) if "=" in word]
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = "|".join([*kept, rf"(?<![\w./\\'-])({known})(?:_s)?=(?:(True|False)\b|'(\w+)')?"])

    def flag(match: re.Match[str]) -> str:
        if not match[1]:
            return match[0]
        name = RENAMED.get(match[1], match[1]).replace("_", "-")
        if match[2]:
            return f"--{name}" if match[2] == "True" else f"--no-{name}"
        if match[3]:
            return f"--{name} {match[3]}"
        at_end = match.end() >= len(message) or message[match.end()] in " ,;:.)"
        return f"--{name}" if at_end else f"--{name} "

    return re.sub(pattern, flag, message)
