"""The two ways in which a user's input can be wrong. Both carry one line: what, the value, the rule, the fix."""

from __future__ import annotations


class WRNError(ValueError):
    """A mistake that the user can fix. Its text is one line, shown without a traceback. Exit code 1."""

    exit_code = 1


class UsageError(WRNError):
    """What was asked for is impossible: a name, an argument, a combination. Exit code 2."""

    exit_code = 2


class DataError(WRNError):
    """The content of a file or folder cannot be used. Exit code 1."""
