"""What a run ran on, for its record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy
import torch

from wideresnet.base.checkout import commit
from wideresnet.base.version import __version__
from wideresnet.machine.cpu import usable_cpus


def describe(device: str, command: Sequence[str] | str | None = None) -> dict[str, Any]:
    """Describe command, date, commit, hardware and versions for `env.json`.

    Args:
        device: "cpu" or "cuda".
        command: what was typed, as words or as one line; None if the run was started from Python.

    Returns:
        Values for JSON. The folder of the program that was typed is left out: a record tells no path of the machine
        that the user has not typed as an argument.
    """
    versions = {
        "wideresnet": __version__,
        "torch": str(torch.__version__),  # with its build, e.g. +cpu, which the package's metadata leaves out
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": numpy.__version__,
    }
    return {
        "command": _command_line(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        **versions,
    }


def hardware_name(device: str) -> str:
    """Name the processor that computes and how many there are, e.g. "8 x AMD EPYC"."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} x {_cpu_name()}"


def _command_line(command: Sequence[str] | str | None) -> str:
    """The command in one line, its program without a folder."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command or ())
    except ValueError:  # an unbalanced quotation mark
        words = str(command).split()
    if not words:
        return "python"
    path = PureWindowsPath(words[0])  # which reads the slashes of other systems, too
    is_wrn = path.stem == "wrn" or path.parts[-2:] == ("wideresnet", "__main__.py")  # wrn.exe, python -m wideresnet
    return shlex.join(["wrn" if is_wrn else path.name, *words[1:]])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
