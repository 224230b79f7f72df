"""On a GPU: every network of the paper's Tables 2 to 5 against float64 on a CPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wideresnet.networks import Network, create
from wideresnet.spec import published as paper

DEVICE = "cuda"
ROUNDING = 2.0**16
"""How many times coarser bf16 rounds than fp32: a network multiplies both errors by about the same."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROWS = [row for table in (2, 3, 4, 5) for row in paper.results(table=table)]
NETWORKS = list(dict.fromkeys(row.network for row in ROWS if row.family == "cifar"))
WIDE = ["WRN-28-10", "WRN-16-8", "WRN-40-4", "WRN-16-4", "WRN-28-2"]


def make(name: str) -> tuple[Network, Tensor]:
    """A network in evaluation mode with the statistics of random images, and images for it; on the CPU."""
    torch.manual_seed(0)
    network = create(name)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # running statistics are those of the one batch
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 32, 32))
    return network.eval(), torch.randn(4, 3, 32, 32)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_logits_agree_with_float64_in_fp32_and_in_bf16_as_its_rounding_allows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network, images = make(name)
    exact = network.double()(images.double())
    on_cpu = error(network.float()(images), exact)  # the deepest one amplifies rounding to 4e-3 there, too
    network = network.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.to(DEVICE, memory_format=torch.channels_last)
    single = error(network(images), exact)
    assert single < max(1e-4, 3 * on_cpu)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert error(network(images), exact) < (2e-2 if name in WIDE else max(2e-2, ROUNDING * single))


@pytest.mark.parametrize("name", ["WRN-16-4", "WRN-16-2-B(3,1,3)", "ResNet-20"])
def test_gradients_agree_with_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network, images = make(name)
    network.train().double()(images.double()).logsumexp(1).sum().backward()
    exact = [parameter.grad for parameter in network.parameters()]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-2)):
        network.zero_grad(set_to_none=True)
        network.to(DEVICE, dtype)(images.to(DEVICE, dtype)).logsumexp(1).sum().backward()
        for parameter, gradient in zip(network.parameters(), exact, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            # in fp32 a sign of an activation that hangs on rounding moves a gradient by more than rounding
            assert (parameter.grad.double().cpu() - gradient).norm() < tolerance * gradient.norm() + 1e-6
