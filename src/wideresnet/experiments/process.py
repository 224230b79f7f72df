"""A worker as its parent sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from wideresnet.experiments.concurrency import Report, report_now


class Worker:
    """The process of one seed.

    Attributes:
        seed: the seed.
        report: how far it is; None before its first step.
        message: what it said when it ended, "" for nothing.
    """

    def __init__(self, seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> None:
        """
        Args:
            job: what `worker.main` reads.
            log: what it prints is added to this file.
            num_threads: threads of the process, as by OMP_NUM_THREADS; None: as many as it would have alone.
        """
        self.seed = seed
        self.report: Report | None = None
        self.message = ""
        # the same packages as here, wherever these were found
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        if num_threads is not None and num_threads < torch.get_num_threads():  # for NumPy too
            env["OMP_NUM_THREADS"] = str(num_threads)
        command = [sys.executable, "-P", "-m", "wideresnet.experiments.worker"]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=env, text=True,
                start_new_session=True,  # Ctrl-C in the terminal goes to the parent alone, which tells the workers once
            )  # fmt: skip
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already, as its exit code will tell
            self._process.stdin.write(json.dumps({**job, "num_threads": num_threads}) + "\n")
            self._process.stdin.flush()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def poll(self) -> int | None:
        """The exit code, as `subprocess.Popen.poll` has it; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._listener.join()
            self.stop()
        return code

    def stop(self) -> None:
        """Ask it to save a checkpoint and end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once; its last checkpoint is whole."""
        self._process.kill()
        self._process.wait()
        self.poll()

    def problem(self, code: int) -> str:
        """Why it failed, in one line."""
        return self.message or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                if "message" in said:
                    self.message = said["message"]
                else:
                    self.report = report_now(**said)
