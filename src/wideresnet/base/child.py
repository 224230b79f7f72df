"""Child processes of this package: a child is given one JSON document and answers in JSON lines.

The parent writes the document as the first line of the child's standard input and keeps that input open for as long as
it wants the child. The end of input tells the child to stop; it also comes if the parent dies, however it dies. The
child's answers are JSON objects, one per line of its standard output. Its standard error is free text, kept in a file.

`Child` is the parent's side, `Parent` the child's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from wideresnet.base.streams import log_stream

TAIL_BYTES = 2**16
"""How much of the end of standard error is searched for its last line: a line of text is shorter."""


class Child:
    """A running child process. As a context manager it is waited for at the end, and killed if the block fails.

    Ctrl-C in a terminal reaches the child as well as the parent, unless `own_session` is set.
    """

    began = "started"

    def __init__(
        self,
        module: str,
        document: Any,
        *,
        log: Path | None = None,
        variables: Mapping[str, str] | None = None,
        own_session: bool = False,
        python: str | Path = sys.executable,
    ) -> None:
        """Start `python -m module` with the packages of this process and give it the document.

        Args:
            module: its full name, e.g. "wideresnet.experiments.worker".
            document: anything that JSON can hold.
            log: the file to which standard error is appended; None for a temporary one.
            variables: environment variables to add to those of this process.
            own_session: keep Ctrl-C in the terminal from the child, so that the parent alone decides.
            python: the interpreter.
        """
        # the packages of this process, wherever it found them; -P: the current folder only if it is among them
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._stderr: IO[bytes] = tempfile.TemporaryFile() if log is None else log.open("ab+")  # noqa: SIM115
        self._begin = self._stderr.seek(0, os.SEEK_END)
        self._process = subprocess.Popen(
            [str(python), "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": path, **(variables or {})},
            text=True,
            start_new_session=own_session,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        with suppress(BrokenPipeError):  # it has died already, as its exit code will tell
            self._stdin.write(json.dumps(document) + "\n")
            self._stdin.flush()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the child's answers as they come, until it has closed its standard output."""
        for line in self._stdout:
            if line.startswith("{"):  # anything else was printed before the child took over its standard output
                yield json.loads(line)

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while the child runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask the child to stop, by the end of its input."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Return the exit code, negative after a signal, once the child has ended."""
        return self._process.wait()

    def close(self) -> None:
        """Stop the child, wait until it has ended and let go of its files."""
        self.stop()
        self._stdout.close()  # before waiting, so that a child with more to say does not wait for a reader
        self._process.wait()
        self._stderr.close()

    def last_stderr_line(self) -> str:
        """Return the last line with text on standard error, "" for none. Call it when the child has ended."""
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._begin, end - TAIL_BYTES))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()


def exit_text(code: int) -> str:
    """Say how a process ended, from its exit code: "exit code 7", "killed by SIGKILL"."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Parent:
    """The process that started this one. Create it once, before anything else uses standard input or output.

    Attributes:
        document: what the parent gave; None if the parent had died before.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not an answer
        sys.stdout = sys.stderr = log_stream(sys.stderr.fileno())
        self.document: Any = json.loads(sys.stdin.readline() or "null")

    def say(self, **values: object) -> None:
        """Answer with a JSON object of these values; nothing happens if the parent has died."""
        with suppress(BrokenPipeError):
            print(json.dumps(values), file=self._answers, flush=True)

    def when_gone(self, action: Callable[[], object]) -> None:
        """Call `action` in a thread once the parent has closed the input or has died."""

        def wait() -> None:
            while os.read(sys.stdin.fileno(), 4096):  # not sys.stdin.read(), which would hold a lock at exit
                pass
            action()

        threading.Thread(target=wait, daemon=True).start()
