"""Work on images in other processes, in order: PyTorch's DataLoader, with workers that end when this process does."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from wideresnet.base.errors import WRNError
from wideresnet.data.feeds.decoder import one_large_image_at_a_time
from wideresnet.data.images import silent_pillow
from wideresnet.machine.cpu import usable_cpus

AHEAD = 4
"""Tasks that each worker may be ahead of what is taken, which bounds the memory. Own choice."""

MAX_WORKERS = 16
"""Unless asked for more. Own choice."""

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def chosen_workers(asked: int | None, device: str, num_ranks: int) -> int:
    """Return the number of processes that decode for this one.

    Args:
        asked: by the recipe; None to choose.
        device: on which the network is; on a CPU most of the CPUs are left to it.
        num_ranks: processes that train together on this machine.
    """
    if asked is not None:
        return asked
    cpus = usable_cpus() // num_ranks
    return max(1, min(MAX_WORKERS, cpus if device == "cuda" else cpus // 4))


class InOrder(Iterator[Any]):
    """The results of tasks, in order, computed ahead by workers.

    Args:
        work: `work[task]` is a task's result; it is copied to the workers.
        tasks: without end or with one; taken as they are needed.
        workers: how many; 0 computes in this process.
    """

    def __init__(self, work: Dataset[Any], tasks: Iterable[Any], workers: int) -> None:
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._quiet = silent_pillow() if workers == 0 else None
        if self._quiet:
            self._quiet.__enter__()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks with threads, PyTorch of more workers than CPUs; both are known
            warnings.simplefilter("ignore")
            loader = DataLoader(
                work,
                sampler=tasks,  # type: ignore[arg-type]  # any iterable
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=AHEAD if workers else None,
                worker_init_fn=_Start(context.Lock()) if workers else None,
                multiprocessing_context=context if workers else None,
                generator=torch.Generator(),  # else the global one would draw a seed for the workers
            )
            self._results: Iterator[Any] | None = iter(loader)

    def __next__(self) -> Any:
        if self._results is None:
            raise StopIteration
        with dead_workers_told():
            return next(self._results)

    def close(self) -> None:
        """End the workers."""
        if self._quiet:
            self._quiet.__exit__(None, None, None)
            self._quiet = None
        results, self._results = self._results, None
        if shutdown := getattr(results, "_shutdown_workers", None):
            shutdown()


@contextmanager
def dead_workers_told() -> Iterator[None]:
    """Say in one line that a worker was killed, wherever PyTorch notices it."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(". ")
        raise WRNError(
            f"{reason}: a process that decodes images has ended, probably for lack of memory; use fewer workers= and "
            "continue the run"
        ) from None


class _Start:
    """What a worker does first."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def __call__(self, number: int) -> None:
        del number
        for kind in (signal.SIGINT, signal.SIGTERM):  # to the whole group; this process's parent decides when to stop
            signal.signal(kind, signal.SIG_IGN)
        if sys.platform == "linux":  # a parent that is killed leaves no orphans; elsewhere PyTorch looks for it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        torch.set_num_threads(1)
        one_large_image_at_a_time(self.lock)
        silent_pillow().__enter__()


def _as_it_is(result: Any) -> Any:
    return result


class FedByWorkers:
    """A feed whose images are decoded by workers while it is `running`, and what a checkpoint keeps of it.

    Attributes:
        results: the work under way; None if there is none.
        waited_s: seconds that steps have waited for images.
        unreadable: files that could not be read -> why.
    """

    results: InOrder | None
    waited_s: float
    unreadable: dict[str, str]

    @contextmanager
    def running(self) -> Iterator[None]:
        """End the workers after the block, and say in one line if one was killed in it."""
        try:
            with dead_workers_told():  # PyTorch notices it anywhere
                yield
        finally:
            self.close()

    def close(self) -> None:
        """End the workers."""
        results, self.results = self.results, None
        if results is not None:
            results.close()

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; `restore` is the inverse."""
        return {"waited_s": self.waited_s, "unreadable": self.unreadable}

    def restore(self, values: dict[str, Any]) -> None:
        """Continue from what `progress` returned."""
        self.waited_s, self.unreadable = values["waited_s"], dict(values["unreadable"])
