from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from wideresnet.machine.memory import available_memory_bytes, memory_in_use_bytes, peak_memory_mib, reset_peak_memory


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_peak_memory_is_in_mib_whether_the_system_counts_kib_or_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, unit: int
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * unit))
    assert peak_memory_mib("cpu", root=tmp_path) == 3
    assert memory_in_use_bytes("cpu", root=tmp_path) == 3 * 2**20


def test_without_proc_and_resource_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mib("cpu", root=tmp_path) == 0
    assert memory_in_use_bytes("cpu", root=tmp_path) == 0


def test_memory_is_plausible() -> None:
    assert 50 < peak_memory_mib("cpu") < 10**6
    assert 0 <= available_memory_bytes("cpu") < 2**50
    assert 50 * 2**20 < memory_in_use_bytes("cpu") <= (peak_memory_mib("cpu") + 1) * 2**20


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps no peak to reset")
def test_a_peak_outlives_its_memory_and_a_reset_forgets_it() -> None:
    assert reset_peak_memory("cpu")
    before = peak_memory_mib("cpu")
    with mmap.mmap(-1, 100 * 2**20) as pages:  # which a heap's free space cannot serve
        pages.write(bytes(2**20) * 100)
    assert before + 90 < peak_memory_mib("cpu") < before + 230
    assert reset_peak_memory("cpu")
    assert peak_memory_mib("cpu") < before + 30


def test_without_proc_nothing_is_reset_and_nothing_is_known_to_be_available(tmp_path: Path) -> None:
    assert not reset_peak_memory("cpu", root=tmp_path)
    assert available_memory_bytes("cpu", root=tmp_path) == 0


@pytest.mark.parametrize(
    ("cgroup", "folder", "names"),
    [
        ("0::/app/job", "sys/fs/cgroup/app/job", ("memory.max", "memory.current", "inactive_file")),
        ("0::/app/job", "sys/fs/cgroup/app", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:name=systemd:/\n4:cpu,memory:/job",
            "sys/fs/cgroup/memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
        (  # a container sees its own group as the root, under the path that it has outside
            "4:memory:/outside/job",
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_a_containers_limit_counts_with_its_file_cache_as_free(
    tmp_path: Path, cgroup: str, folder: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup + "\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 2000 kB\n")
    place = tmp_path / folder
    place.mkdir(parents=True)
    limit, used, cache = names
    (place / limit).write_text("1000\n")
    (place / used).write_text("700\n")
    (place / "memory.stat").write_text(f"anon 600\n{cache} 50\nactive_file 7\n")
    assert available_memory_bytes("cpu", root=tmp_path) == 1000 - 700 + 50
    (place / limit).write_text("max\n")
    assert available_memory_bytes("cpu", root=tmp_path) == 2000 * 2**10
