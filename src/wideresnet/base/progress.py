"""Progress of long work, for whoever wants to show it. The library calls these functions; by default they do nothing.

A command shows progress by installing a `Reporter` with `set_reporter`. Everything below the commands only calls
`track`, `task`, `status` and `report`, and stays silent in a notebook, a test or a worker process:

    for image in progress.track(images, "decoding"):
        ...

    with progress.task("epoch 1/200", total=78_200, fields=("loss", "error", "rate")) as epoch:
        epoch.update(completed=391, loss="0.123", error="4.5 %", rate="1,234 images/s")
        with progress.task("evaluating", total=10_000) as evaluating:  # a second line while the first one stays
            evaluating.update(advance=500)

    with progress.status("measuring the fastest configuration") as tell:
        tell("PyTorch's kernels, round 1 of 3")

    progress.report("epoch 1  loss 1.234  test error 45.67 %")

Warnings and notes for a log go through `logging`, not through this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")

# `track` updates its task at most this often: items can take 0.1 ms each, less than an update of a terminal
_UPDATE_EVERY_S = 0.1


class Task(Protocol):
    """One line of progress, from the start of its `with` block to the end."""

    def update(
        self,
        *,
        completed: float | None = None,
        advance: float | None = None,
        total: float | None = None,
        description: str | None = None,
        **fields: str,
    ) -> None:
        """Bring the line up to date; what is not given stays as it is. Callable from any thread.

        Args:
            completed: amount of work done so far.
            advance: amount of work done since the last update, instead of `completed`.
            total: amount of work in all, if it has changed.
            description: what is being done now.
            fields: new texts of the fields that the task was created with, e.g. `loss="0.123"`.
        """
        ...


class Reporter(Protocol):
    """What a command installs to show progress. Tasks may nest; calls may come from any thread."""

    def task(self, description: str, total: float | None, fields: Sequence[str]) -> AbstractContextManager[Task]:
        """Show a line of progress while the block runs; arguments as for the function `task`."""
        ...

    def status(self, description: str) -> AbstractContextManager[Callable[[str], object]]:
        """Show that something of unknown length is under way while the block runs; yields what changes the text."""
        ...

    def report(self, message: str) -> None:
        """Show a line that stays, above all lines of progress. Plain text, not markup."""
        ...


class _SilentTask:
    def update(self, **_: object) -> None:
        pass


class Silent:
    """A reporter that shows nothing."""

    def task(self, description: str, total: float | None, fields: Sequence[str]) -> AbstractContextManager[Task]:  # noqa: ARG002
        return nullcontext(_SilentTask())

    def status(self, description: str) -> AbstractContextManager[Callable[[str], object]]:  # noqa: ARG002
        return nullcontext(lambda _: None)

    def report(self, message: str) -> None:
        pass


_reporter: Reporter = Silent()


def set_reporter(reporter: Reporter | None) -> Reporter:
    """Install the reporter of this process; None silences progress.

    Returns:
        The reporter installed before, so that a caller can restore it.
    """
    global _reporter
    before, _reporter = _reporter, reporter or Silent()
    return before


def task(description: str, total: float | None = None, fields: Sequence[str] = ()) -> AbstractContextManager[Task]:
    """Open a line of progress. Use it as a context manager that yields a `Task`.

    Args:
        description: what is being done, e.g. "epoch 3/200".
        total: amount of work in all; None if unknown.
        fields: names of texts shown next to the bar, in this order and as "name text"; "-" until the first update.
    """
    return _reporter.task(description, total, fields)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a line of progress.

    Args:
        iterable: what to iterate over.
        description: what is being done, e.g. "decoding images".
        total: number of items, if the iterable does not know its own length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with task(description, total) as line:
        shown_at, completed = time.monotonic(), 0
        for completed, item in enumerate(iterable, start=1):
            yield item
            if (now := time.monotonic()) - shown_at >= _UPDATE_EVERY_S:
                line.update(completed=completed)
                shown_at = now
        line.update(completed=completed)


def status(description: str) -> AbstractContextManager[Callable[[str], object]]:
    """Say that work of unknown length is under way. Use it as a context manager that yields what changes the text.

    Args:
        description: what is being done, e.g. "measuring the fastest configuration".
    """
    return _reporter.status(description)


def report(message: str) -> None:
    """Show a line that stays, such as the result of an epoch.

    Args:
        message: plain text in one line.
    """
    _reporter.report(message)
