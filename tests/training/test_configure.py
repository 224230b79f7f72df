"""Applying an execution: layout, kernels and threads, and whether the forward pass is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from wideresnet.engines.winograd import Accelerated
from wideresnet.kernels.library import why_unavailable
from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.training.configure import configure, evaluates_by_kernels, make_forward


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("layout", "memory"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_an_execution_sets_layout_and_threads(layout: str, memory: torch.memory_format) -> None:
    network = create("WRN-10-1", 4)
    configured = configure(network, Execution(device="cpu", layout=layout, threads=2))
    assert configured is network
    assert network.get_parameter("groups.0.0.convs.0.weight").is_contiguous(memory_format=memory)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(bool(why_unavailable()), reason="needs the kernels")
def test_the_kernels_compute_the_forward_pass_of_the_same_weights() -> None:
    network = create("WRN-10-1", 4)
    forward = make_forward(network, Execution(device="cpu", kernels="winograd"))
    assert isinstance(forward, Accelerated)
    assert {id(parameter) for parameter in forward.parameters()} == {
        id(parameter) for parameter in network.parameters()
    }


def test_the_forward_pass_is_the_networks_own_unless_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    network, compiled = create("WRN-10-1", 4), nn.Identity()
    monkeypatch.setattr(torch, "compile", lambda module, *, dynamic: compiled if not dynamic else module)
    assert make_forward(network, Execution(device="cpu")) is network
    assert make_forward(network, Execution(device="cpu", compile=True)) is compiled


@pytest.mark.parametrize(
    ("name", "kernels", "expected"),
    [
        ("WRN-10-1", "winograd", True),
        ("WRN-10-1", "pytorch", False),  # asked for, or measured: evaluation does not differ from training
        ("WRN-18-0.25", "pytorch", True),  # there are none for training
        ("PreActResNet-18", "pytorch", True),
    ],
)
def test_networks_without_kernels_for_training_are_evaluated_by_those_for_inference(
    name: str, kernels: str, expected: bool
) -> None:
    assert evaluates_by_kernels(create(name, 4), Execution(device="cpu", kernels=kernels)) is expected


def test_a_description_names_everything_or_only_what_differs() -> None:
    plain = Execution(device="cpu", kernels="winograd", threads=2)
    assert plain.describe() == "Winograd kernels, channels last, fp32, 2 threads"
    other = Execution(device="cpu", layout="contiguous", precision="bf16", threads=1, compile=True)
    assert other.describe() == "PyTorch's kernels, contiguous, bf16, 1 thread, compiled"
    assert plain.describe(other) == "Winograd kernels, channels last, fp32, 2 threads, not compiled"
    assert plain.describe(plain) == ""
