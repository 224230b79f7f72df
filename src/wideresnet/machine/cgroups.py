"""Linux control groups: which limits a container puts on this process.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """One control group that limits this process.

    Attributes:
        version: 1 or 2; the two use different file names.
        folder: the folder that holds the limits; it may not exist.
    """

    version: int
    folder: Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """Yield the control groups that this process is in and all their ancestors, each of which may set a limit.

    Args:
        controller: "cpu" or "memory".
        root: the folder that holds `proc` and `sys`; nothing is yielded if they are missing, as on macOS and Windows.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":  # version 2 has one hierarchy for all controllers
            version, mounts = 2, ["sys/fs/cgroup"]
        elif controller in controllers.split(","):  # version 1 mounts "cpu,cpuacct" under that name, usually with links
            version, mounts = 1, list(dict.fromkeys((f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}")))
        else:
            continue
        # a container may see its own group as the root, yet under the path that the group has outside
        group = Path(path.lstrip("/"))
        mount = next((root / name for name in mounts if (root / name).is_dir()), root / mounts[0])
        for folder in (group, *group.parents):
            yield ControlGroup(version, mount / folder)
