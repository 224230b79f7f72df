"""The fields of `Recipe` as flags of the command line, with their help, source, choices and defaults."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, get_args

from wideresnet.spec.recipe import TYPES, Recipe, show_value

POSITIONAL = ("network", "data", "recipe")


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of a recipe; a flag that is not given leaves the recipe's value."""
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Recipe):
        if field.name in POSITIONAL:
            continue
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(f"{title} (flags override the recipe; values in brackets: paper)")
        flag = "--" + field.name.replace("_", "-")
        source = f"; source: {field.metadata['source']}" if field.metadata["source"] else ""
        text = f"{field.metadata['help']} [{show_value(field.default)}]{source}".replace("%", "%%")
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
        kind = TYPES[field.name]
        if bool in (kind, *get_args(kind)):
            groups[title].add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif field.metadata["choices"]:
            groups[title].add_argument(flag, choices=field.metadata["choices"], **common)
        else:
            groups[title].add_argument(flag, type=_reader(kind), metavar=_metavar(kind), **common)


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fields that were given as flags."""
    names = {field.name for field in dataclasses.fields(Recipe)} - set(POSITIONAL)
    return {name: value for name, value in vars(args).items() if name in names}


def _metavar(kind: Any) -> str:
    return {tuple[int, ...]: "N,N", tuple[tuple[float, float], ...]: "START:SCALE,..."}.get(
        kind, "N" if int in (kind, *get_args(kind)) else "X"
    )


def _reader(kind: Any) -> Any:
    """A function from a flag's text to the field's value; argparse puts the flag's name before its error."""

    def read(text: str) -> Any:
        if text == "none" and type(None) in get_args(kind):
            return None
        try:
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
