"""Limits on files of unknown origin: what they declare must fit in memory before any of it is allocated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from wideresnet.base.errors import DataError, WRNError
from wideresnet.base.format import human_bytes
from wideresnet.machine.host_memory import available_host_memory_bytes


def check_fits(num_bytes: float, what: str, fix: str) -> None:
    """Check that the machine has as much memory left as something needs.

    Args:
        num_bytes: what it needs at its peak.
        what: the subject of the message, in the plural: "a.npz: its arrays".
        fix: the end of the message.

    Raises:
        DataError: it does not fit. Nothing is raised where the system does not tell its memory.
    """
    available = available_host_memory_bytes()
    if available and num_bytes > available:
        needed, left = human_bytes(num_bytes), human_bytes(available)
        raise DataError(f"{what} need {needed} of memory, available are {left}; {fix}")


@contextmanager
def damage_in_one_line(problem: str) -> Iterator[None]:
    """Turn any error of a library that reads a damaged file into one line; parsers raise almost every type of error.

    Args:
        problem: the beginning of the message, with the name of the file.

    Raises:
        DataError: in place of another error.
    """
    try:
        yield
    except WRNError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{problem} ({reason[:_MAX_REASON]})") from error


_MAX_REASON = 300  # some parsers quote the whole file


class ByteBudget:
    """Memory that threads share: who wants more than is left waits, so that many large images do not add up.

    Args:
        total_bytes: what may be held at once; a single wish for more is granted alone.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = self._left = total_bytes
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Hold memory during a block."""
        wish = min(num_bytes, self._total)
        with self._freed:
            self._freed.wait_for(lambda: self._left >= wish)
            self._left -= wish
        try:
            yield
        finally:
            with self._freed:
                self._left += wish
                self._freed.notify_all()
