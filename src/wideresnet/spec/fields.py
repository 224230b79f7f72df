"""Dataclass fields that check themselves: each carries its help, its source and its range."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from numbers import Real
from typing import Any, get_args, get_type_hints

from wideresnet.base.errors import UsageError

PAPER = "paper, section 3"
CODE = "authors' train.lua"

RULES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[int, ...]: "a list of whole numbers",
    tuple[tuple[float, float], ...]: "a list of pairs of numbers",
}
"""What a value must be, in words, by its field's type."""


MAX_LIST_LENGTH = 100
"""Entries of a list in a recipe, each of which is a note, a cell of a table and a part of a flag. Own choice."""


def option(
    default: Any,
    help: str,
    source: str = "",
    *,
    key: str = "",
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field with its rule.

    Args:
        help: what the value does, one line.
        source: who chose the default.
        key: the field's name in `recipe.json` and on the command line, if that differs from its name here.
        choices: the values that a text may have.
        low, high: the least and the greatest value.
        above, below: bounds that are not values themselves.
    """
    metadata = {
        "help": help, "source": source, "key": key, "choices": choices,
        "low": low, "high": high, "above": above, "below": below,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def check_length(key: str, values: tuple[Any, ...]) -> None:
    """Refuse a list that no recipe needs.

    Raises:
        UsageError: it is too long.
    """
    if len(values) > MAX_LIST_LENGTH:
        raise UsageError(f"{key}: a list of {len(values):,} entries; must have at most {MAX_LIST_LENGTH}")


def key_of(field: dataclasses.Field[Any]) -> str:
    """The field's flat name, as `recipe.json` and the command line have it."""
    return field.metadata.get("key") or field.name


@functools.cache
def types_of(kind: type) -> dict[str, Any]:
    """Field name -> type, with the annotations evaluated."""
    return get_type_hints(kind)


def check_fields(instance: Any) -> None:
    """Convert and check every declared field of a frozen dataclass; call it in `__post_init__`.

    Raises:
        UsageError: a value outside its field's type, range or choices, naming the field, the value and the rule.
    """
    types = types_of(type(instance))
    for field in dataclasses.fields(instance):
        if "help" in field.metadata:
            value = _checked(field, types[field.name], getattr(instance, field.name))
            object.__setattr__(instance, field.name, value)


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """Return the value in the field's type, or raise a UsageError."""
    options = get_args(kind)
    if value is None:
        if type(None) in options:
            return None
        raise UsageError(f"{key_of(field)}=None: needs a value")
    if type(None) in options:
        kind = options[0]
    try:
        value = _converted(value, kind)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{key_of(field)}={short(value)}: must be {RULES[kind]}{_range(field)}") from None
    _check_range(field, value)
    return value


def _converted(value: Any, kind: Any) -> Any:
    """Return the value in the type if nothing is lost and nothing guessed; else raise TypeError or ValueError."""
    if kind == tuple[int, ...]:
        return tuple(_converted(item, int) for item in value)
    if kind == tuple[tuple[float, float], ...]:
        return tuple((_converted(start, float), _converted(scale, float)) for start, scale in value)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (isinstance(value, kind) if kind in (bool, str) else is_number):
        raise TypeError
    converted = kind(value)
    if kind is int and converted != value:
        raise ValueError
    return converted


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    key, rule = key_of(field), field.metadata
    if rule["choices"] and value not in rule["choices"]:
        close = difflib.get_close_matches(str(value), rule["choices"], n=1, cutoff=0.0)[0]
        raise UsageError(f"{key}={value!r}: one of {', '.join(rule['choices'])} (nearest: {close})")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not abs(value) < float("inf"):
        raise UsageError(f"{key}={value}: must be a finite number")
    is_legal = (
        (rule["low"] is None or value >= rule["low"])
        and (rule["high"] is None or value <= rule["high"])
        and (rule["above"] is None or value > rule["above"])
        and (rule["below"] is None or value < rule["below"])
    )
    if not is_legal:
        raise UsageError(f"{key}={value}: must be{_range(field)}")


def _range(field: dataclasses.Field[Any]) -> str:
    """The field's bounds in words, with a space before them; empty if it has none."""
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    bounds = [f"{word} {field.metadata[name]:g}" for name, word in words.items() if field.metadata[name] is not None]
    return f" {' and '.join(bounds)}" if bounds else ""


def short(value: Any) -> str:
    """Format any value for a message of one line: of a long one only the beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def brief_value(value: Any) -> str:
    """Format a field's value for people, floats with three digits: 0.4166666666666667 -> "0.417"."""
    if isinstance(value, tuple):
        parts = (":".join(map(brief_value, item)) if isinstance(item, tuple) else brief_value(item) for item in value)
        return ",".join(parts) or "none"
    return f"{value:.3g}" if isinstance(value, float) else show_value(value)


def show_value(value: Any) -> str:
    """Format a field's value exactly, as its flag takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return ",".join(f"{show_value(start)}:{show_value(scale)}" for start, scale in value)
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
