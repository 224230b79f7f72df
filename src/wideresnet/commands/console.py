"""Everything that is not a result, on stderr: bars with the time left in a terminal, lines in a log, warnings."""

from __future__ import annotations

import functools
import logging
import time
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
from wideresnet.base.format import human_seconds, printable

UNNAMED = {"rate", "what"}
"""Fields whose text says what they are."""

LOG_EVERY_S = 30.0
"""How often a line of progress is written where no bar can be drawn."""


@functools.cache
def console() -> Console:
    """Return the console for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=not Console(stderr=True).is_terminal)


def print_line(message: str, style: str | None = None) -> None:
    """Print a line of plain text on stderr; no name in it is obeyed as markup or by the terminal."""
    console().print(printable(message), style=style, markup=False)


class TerminalReporter:
    """Shows the library's progress in a terminal, see `base.progress.Reporter`; tasks that nest share one display.

    A bar disappears when its work ends: the results stay as lines of text, which an old bar would contradict.
    """

    def __init__(self, translate: Callable[[str], str] = str) -> None:
        self._translate = translate
        self._live: Progress | None = None

    @contextmanager
    def task(self, description: str, total: float | None, fields: Sequence[str]) -> Iterator[progress.Task]:
        """Show a bar with the time left, made for 80 columns."""
        if self._live is None:
            shown: list[ProgressColumn] = [TextColumn("{task.fields[texts]}")] if fields else [MofNCompleteColumn()]
            self._live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=14 if fields else 24),
                *shown,
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console(),
                transient=True,
            )
            self._live.start()
        live = self._live
        line = _Bar(live, live.add_task("", total=total, texts=""), fields)
        line.update(description=description)
        try:
            yield line
        finally:
            if len(live.tasks) > 1:
                live.remove_task(line.id)
            else:
                live.stop()
                self._live = None

    @contextmanager
    def status(self, description: str) -> Iterator[Callable[[str], object]]:
        """Show a spinner."""
        if self._live is not None:
            yield lambda _: None
            return
        with console().status(escape(printable(description))) as spinner:
            yield lambda text: spinner.update(escape(printable(text)))

    def report(self, message: str) -> None:
        """Print a line above the bars."""
        print_line(self._translate(message))


class LogReporter:
    """Shows the library's progress in a file or a pipe: a line with the time left now and then, and no bar."""

    def __init__(self, translate: Callable[[str], str] = str, now: Callable[[], float] = time.monotonic) -> None:
        self._translate, self._now = translate, now

    @contextmanager
    def task(self, description: str, total: float | None, fields: Sequence[str]) -> Iterator[progress.Task]:
        """Write a line for every `LOG_EVERY_S` that the task takes."""
        yield _LogTask(description, total, fields, self._now)

    @contextmanager
    def status(self, description: str) -> Iterator[Callable[[str], object]]:
        """Write nothing: results are reported as lines."""
        del description
        yield lambda _: None

    def report(self, message: str) -> None:
        """Write a line."""
        print_line(self._translate(message))


class _Bar:
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
        if description is not None:
            description = escape(printable(description))
        self.live.update(
            self.id, completed=completed, advance=advance, total=total, description=description,
            texts=_joined(self.texts),
        )  # fmt: skip


class _LogTask:
    """One task in a log, see `base.progress.Task`."""

    def __init__(self, description: str, total: float | None, fields: Sequence[str], now: Callable[[], float]) -> None:
        self.description, self.total, self.now = description, total, now
        self.texts = dict.fromkeys(fields, "-")
        self.completed = 0.0
        self.began: tuple[float, float] | None = None  # the time and what was done then: a resumed run began before
        self.written_at = now()

    def update(
        self,
        *,
        completed: float | None = None,
        advance: float | None = None,
        total: float | None = None,
        description: str | None = None,
        **fields: str,
    ) -> None:
        """Take note, and write a line if it is time."""
        self.texts |= fields
        self.description = self.description if description is None else description
        self.total = self.total if total is None else total
        self.completed = (self.completed if completed is None else completed) + (advance or 0)
        now = self.now()
        self.began = self.began or (now, self.completed)
        if now - self.written_at >= LOG_EVERY_S:
            self.written_at = now
            print_line("  ".join(filter(None, (self.description, *self._share(now), _joined(self.texts)))))

    def _share(self, now: float) -> Iterator[str]:
        """Say how much is done, and the time left at the speed so far."""
        began_at, before = self.began or (now, self.completed)
        if self.total:
            yield f"{100 * self.completed / self.total:.0f} %"
            if self.completed > before:
                left_s = (now - began_at) * (self.total - self.completed) / (self.completed - before)
                yield f"about {human_seconds(left_s)} left"


def _joined(texts: dict[str, str]) -> str:
    return " ".join(text if name in UNNAMED else f"{name} {text}" for name, text in texts.items())


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record), style="yellow")


def show_progress(translate: Callable[[str], str] = str) -> None:
    """Show the library's progress and warnings in this process from now on.

    Args:
        translate: puts a message in the words of the command line, see `translate.translator`.
    """
    reporter = TerminalReporter if console().is_terminal else LogReporter
    progress.set_reporter(reporter(translate))
    log = logging.getLogger("wideresnet")
    if not any(isinstance(handler, _Warnings) for handler in log.handlers):
        log.addHandler(_Warnings(logging.WARNING))
        log.propagate = False


def hide_progress() -> None:
    """Stay silent from now on, as all but the first of several processes do."""
    progress.set_reporter(None)
    logging.getLogger("wideresnet").handlers.clear()
    console().quiet = True
