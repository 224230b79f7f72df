"""The terminal: one console on stderr, progress bars with the time left, warnings of the library."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from wideresnet.base import progress

UNNAMED = {"rate", "what"}
"""Fields whose text says what they are."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue in silence if nobody reads stderr anymore: losing the display must not lose the run."""
        self.quiet = True


@functools.cache
def console() -> Console:
    """Return the console for everything that is not a result; what it prints is text, not markup, unless asked."""
    return _Console(stderr=True, highlight=False, soft_wrap=not Console(stderr=True).is_terminal)


class TerminalReporter:
    """Shows the library's progress on stderr, see `base.progress.Reporter`; tasks that nest share one display."""

    def __init__(self, translate: Callable[[str], str] = str) -> None:
        self._translate = translate
        self._live: Progress | None = None

    @contextmanager
    def task(self, description: str, total: float | None, fields: Sequence[str]) -> Iterator[progress.Task]:
        """Show a bar with the time left, made for 80 columns. Tasks that overlap share one display."""
        if self._live is None:
            shown: list[ProgressColumn] = [TextColumn("{task.fields[texts]}")] if fields else [MofNCompleteColumn()]
            self._live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=14 if fields else 24),
                *shown,
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console(),
            )
            self._live.start()
        live = self._live
        line = _Line(live, live.add_task(description, total=total, texts=""), fields)
        line.update()
        try:
            yield line
        finally:
            if len(live.tasks) > 1:
                live.remove_task(line.id)
            else:  # the last line of a display stays
                live.stop()
                self._live = None

    @contextmanager
    def status(self, description: str) -> Iterator[Callable[[str], object]]:
        """Show a spinner."""
        if self._live is not None:
            yield lambda _: None
            return
        with console().status(escape(description)) as spinner:
            yield lambda text: spinner.update(escape(text))

    def report(self, message: str) -> None:
        """Print a line above the bars."""
        console().print(self._translate(message), markup=False)


class _Line:
    """One task of a live display, see `base.progress.Task`."""

    def __init__(self, live: Progress, task: TaskID, fields: Sequence[str]) -> None:
        self.live, self.id = live, task
        self.texts = dict.fromkeys(fields, "-")

    def update(
        self,
        *,
        completed: float | None = None,
        advance: float | None = None,
        total: float | None = None,
        description: str | None = None,
        **fields: str,
    ) -> None:
        """Bring the line up to date."""
        self.texts |= fields
        named = (text if name in UNNAMED else f"{name} {text}" for name, text in self.texts.items())
        self.live.update(
            self.id, completed=completed, advance=advance, total=total, description=description, texts=" ".join(named)
        )


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), style="yellow", markup=False)


def show_progress(translate: Callable[[str], str] = str) -> None:
    """Show the library's progress and warnings in this process from now on.

    Args:
        translate: puts a message in the words of the command line, see `translate.translator`.
    """
    progress.set_reporter(TerminalReporter(translate))
    log = logging.getLogger("wideresnet")
    if not any(isinstance(handler, _Warnings) for handler in log.handlers):
        log.addHandler(_Warnings(logging.WARNING))
        log.propagate = False


def hide_progress() -> None:
    """Stay silent from now on, as all but the first of several processes do."""
    progress.set_reporter(None)
    logging.getLogger("wideresnet").handlers.clear()
    console().quiet = True
