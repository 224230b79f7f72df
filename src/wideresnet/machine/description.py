"""What the run runs on, for its record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe(device: str, command: str | None = None) -> dict[str, Any]:
    """Hardware, versions and command, for `env.json`."""
    versions = {name: importlib.metadata.version(name) for name in ("wideresnet", "torch", "torchvision", "numpy")}
    versions["torch"] = str(torch.__version__)  # with its build, e.g. +cpu, which the package's metadata leaves out
    return {
        "command": command or "python",
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
