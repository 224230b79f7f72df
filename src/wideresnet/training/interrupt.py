"""Ctrl-C and SIGTERM as a request that the loop honors after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from wideresnet.base.errors import WRNError


class Interrupted(WRNError):
    """The run was asked to stop and can be resumed; exit code 130, as in shells after Ctrl-C."""

    exit_code = 130


class StopRequest:
    """Within its block the first SIGINT or SIGTERM only sets `asked`; a second one ends the program at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
