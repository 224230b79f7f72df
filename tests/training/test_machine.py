from __future__ import annotations

import json
import mmap
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wideresnet.errors import UsageError
from wideresnet.training import machine
from wideresnet.training.machine import (
    available_memory_bytes,
    describe,
    memory_in_use_bytes,
    peak_memory_mib,
    pick_device,
    pick_precision,
    reset_peak_memory,
    synchronise,
)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^device cuda: PyTorch sees no CUDA device here; use --device cpu$"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("wanted", "has_cuda", "picked"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_takes_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has_cuda: bool, picked: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert pick_device(wanted) == picked


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_precision_that_was_asked_for_is_taken_unmeasured(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    def measure(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(machine, "_conv_seconds", measure)
    assert pick_precision(wanted, "cpu") == wanted


@pytest.mark.parametrize(("full_s", "half_s", "picked"), [(2.0, 1.0, "bf16"), (1.1, 1.0, "fp32"), (1.0, 2.0, "fp32")])
def test_auto_takes_bf16_only_where_it_measures_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, full_s: float, half_s: float, picked: str
) -> None:
    seconds = {torch.float32: full_s, torch.bfloat16: half_s}
    monkeypatch.setattr(machine, "_conv_seconds", lambda dtype, _: seconds[dtype])
    assert pick_precision("auto", "cpu") == picked


def test_auto_precision_is_a_precision() -> None:
    assert pick_precision("auto", "cpu") in ("fp32", "bf16")


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UsageError, match=r"^precision bf16: this GPU has no bf16; start with --precision fp32"):
        pick_precision("bf16", "cuda")
    assert pick_precision("auto", "cuda") == "fp32"


def test_the_description_is_json_with_versions_and_hardware() -> None:
    about = describe("cpu")
    assert json.loads(json.dumps(about)) == about
    assert about["torch"] == torch.__version__
    assert about["device"] == "cpu"
    assert about["gpu"] is None
    assert about["num_threads"] == torch.get_num_threads()
    assert about["cpu"]


def test_the_description_tells_no_path_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/someone/venv/bin/wrn", "train", "WRN-16-2", "--data", "my digits"])
    about = describe("cpu")
    assert about["command"] == "wrn train WRN-16-2 --data 'my digits'"
    assert not [value for value in about.values() if isinstance(value, str) and ("/home" in value or value[:1] == "/")]
    monkeypatch.setattr(sys, "argv", ["/home/someone/work/script.py", "--flag"])
    assert describe("cpu")["command"] == "python"


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_peak_memory_is_in_mib_where_the_system_counts_kib_or_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, unit: int
) -> None:
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "no-proc")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * unit))
    assert peak_memory_mib("cpu") == 3


def test_memory_is_plausible() -> None:
    assert 50 < peak_memory_mib("cpu") < 10**6
    assert 0 <= available_memory_bytes("cpu") < 2**50
    assert 50 * 2**20 < memory_in_use_bytes("cpu") <= (peak_memory_mib("cpu") + 1) * 2**20


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps no peak to reset")
def test_a_peak_is_seen_after_the_memory_is_given_back_and_forgotten_by_a_reset() -> None:
    assert reset_peak_memory("cpu")
    before = peak_memory_mib("cpu")
    with mmap.mmap(-1, 100 * 2**20) as pages:  # which a heap's free space cannot serve
        pages.write(bytes(2**20) * 100)
    assert before + 90 < peak_memory_mib("cpu") < before + 230
    assert reset_peak_memory("cpu")
    assert peak_memory_mib("cpu") < before + 30


def test_where_the_system_keeps_no_peak_nothing_is_reset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "no" / "proc")
    assert not reset_peak_memory("cpu")
    assert available_memory_bytes("cpu") == 0


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
    place = tmp_path / folder
    place.mkdir(parents=True)
    limit, used, cache = names
    (place / limit).write_text("1000\n")
    (place / used).write_text("700\n")
    (place / "memory.stat").write_text(f"anon 600\n{cache} 50\nactive_file 7\n")
    assert machine._left_in_cgroups(tmp_path) == [350]
    (place / limit).write_text("max\n")
    assert machine._left_in_cgroups(tmp_path) == []


def test_waiting_for_a_cpu_is_nothing() -> None:
    synchronise("cpu")
