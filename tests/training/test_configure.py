"""Applying an execution: layout, kernels and threads, and whether the forward pass is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.training.configure import configure, make_forward


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kernels", "layout", "memory"),
    [("winograd", "channels_last", torch.channels_last), ("pytorch", "contiguous", torch.contiguous_format)],
)
def test_an_execution_sets_layout_kernels_and_threads(kernels: str, layout: str, memory: torch.memory_format) -> None:
    network = configure(create("WRN-10-1", 4), Execution(device="cpu", kernels=kernels, layout=layout, threads=2))
    assert network.kernels == (kernels == "winograd")
    assert network.get_parameter("groups.0.0.convs.0.weight").is_contiguous(memory_format=memory)
    assert torch.get_num_threads() == 2


def test_the_forward_pass_is_the_networks_own_unless_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    network, compiled = create("WRN-10-1", 4), nn.Identity()
    monkeypatch.setattr(torch, "compile", lambda module, *, dynamic: compiled if not dynamic else module)
    assert make_forward(network, Execution(device="cpu")) is network
    assert make_forward(network, Execution(device="cpu", compile=True)) is compiled


def test_a_description_names_everything_or_only_what_differs() -> None:
    plain = Execution(device="cpu", kernels="winograd", threads=2)
    assert plain.describe() == "Winograd kernels, channels last, fp32, 2 threads"
    other = Execution(device="cpu", layout="contiguous", precision="bf16", threads=1, compile=True)
    assert other.describe() == "PyTorch's kernels, contiguous, bf16, 1 thread, compiled"
    assert plain.describe(other) == "Winograd kernels, channels last, fp32, 2 threads, not compiled"
    assert plain.describe(plain) == ""
