"""Memory of the process and of the device: in use, at the peak, available.

On Linux they are read from `proc` and from the control groups; `root` is the folder that holds both.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from pathlib import Path

import torch

from wideresnet.machine.host_memory import available_host_memory_bytes

ROOT = Path("/")

# malloc.h of glibc: never take memory by mmap, never hand the top of the heap back
_M_MMAP_MAX, _NO_MMAP = -4, 0
_M_TRIM_THRESHOLD, _NO_TRIM = -1, 2**31 - 1


def peak_memory_mib(device: str, root: Path = ROOT) -> float:
    """Return the peak since the last reset.

    Args:
        device: "cuda" for PyTorch's allocations on the GPU, "cpu" for the whole process.
        root: the folder that holds `proc`.

    Returns:
        MiB; 0 if the system does not say (Windows).
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError, StopIteration):  # first, because getrusage may give the peak of the parent process
        lines = (root / "proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step; else every page comes back zeroed by the kernel, at a cost."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            for setting in ((_M_MMAP_MAX, _NO_MMAP), (_M_TRIM_THRESHOLD, _NO_TRIM)):
                ctypes.CDLL(None).mallopt(*setting)


def reset_peak_memory(device: str, root: Path = ROOT) -> bool:
    """Start the peak again from what is in use now.

    Args:
        device: "cpu" or "cuda".
        root: the folder that holds `proc`.

    Returns:
        Whether the system can do this.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # memory kept by `keep_memory` is not in use
            ctypes.CDLL(None).malloc_trim(0)
    try:
        (root / "proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def memory_in_use_bytes(device: str, root: Path = ROOT) -> int:
    """Return the memory held now: by PyTorch's tensors on a GPU, by the whole process on a CPU.

    Args:
        device: "cpu" or "cuda".
        root: the folder that holds `proc`.

    Returns:
        Bytes; on a system other than Linux the peak so far, which is the best known bound.
    """
    if device == "cuda":
        return torch.cuda.memory_allocated()
    try:
        return int((root / "proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return int(peak_memory_mib(device, root) * 2**20)


def available_memory_bytes(device: str, root: Path = ROOT) -> int:
    """Return the memory that can still be allocated, within the limits of the container.

    Args:
        device: "cpu" or "cuda".
        root: the folder that holds `proc` and `sys`.

    Returns:
        Bytes; 0 if the system does not say (macOS, Windows).
    """
    if device == "cuda":  # what PyTorch has reserved and does not use is available to it, too
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return available_host_memory_bytes(root)
