"""The fields of a recipe as flags of the command line, with their help, source, choices and defaults."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any, get_args

from wideresnet.spec.fields import show_value
from wideresnet.spec.recipe import FIELDS, GROUPS
from wideresnet.spec.recipes import paper

FLAGS: tuple[str, ...] = tuple(key for group, keys in GROUPS.items() for key in keys if group != "what")
"""The recipe's flat keys that are flags; network, data and recipe are arguments of `wrn train`."""


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of `FLAGS`; a flag that is not given leaves the recipe's value."""
    defaults = paper("WRN-28-10", "cifar10").values()
    for title, keys in GROUPS.items():
        if title == "what":
            continue
        group = parser.add_argument_group(f"{title} (flags override the recipe; values in brackets: paper)")
        for key in keys:
            add_field_flag(group, key, FIELDS[key].kind, FIELDS[key].metadata, defaults[key])


def add_field_flag(group: Any, key: str, kind: Any, metadata: Mapping[str, Any], default: Any) -> None:
    """Add a flag for a field that `spec.fields.option` has declared.

    Args:
        group: of the parser.
        key: name of the field.
        kind: its type.
        metadata: help, source and choices.
        default: shown in brackets; a flag that is not given leaves no argument.
    """
    flag = "--" + key.removesuffix("_s").replace("_", "-")
    source = f"; source: {metadata['source']}" if metadata["source"] else ""
    text = f"{metadata['help']} [{show_value(default)}]{source}".replace("%", "%%")
    common: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS, "help": text}
    if bool in (kind, *get_args(kind)):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif metadata["choices"]:
        group.add_argument(flag, choices=metadata["choices"], **common)
    elif key.endswith("_s"):
        group.add_argument(flag, type=_seconds, metavar="TIME", **common)
    else:
        group.add_argument(flag, type=_reader(kind), metavar=_metavar(kind), **common)


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe's fields that were given as flags."""
    return {key: getattr(args, key) for key in FLAGS if hasattr(args, key)}


def _metavar(kind: Any) -> str:
    listed = {tuple[int, ...]: "N,N", tuple[tuple[float, float], ...]: "START:SCALE,..."}
    kinds = (kind, *get_args(kind))
    return listed.get(kind, "N" if int in kinds else "NAME" if str in kinds else "X")


def _seconds(text: str) -> float | None:
    """Read a time, such as 90, 90s, 10m or 1h30m, in seconds; "none" is None."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if text == "none":
        return None
    if not text or not match:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a time such as 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _reader(kind: Any) -> Any:
    """Return a function from a flag's text to the field's value; argparse puts the flag's name before its error."""

    def read(text: str) -> Any:
        if text == "none" and type(None) in get_args(kind):
            return None
        try:
            if str in (kind, *get_args(kind)):
                return text
            if kind == tuple[int, ...]:
                return () if text == "none" else tuple(int(part) for part in text.split(","))
            if kind == tuple[tuple[float, float], ...]:
                pairs = [part.split(":") for part in text.split(",")]
                return tuple((float(start), float(scale)) for start, scale in pairs)
            return int(text) if int in (kind, *get_args(kind)) else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: must be like {_metavar(kind)}, N a whole number and other words numbers"
            ) from None

    return read
