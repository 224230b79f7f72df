"""The number of CPUs under an affinity and a container's quota, in a root folder as Linux would show it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wideresnet.machine.cpu import (
    BF16_FLAGS,
    SPIN_COUNT,
    cpu_flags,
    cpu_quota,
    describe_quota,
    export_short_spinning,
    export_thread_limit,
    usable_cpus,
)
from wideresnet.machine.threads import limit_threads

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(root: Path, **files: str) -> Path:
    """Write files, given by their paths in `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def container(root: Path, **files: str) -> Path:
    """A container with control groups of version 2."""
    return write(root, **{"proc/self/cgroup": "0::/pod/job", **files})


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/pod/job/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/pod/job/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/pod/cpu.max": "50000 100000"}, 0.5),  # an ancestor's
        ({"sys/fs/cgroup/cpu.max": "400000 200000"}, 2),  # a container sees its own group as the root
        ({"sys/fs/cgroup/pod/job/cpu.max": "300000 100000", "sys/fs/cgroup/pod/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/pod/job/cpu.max": "max 100000", "sys/fs/cgroup/pod/cpu.max": "700000 100000"}, 7),
        ({"sys/fs/cgroup/pod/job/cpu.max": "damaged"}, None),
        ({"sys/fs/cgroup/pod/job/cpu.max": "100000 0"}, None),
        ({}, None),
    ],
)
def test_version_2_gives_the_smallest_quota_of_a_group_and_its_ancestors(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(container(tmp_path, **files)) == quota


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("group", "quota_us", "quota"), [("job/", "250000", 2.5), ("", "100000", 1), ("", "-1", None)])
def test_version_1_gives_the_quota_of_a_group_or_its_ancestors(
    tmp_path: Path, mount: str, group: str, quota_us: str, quota: float | None
) -> None:
    folder = f"sys/fs/cgroup/{mount}/{group}"
    files = {f"{folder}cpu.cfs_quota_us": quota_us, f"{folder}cpu.cfs_period_us": "100000"}
    write(tmp_path, **{"proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/job\n0::/"}, **files)
    assert cpu_quota(tmp_path) == quota


def test_without_control_groups_there_is_no_quota_and_the_affinity_counts(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert usable_cpus(tmp_path) == ALLOWED


@pytest.mark.parametrize(("quota", "cpus"), [(50_000, 1), (100_000, 1), (150_000, 2), (10**9, 10**4)])
def test_a_quota_is_rounded_up_and_never_exceeds_the_affinity(tmp_path: Path, quota: int, cpus: int) -> None:
    root = container(tmp_path, **{"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert usable_cpus(root) == min(cpus, ALLOWED)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_pytorch_has_as_many_threads_as_the_quota_allows_unless_the_user_has_set_the_number(tmp_path: Path) -> None:
    root = container(tmp_path, **{"sys/fs/cgroup/cpu.max": "100000 100000"})
    limit_threads(root, environ={"OMP_NUM_THREADS": "2"})
    assert torch.get_num_threads() == 2
    limit_threads(root, environ={})
    assert torch.get_num_threads() == 1


def test_fewer_threads_than_the_quota_stay_as_they_are(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    limit_threads(container(tmp_path, **{"sys/fs/cgroup/cpu.max": "100000000 100000"}), environ={})
    assert torch.get_num_threads() == before


@pytest.mark.skipif(ALLOWED < 2, reason="needs more CPUs than the quota")
def test_a_command_hands_the_quota_to_libraries_that_are_not_loaded_yet(tmp_path: Path) -> None:
    root = container(tmp_path, **{"sys/fs/cgroup/cpu.max": "100000 100000"})
    for environ, expected in (({}, "1"), ({"OMP_NUM_THREADS": "7"}, "7")):
        export_thread_limit(root, environ)
        assert environ["OMP_NUM_THREADS"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=str,
)
def test_a_command_lets_pytorchs_threads_spin_shortly_unless_the_user_has_set_how_they_wait(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    environ = dict(given)
    export_short_spinning(environ)
    assert environ == expected


def test_without_a_quota_nothing_is_exported(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    export_thread_limit(tmp_path, environ)
    assert environ == {}


@pytest.mark.skipif(ALLOWED < 2, reason="needs more CPUs than the quota")
def test_a_quota_is_described_only_if_it_limits(tmp_path: Path) -> None:
    root = container(tmp_path, **{"sys/fs/cgroup/cpu.max": "100000 100000"})
    assert describe_quota(1, root) == f"1 thread: the CPU quota of this container is 1 of {ALLOWED} CPUs"
    assert describe_quota(2, root) == f"2 threads: the CPU quota of this container is 1 of {ALLOWED} CPUs"
    container(tmp_path, **{"sys/fs/cgroup/cpu.max": "max 100000"})
    assert describe_quota(2, root) is None


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        ("processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx2 avx512_bf16", {"fpu", "avx2", "avx512_bf16"}),
        ("processor\t: 0\nFeatures\t: fp asimd bf16", {"fp", "asimd", "bf16"}),
        ("processor\t: 0", set()),
    ],
)
def test_instruction_sets_are_those_of_the_first_processor(tmp_path: Path, cpuinfo: str, flags: set[str]) -> None:
    assert cpu_flags(tmp_path) == frozenset()  # a system without proc
    root = write(tmp_path, **{"proc/cpuinfo": f"{cpuinfo}\n\n{cpuinfo} more"})
    assert cpu_flags(root) == flags
    assert bool(cpu_flags(root) & BF16_FLAGS) == ("avx512_bf16" in flags)
