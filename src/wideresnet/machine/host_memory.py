"""Memory that the machine has left. Knows no torch, so that readers of files and reports can ask."""

from __future__ import annotations

from pathlib import Path

from wideresnet.machine.cgroups import ControlGroup, control_groups


def available_host_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that can still be allocated, within the limits of the container.

    Args:
        root: the folder that holds `proc` and `sys`.

    Returns:
        Bytes; 0 if the system does not say (macOS, Windows).
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 2**10
    except (OSError, StopIteration):
        return 0
    left = (_left_in(group) for group in control_groups("memory", root))
    return max(1, min([available, *(num_bytes for num_bytes in left if num_bytes is not None)]))


def _left_in(group: ControlGroup) -> int | None:
    """Bytes left under the memory limit of a control group, its file cache counted as free; None without a limit.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    if group.version == 2:
        limit, used, cache = "memory.max", "memory.current", "inactive_file"
    else:
        limit, used, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    try:
        most, now = int((group.folder / limit).read_text()), int((group.folder / used).read_text())
        lines = (group.folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max", or a folder that only exists outside the container
        return None
    return most - now + sum(int(num_bytes) for key, num_bytes in map(str.split, lines) if key == cache)
