"""How many threads the kernels use, next to PyTorch's own."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator

import torch

_of_kernels = threading.local()
GRAIN = 32_768  # elements: PyTorch shares an operation among threads from here on (ATen, TensorIterator.h, GRAIN_SIZE)


def num_threads() -> int:
    """Return the number of threads that the kernels use: PyTorch's, also within `pytorch_on_one`."""
    number = _number()
    if number > 1:
        _shorten_spinning()
    return number


def _number() -> int:
    return getattr(_of_kernels, "number", None) or torch.get_num_threads()


@contextlib.contextmanager
def pytorch_on_one(applies: bool = True) -> Iterator[None]:
    """Run PyTorch's own operations on one thread, and the kernels on as many as before.

    For operations too small to share: each waits for all of PyTorch's threads, also for one that the system has not
    scheduled.

    Args:
        applies: False for no effect.
    """
    before = torch.get_num_threads()
    if not applies or before == 1 or getattr(_of_kernels, "number", None):
        yield
        return
    _of_kernels.number = before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _of_kernels.number = None


@functools.cache
def _shorten_spinning() -> None:
    """Let PyTorch's threads spin for microseconds, not milliseconds, after each operation: the kernels need the cores.

    Commands have set an environment variable before PyTorch was loaded (`machine.cpu.export_short_spinning`). Later,
    GNU's OpenMP only spins less if it has more threads than there are processors. So a second team is started, which
    sleeps for good.

    Source: libgomp manual, GOMP_SPINCOUNT.
    """
    if sys.platform != "linux" or not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}.isdisjoint(os.environ):
        return
    number, started = _number(), threading.Event()

    def start_team_and_sleep() -> None:
        torch.set_num_threads(number)
        torch.ones(number * GRAIN).add_(1)
        started.set()
        threading.Event().wait()

    threading.Thread(target=start_team_and_sleep, name="wideresnet: second team", daemon=True).start()
    started.wait()
