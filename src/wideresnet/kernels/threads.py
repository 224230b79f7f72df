"""How many threads the kernels use, next to PyTorch's own."""

from __future__ import annotations

import functools
import os
import sys
import threading

import torch

GRAIN = 32_768  # elements: PyTorch shares an operation among threads from here on (ATen, TensorIterator.h, GRAIN_SIZE)


def num_threads() -> int:
    """Return the number of threads that the kernels use, which is PyTorch's."""
    number = torch.get_num_threads()
    if number > 1:
        _shorten_spinning()
    return number


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
    number, started = torch.get_num_threads(), threading.Event()

    def start_team_and_sleep() -> None:
        torch.set_num_threads(number)
        torch.ones(number * GRAIN).add_(1)
        started.set()
        threading.Event().wait()

    threading.Thread(target=start_team_and_sleep, name="wideresnet: second team", daemon=True).start()
    started.wait()
