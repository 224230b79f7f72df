"""Progress bars with the time left, on stderr, so that stdout stays free for results."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read stderr has gone: go on in silence, since losing the display must not lose the run."""
        self.quiet = True


@functools.cache
def console() -> Console:
    """The one console for everything that is not a result; what it prints is text, not markup, unless asked."""
    return _Console(stderr=True, highlight=False, soft_wrap=not Console(stderr=True).is_terminal)


def bar(*columns: str) -> Progress:
    """A live bar with the time left, made for 80 columns.

    Args:
        columns: what is shown of a task, e.g. "loss {task.fields[loss]}"; without any, how many of how many are done.
    """
    shown = [TextColumn(column) for column in columns] or [MofNCompleteColumn()]
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=14 if columns else 24),
        *shown,
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console(),
    )


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar.

    Args:
        description: what is being done, e.g. "decoding train".
        total: number of items, where the iterable does not know its own length.
    """
    with bar() as progress:
        yield from progress.track(iterable, total=total, description=description)
