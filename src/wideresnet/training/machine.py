"""What the run runs on: the device, the precision that is fastest there, and how it is described in a record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import sys
import time
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


def synchronise(device: str) -> None:
    """Wait for the device, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_mib(device: str) -> float:
    """Peak so far: of PyTorch's allocations on a GPU, of the whole process on a CPU; MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def memory_in_use_bytes(device: str) -> int:
    """Memory held now: by PyTorch's tensors on a GPU, by the whole process on a CPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux: the peak so far is the best that is known
        return int(peak_memory_mib(device) * 2**20)


def available_memory_bytes(device: str) -> int:
    """Memory that can be had now; 0 where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


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
