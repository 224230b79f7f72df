"""What the run runs on: the device, the precision that is fastest there, and how it is described in a record."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from wideresnet.errors import UsageError


def pick_device(wanted: str) -> str:
    """ "cpu" or "cuda"; "auto" takes cuda where there is one.

    Raises:
        UsageError: cuda is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise UsageError("device cuda: PyTorch sees no CUDA device here; use --device cpu")
    return "cuda" if has_cuda and wanted != "cpu" else "cpu"


def pick_precision(wanted: str, device: str) -> str:
    """ "fp32" or "bf16"; "auto" measures one wide convolution both ways and takes bf16 where it is 1.2 times as fast.

    A measurement, not a processor's name: bf16 loses on CPUs without matrix units for it, and wins on GPUs with them.

    Raises:
        UsageError: bf16 is asked for on a GPU that cannot.
    """
    if device == "cuda" and wanted == "bf16" and not torch.cuda.is_bf16_supported():
        raise UsageError("precision bf16: this GPU has no bf16; start with --precision fp32, or use another device")
    if wanted != "auto":
        return wanted
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    return "bf16" if _conv_seconds(torch.float32, device) > 1.2 * _conv_seconds(torch.bfloat16, device) else "fp32"


def _conv_seconds(dtype: torch.dtype, device: str) -> float:
    """Seconds of 3x3 convolutions of 160 channels, the best of six; enough of them to hide a GPU's launches."""
    num_images, side_px, num_convs = (128, 32, 10) if device == "cuda" else (8, 16, 1)
    images, weight = (
        torch.ones(*shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        for shape in ((num_images, 160, side_px, side_px), (160, 160, 3, 3))
    )
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):
            synchronise(device)
            start = time.perf_counter()
            for _ in range(num_convs):
                F.conv2d(images, weight, padding=1)
            synchronise(device)
            best = min(best, time.perf_counter() - start)
    return best


def make_deterministic(wanted: bool) -> None:
    """Let PyTorch take only algorithms whose bits do not depend on a GPU's timing, or any again."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product comes
    torch.use_deterministic_algorithms(wanted)


def synchronise(device: str) -> None:
    """Wait for the device, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()


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


def describe(device: str) -> dict[str, Any]:
    """Hardware, versions and command, for `env.json`."""
    versions = {name: importlib.metadata.version(name) for name in ("wideresnet", "torch", "torchvision", "numpy")}
    versions["torch"] = str(torch.__version__)  # with its build, e.g. +cpu, which the package's metadata leaves out
    started = Path(sys.argv[0])
    is_wrn = started.name == "wrn" or started.parts[-2:] == ("wideresnet", "__main__.py")
    return {
        "command": " ".join(["wrn", *map(shlex.quote, sys.argv[1:])]) if is_wrn else "python",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        **versions,
    }


def hardware_name(device: str) -> str:
    """The processor that computes, and how many of it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} x {_cpu_name()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
