"""Ctrl-C and SIGTERM as a request that the loop honours after the step under way."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from wideresnet.base.errors import WRNError


class Interrupted(WRNError):
    """The run was asked to stop and can go on later; exit code 130, as shells have it for Ctrl-C."""

    exit_code = 130


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `asked`; a second one ends the program at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
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
