"""Errors of the user's input, in one line each: the value, the rule, the fix.

The library's errors speak of arguments (`limit=100`); the command line translates them into flags.
"""

from __future__ import annotations

DAMAGED = "the outputs are not finite; these weights are damaged, so train again"
"""The text of a DataError about weights."""


class WRNError(ValueError):
    """A mistake that the user can fix; its text is one line, shown without a traceback."""

    exit_code = 1


class UsageError(WRNError):
    """What was asked for is not possible: a name, an argument, a combination. Exit code 2."""

    exit_code = 2


class DataError(WRNError):
    """The content of a file or a folder cannot be used. Exit code 1."""
