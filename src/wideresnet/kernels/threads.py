"""How many threads the kernels use, next to PyTorch's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_of_kernels = threading.local()


def num_threads() -> int:
    """Return the number of threads that the kernels use: PyTorch's, also within `pytorch_on_one`."""
    return getattr(_of_kernels, "number", None) or torch.get_num_threads()


@contextlib.contextmanager
def pytorch_on_one(applies: bool = True) -> Iterator[None]:
    """Run PyTorch's own operations on one thread, and the kernels on as many as before.

    For work of few milliseconds. PyTorch's threads spin for milliseconds after each operation, on the cores that the
    kernels need, and each operation waits for all of them, also for one that the system has not scheduled.

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
