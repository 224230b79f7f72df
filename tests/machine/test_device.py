from __future__ import annotations

import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.machine.device import conv_seconds, pick_device, pick_precision, synchronize


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


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_an_explicit_precision_is_taken_without_measuring(wanted: str) -> None:
    def measure(*_: object) -> float:
        raise AssertionError("measured")

    assert pick_precision(wanted, "cpu", measure) == wanted


@pytest.mark.parametrize(("full_s", "half_s", "picked"), [(2.0, 1.0, "bf16"), (1.1, 1.0, "fp32"), (1.0, 2.0, "fp32")])
def test_auto_takes_bf16_only_if_it_measures_clearly_faster(full_s: float, half_s: float, picked: str) -> None:
    seconds = {torch.float32: full_s, torch.bfloat16: half_s}
    assert pick_precision("auto", "cpu", lambda dtype, _: seconds[dtype]) == picked


def test_the_measurement_takes_time_and_gives_a_precision() -> None:
    assert 0 < conv_seconds(torch.float32, "cpu") < 10
    assert pick_precision("auto", "cpu") in ("fp32", "bf16")


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UsageError, match=r"^precision='bf16': this GPU .*use precision='fp32'"):
        pick_precision("bf16", "cuda")
    assert pick_precision("auto", "cuda") == "fp32"


def test_waiting_for_a_cpu_does_nothing() -> None:
    synchronize("cpu")
