from __future__ import annotations

import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.machine.device import algorithms_restored, make_deterministic, pick_device, pick_precision, synchronize


def test_cuda_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^device='cuda': .*no CUDA device; use device='cpu'$"):
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
def test_auto_takes_cuda_if_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has_cuda: bool, picked: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert pick_device(wanted) == picked


@pytest.mark.parametrize(("wanted", "picked"), [("fp32", "fp32"), ("bf16", "bf16"), ("auto", "fp32")])
def test_a_cpu_computes_in_fp32_unless_bf16_is_asked_for(wanted: str, picked: str) -> None:
    assert pick_precision(wanted, "cpu") == picked


@pytest.mark.parametrize(("has_instructions", "picked"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bf16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool, picked: str
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_instructions
    )
    assert pick_precision("auto", "cuda") == picked
    assert pick_precision("bf16", "cuda") == "bf16"


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)  # noqa: ARG005
    with pytest.raises(UsageError, match=r"^precision='bf16': this GPU .*use precision='fp32'"):
        pick_precision("bf16", "cuda")
    assert pick_precision("auto", "cuda") == "fp32"


def test_waiting_for_a_cpu_does_nothing() -> None:
    synchronize("cpu")


def test_the_caller_gets_back_its_choice_of_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.benchmark
    with algorithms_restored():
        make_deterministic(True)
        torch.backends.cudnn.benchmark = not before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark == before
