"""The convolutions of a GPU with everything between them in one pass, here by their twins, against the network."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from twins import a_network, off

from wideresnet.engines import optimize
from wideresnet.engines.description import Ineligible, describe
from wideresnet.engines.fused import Fused, Walk
from wideresnet.kernels.epilogue import finish_slowly, why_unavailable
from wideresnet.networks import Network

BLOCK_TYPES = ["B(3,3)", "B(3,1,3)", "B(1,3,1)", "B(1,3)", "B(3,1)", "B(3,1,1)"]

CASES = [
    *((f"WRN-10-2-{block}", 32, {}) for block in BLOCK_TYPES),
    ("WRN-10-1", 32, {"dropout": 0.3}),  # the first block has an identity shortcut
    ("WRN-16-1-l1", 13, {}),
    ("WRN-13-2-l3", 9, {}),
    ("WRN-10-1.5", 7, {"in_channels": 1}),
    ("PreActResNet-20", 16, {}),
    ("PreActResNet-29-bottleneck", 16, {}),
    ("PreActResNet-18", 64, {}),
    ("WRN-18-0.25", 64, {}),
    ("ResNet-18", 64, {}),
    ("WRN-50-2-bottleneck", 32, {}),
    ("ResNeXt-50-32x4d", 64, {}),
]


def a_walk(network: Network, dtype: torch.dtype = torch.float64) -> Walk:
    return Walk(describe(network, native=False), dtype, finish_slowly)


@pytest.mark.parametrize(("name", "size", "options"), CASES, ids=str)
def test_a_walk_computes_what_the_network_does(name: str, size: int, options: dict[str, Any]) -> None:
    network = a_network(name, 5, **options).eval().double()
    x = torch.randn(2, network.in_channels, size, size + 3, dtype=torch.float64)
    with torch.no_grad():
        assert off(a_walk(network)(x), network(x)) < 1e-13
        if name.startswith(("ResNet", "WRN-50")):  # whose normalizations `optimize` has folded already
            folded = optimize(network, kernels=False).network
            assert off(a_walk(folded)(x), network(x)) < 1e-13


def test_only_what_is_added_or_activated_after_a_sum_is_left_of_the_normalizations() -> None:
    steps = a_walk(a_network("WRN-16-2").eval().double()).steps
    folded = [step.epilogue is not None and step.epilogue.relu for step in steps]
    # stem, then in each group a projection and two convolutions, two convolutions
    assert folded == [True, *(False, True, False, True, False) * 3]
    assert [step.epilogue is None for step in steps] == [False, *(True, False, False, False, False) * 3]
    kept = [step.writes for step in steps if step.epilogue is not None and step.epilogue.scale is not None]
    assert kept == [step.writes for step in steps if step.adds is not None]


def test_in_bf16_it_is_as_near_to_float64_as_autocast() -> None:
    errors = []
    for seed in range(8):
        torch.manual_seed(seed)
        network, x = a_network("WRN-10-1").eval(), torch.randn(2, 3, 16, 16)
        walk = a_walk(network, torch.bfloat16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found, plain = walk(x), network(x)
            assert found.dtype == plain.dtype
        exact = copy.deepcopy(network).double()(x.double())
        errors.append((off(found, exact) ** 2, off(plain, exact) ** 2))
    squares = torch.tensor(errors).mean(0)
    assert squares[0] < 1.2 * squares[1]


def add_a_hook(network: Any) -> None:
    network.groups[1][0].register_forward_hook(lambda *_: None)


def change_an_activation(network: Any) -> None:
    network.groups[0][0].activation = nn.Identity()


def forget_statistics(network: Any) -> None:
    norm = network.groups[0][0].norms[1]
    norm.running_mean = norm.running_var = None
    norm.track_running_stats = False


@pytest.mark.parametrize(
    ("name", "options", "change", "reason"),
    [
        ("WRN-10-1", {"norm": "group"}, None, "GroupNorm"),
        ("WRN-10-1", {"activation": "silu"}, None, "for ReLU"),
        ("WRN-10-1", {"stochastic_depth": 0.5}, None, "leave out no blocks"),
        ("ResNet-8", {}, None, "pre-activation networks, and for ImageNet's"),
        ("WRN-10-1", {}, add_a_hook, "hooks"),
        ("WRN-10-1", {}, change_an_activation, "for ReLU"),
        ("WRN-10-1", {}, forget_statistics, "batch normalization"),
    ],
)
def test_what_it_would_not_compute_is_refused(
    name: str, options: dict[str, Any], change: Callable[[Network], None] | None, reason: str
) -> None:
    network = a_network(name, **options).eval()
    if change is not None:
        change(network)
    with pytest.raises(Ineligible, match=reason):
        describe(network, native=False)
    assert reason in (Fused(network).why_not(torch.float32) or "")


def test_other_types_and_weights_too_large_for_a_type_are_refused() -> None:
    network = a_network().eval()
    assert "fp32, bf16 and fp16" in (Fused(network.double()).why_not(torch.float64) or "")
    network = network.float()
    network.groups[0][0].norms[1].weight.data.fill_(1e6)  # type: ignore[index,union-attr]
    with pytest.raises(Ineligible, match=r"finite in torch\.float16"):
        a_walk(network, torch.float16)
    a_walk(network, torch.bfloat16)


def test_without_triton_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    why_unavailable.cache_clear()
    monkeypatch.setitem(sys.modules, "wideresnet.kernels.epilogue_triton", None)  # as if its import failed
    assert Fused(a_network().eval()).why_not(torch.float32) == "there is no Triton"
    why_unavailable.cache_clear()


def test_a_cpu_never_imports_triton() -> None:
    code = """
import sys, torch
from wideresnet import create, optimize
optimize(create("WRN-10-1"))(torch.zeros(1, 3, 8, 8))
sys.exit("triton" in sys.modules or "wideresnet.kernels.epilogue_triton" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


INTERPRETED = """
import itertools, torch
from wideresnet.kernels.epilogue import Epilogue, finish_slowly
from wideresnet.kernels.epilogue_triton import finish

torch.manual_seed(0)
for channels, dtype in itertools.product((1, 17, 32, 160), (torch.float32, torch.float16)):
    for adds, biased, relu, scaled, keep in itertools.product((False, True), repeat=5):
        if not scaled and not keep:
            continue
        y, added = (torch.randn(3, 3, 5, channels).to(dtype).permute(0, 3, 1, 2) for _ in range(2))
        y[0, 0, 0, 0] = float("nan")
        bias, scale, shift = torch.randn(3, channels)
        epilogue = Epilogue(bias if biased else None, relu, scale if scaled else None, shift if scaled else None, keep)
        expected = finish_slowly(y, added if adds else None, epilogue)
        found = finish(y.clone(), added if adds else None, epilogue)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True) if other is not None else None
            assert (one is None) == (other is None)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_tritons_kernel_is_its_twin_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", INTERPRETED], env=environment, check=True)
