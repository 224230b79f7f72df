"""The two ways in which a user's input can be wrong. Both carry one line: the value, the rule, the fix."""

from __future__ import annotations


class WRNError(ValueError):
    """A mistake that the user can mend; its text is one line and is shown without a traceback."""

    exit_code = 1


class UsageError(WRNError):
    """What was asked for is not possible: a name, a flag, a combination. Exit code 2."""

    exit_code = 2


class DataError(WRNError):
    """What was found in a file or a folder cannot be used. Exit code 1."""
