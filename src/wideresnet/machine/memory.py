"""Memory of the process and of the device: in use, at the peak, available."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def peak_memory_mib(device: str) -> float:
    """Peak since the last reset: of PyTorch's allocations on a GPU, of the whole process on a CPU; MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:  # rather than getrusage, which may give the peak of the program that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step, instead of handing it back and having it zeroed page by page."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            no_mmap, no_trim = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
            for setting in (no_mmap, no_trim):
                ctypes.CDLL(None).mallopt(*setting)


def reset_peak_memory(device: str) -> bool:
    """Let the peak start again from what is held now; False where the system does not allow it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # what `keep_memory` keeps is not in use
            ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def memory_in_use_bytes(device: str) -> int:
    """Memory held now: by PyTorch's tensors on a GPU, by the whole process on a CPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux: the peak so far is the best that is known
        return int(peak_memory_mib(device) * 2**20)


def available_memory_bytes(device: str) -> int:
    """Memory that can be had now, within the limits of the container; 0 where the system does not say."""
    if device == "cuda":  # what PyTorch has reserved and does not use can be had too
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 2**10
    except (OSError, StopIteration):
        return 0
    return max(1, min([available, *_left_in_cgroups(Path("/"))]))


def _left_in_cgroups(root: Path) -> list[int]:
    """Bytes left under the memory limit of each control group that this process is in, file cache counted as free.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    try:
        entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in entries:
        if controllers == "":  # version 2
            mount, limit, used, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = Path(path.lstrip("/"))
        for place in (root / mount / group, *(root / mount / parent for parent in group.parents)):
            try:
                most, now = int((place / limit).read_text()), int((place / used).read_text())
                lines = (place / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # no limit there ("max"), or a path of outside the container
                continue
            left.append(most - now + sum(int(n) for key, n in map(str.split, lines) if key == cache))
    return left
