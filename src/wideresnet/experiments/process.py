"""A worker as its parent sees it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
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
        gpu: str | None = None,
        python: str | Path = sys.executable,
        start_child: Callable[..., Child | RemoteChild] = Child,
    ) -> None:
        """Start the process.

        Args:
            seed: the seed.
            job: what `worker.main` reads, without `num_threads`.
            log: the file to which its output is appended.
            num_threads: threads of the process; None for as many as it takes when it runs alone.
            gpu: the only GPU that it sees, see `machine.device.visible_gpus`; None for those of this process.
            python: the interpreter.
            start_child: starts it, here or elsewhere; arguments as for `Child`.
        """
        self.seed = seed
        self.report: Report | None = None
        self.message = ""
        variables = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        if num_threads is not None and num_threads < torch.get_num_threads():
            variables["OMP_NUM_THREADS"] = str(num_threads)  # NumPy heeds it, too
        self._child = start_child(
            "wideresnet.experiments.worker",
            {**job, "num_threads": num_threads},
            log=log,
            variables=variables,
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


class OverGPUs:
    """Starts workers as `Worker` does, each on the GPU that has the fewest of them.

    Args:
        gpus: as `machine.device.visible_gpus` returns them.
    """

    def __init__(self, gpus: Sequence[str], *, start: Callable[..., Worker] = Worker) -> None:
        self._workers: dict[str, list[Worker]] = {gpu: [] for gpu in gpus}
        self._start = start

    def __call__(self, seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Worker:
        """Start a worker; arguments as for `Worker`."""
        for gpu, workers in self._workers.items():
            self._workers[gpu] = [worker for worker in workers if worker.poll() is None]
        gpu = min(self._workers, key=lambda gpu: len(self._workers[gpu]))
        worker = self._start(seed, job, log, num_threads, gpu=gpu)
        self._workers[gpu].append(worker)
        return worker
