"""How many CPUs this process may use, and what they can do. Knows no torch, which a command may not have loaded yet."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

from wideresnet.machine.cgroups import ControlGroup, control_groups

BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
"""Instructions for products in bf16, as Linux names them: Intel since Cooper Lake, AMD since Zen 4."""


SPIN_COUNT = "3000"
"""Of GNU's OpenMP: some 60 microseconds. Its own choice is 300,000 (libgomp manual, GOMP_SPINCOUNT)."""


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Read the names of the processor's instruction sets, e.g. "avx2" and "avx512_bf16".

    Args:
        root: the folder that holds `proc`.

    Returns:
        The names; empty if the system does not say (macOS, Windows).
    """
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    first = next((line for line in lines if line.startswith(("flags", "Features"))), "")  # of x86 and of Arm
    return frozenset(first.partition(":")[2].split())


def usable_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: its CPU affinity or its container's CPU quota, whichever is less.

    A quota need not be a whole number. It is rounded up: with 1.5 CPUs, two threads finish sooner than one, although
    the second one waits half of the time.

    Args:
        root: the folder that holds `proc` and `sys`.

    Returns:
        At least 1.
    """
    allowed = _affinity()
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Read the CPU quota of this process: the smallest one of its control groups and their ancestors.

    Args:
        root: the folder that holds `proc` and `sys`.

    Returns:
        Number of CPUs, e.g. 1.5; None if there is no limit, which includes macOS and Windows.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (version 1).
    """
    quotas = [quota for group in control_groups("cpu", root) if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def export_thread_limit(root: Path = Path("/"), environ: MutableMapping[str, str] = os.environ) -> None:
    """Set OMP_NUM_THREADS to the container's CPU quota: what `threads.limit_threads` does, before libraries are loaded.

    NumPy's linear algebra and PyTorch read the variable when they are loaded. Nothing changes without a quota, or if
    the user has set the variable.

    Args:
        root: the folder that holds `proc` and `sys`.
        environ: the environment to change.
    """
    if "OMP_NUM_THREADS" not in environ and (threads := usable_cpus(root)) < _affinity():
        environ["OMP_NUM_THREADS"] = str(threads)


def export_short_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let PyTorch's threads spin for a fraction of a millisecond after each operation, before libraries are loaded.

    They wait for the next operation on the cores that the threads of the kernels need meanwhile: for milliseconds by
    default, if OpenMP is GNU's, as in PyTorch for Linux. Nothing changes if the user has set how they wait.

    Args:
        environ: the environment to change.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def describe_quota(num_threads: int, root: Path = Path("/")) -> str | None:
    """Say in one line how many threads run under a CPU quota; None if no quota limits this process.

    Args:
        num_threads: threads that are used.
        root: the folder that holds `proc` and `sys`.
    """
    quota, allowed = cpu_quota(root), _affinity()
    if quota is None or quota >= allowed:
        return None
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    return f"{threads}: the CPU quota of this container is {quota:g} of {allowed} CPUs"


def _affinity() -> int:
    """CPUs that the scheduler may give to this process; all of the machine's if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota_of(group: ControlGroup) -> float | None:
    """The quota of one control group, in CPUs; None if it has none or its files cannot be read."""
    try:
        if group.version == 2:
            quota, period = (group.folder / "cpu.max").read_text().split()  # "max 100000" without a limit
        else:
            quota = (group.folder / "cpu.cfs_quota_us").read_text()  # -1 without a limit
            period = (group.folder / "cpu.cfs_period_us").read_text()
        cpus = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cpus if cpus > 0 else None
