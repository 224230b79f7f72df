"""Standard streams that cannot end a run: missing ones go nowhere, and a display that fails falls silent.

A command may be started without a terminal, with closed streams, or with a full disk behind them. What it prints on
standard error is a display; losing it must not lose the work. What it prints on standard output is the result, so a
failure there is reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from wideresnet.base.format import printable


def open_missing_streams() -> None:
    """Open the null device for standard streams that are closed, so that no other file takes their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.dup2(null, number) if null != number else os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # not by its number: by now that may belong to a file that something else has opened
            stream = open(os.devnull, mode, errors="backslashreplace" if mode == "w" else None)  # noqa: SIM115, PTH123
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def keep_display_alive() -> None:
    """Let standard error fall silent, rather than raise, once it cannot be written: a full disk, a lost terminal."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None) or getattr(sys.stderr, "buffer", None)
    if isinstance(raw, io.FileIO):  # not the console of Windows, and not what a test has put there
        sys.stderr = _text(_Display(raw.fileno(), "w", closefd=False), sys.stderr.encoding)


def log_stream(number: int) -> TextIO:
    """Return a stream for a log at a file descriptor: it never fails, and no control character reaches the file."""
    return _text(_Display(number, "w", closefd=False), "utf-8", _Log)


def silence(number: int) -> None:
    """Point a file descriptor at the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Keep what other libraries print on standard output, from Python and from C++, off the result of the command."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        silence(1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).fflush(None)  # what C++ has printed and not yet written
        os.dup2(kept, 1)
        os.close(kept)


class _Display(io.FileIO):
    """Writes as long as it can. What follows a failure goes nowhere."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        try:
            written = super().write(data)
        except OSError:
            silence(self.fileno())
            written = None
        # None: also what a pipe says that nobody empties and that must not block; a display may lose a line
        return memoryview(data).nbytes if written is None else written


class _Log(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(printable(text, keep="\n\t"))
        return len(text)


def _text(raw: io.FileIO, encoding: str, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(raw)
    return kind(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)
