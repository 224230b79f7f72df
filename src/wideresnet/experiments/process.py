"""A worker as its parent sees it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wideresnet.base.child import Child, exit_text
from wideresnet.base.remote import RemoteChild
from wideresnet.experiments.concurrency import Report, report_now


class Worker:
    """The process of one seed.

    Attributes:
        seed: the seed.
        report: the latest report; None before the first step.
        message: what it said when it ended; "" if it said nothing.
        began: what happened to it when it was created, for a message.
    """

    def __init__(
        self,
        seed: int,
        job: dict[str, Any],
        log: Path,
        num_threads: int | None,
        *,
        python: str | Path = sys.executable,
        start_child: Callable[..., Child | RemoteChild] = Child,
    ) -> None:
        """Start the process.

        Args:
            seed: the seed.
            job: what `worker.main` reads, without `num_threads`.
            log: the file to which its output is appended.
            num_threads: threads of the process; None for as many as it takes when it runs alone.
            python: the interpreter.
            start_child: starts it, here or elsewhere; arguments as for `Child`.
        """
        self.seed = seed
        self.report: Report | None = None
        self.message = ""
        is_limited = num_threads is not None and num_threads < torch.get_num_threads()
        self._child = start_child(
            "wideresnet.experiments.worker",
            {**job, "num_threads": num_threads},
            log=log,
            variables={"OMP_NUM_THREADS": str(num_threads)} if is_limited else None,  # NumPy heeds it, too
            own_session=True,  # Ctrl-C goes to the parent alone, which tells the workers once
            python=python,
        )
        self.began = self._child.began
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while the process runs."""
        code = self._child.poll()
        if code is not None:
            self._listener.join()  # its last words have been heard
            self._child.close()
        return code

    def stop(self) -> None:
        """Ask the process to save a checkpoint and end."""
        self._child.stop()

    def kill(self) -> None:
        """End the process at once. Its last checkpoint is complete."""
        self._child.kill()
        self.poll()

    def problem(self, code: int) -> str:
        """Say in one line why the process failed."""
        return self.message or exit_text(code)

    def _listen(self) -> None:
        for said in self._child:
            if "message" in said:
                self.message = said["message"]
            else:
                self.report = report_now(**said)
