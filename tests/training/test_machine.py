from __future__ import annotations

import json
import resource
import sys
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
    monkeypatch: pytest.MonkeyPatch, system: str, unit: int
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * unit))
    assert peak_memory_mib("cpu") == 3


def test_memory_is_plausible() -> None:
    assert 50 < peak_memory_mib("cpu") < 10**6
    assert 0 <= available_memory_bytes("cpu") < 2**50
    assert 50 * 2**20 < memory_in_use_bytes("cpu") <= (peak_memory_mib("cpu") + 1) * 2**20


def test_waiting_for_a_cpu_is_nothing() -> None:
    synchronise("cpu")
