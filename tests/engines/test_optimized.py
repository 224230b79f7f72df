"""`optimize`: the outputs of the network, from a snapshot of its weights."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from twins import a_network, off

from wideresnet.base.errors import UsageError
from wideresnet.engines import optimize, quantize
from wideresnet.engines.optimized import Optimized
from wideresnet.networks import Network, create

CASES = [
    ("WRN-16-2", (3, 3, 32, 32), {}),
    ("WRN-10-1", (1, 3, 32, 32), {}),
    ("WRN-10-1", (64, 3, 32, 32), {}),
    ("WRN-10-2", (2, 1, 13, 22), {"in_channels": 1}),
    ("WRN-10-1", (5, 3, 1, 1), {}),
    ("WRN-16-1-B(1,3,1)", (2, 3, 16, 16), {}),
    ("WRN-16-1-l1", (2, 3, 16, 16), {}),
    ("PreActResNet-29-bottleneck", (2, 3, 16, 16), {}),
    ("WRN-10-1.5", (2, 3, 16, 16), {}),  # 24 channels: not for the kernels
    ("WRN-10-1", (2, 3, 16, 16), {"norm": "group"}),
    ("WRN-10-1", (2, 3, 16, 16), {"activation": "leaky_relu"}),
    ("WRN-10-1", (2, 3, 16, 16), {"stochastic_depth": 0.5}),
    ("ResNet-20", (2, 3, 32, 32), {}),
    ("ResNet-8", (2, 3, 16, 16), {"norm": "group"}),
    ("ResNet-8", (2, 3, 16, 16), {"stochastic_depth": 0.5}),
    ("ResNet-18", (2, 3, 64, 64), {}),
    ("ResNeXt-50-32x4d", (1, 3, 64, 64), {}),
    ("WRN-50-2-bottleneck", (1, 3, 64, 64), {}),
    ("PreActResNet-18", (1, 3, 64, 64), {}),
]


def a_trained_network(name: str = "WRN-10-1", **options: Any) -> Network:
    return a_network(name, 5, **options).eval()


@pytest.mark.parametrize(("name", "shape", "options"), CASES, ids=str)
def test_outputs_are_the_networks(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    network, x = a_trained_network(name, **options), torch.randn(shape)
    optimized = optimize(network)
    with torch.no_grad():
        expected = network(x)
    assert off(optimized(x), expected) < 1e-4
    assert off(optimized(x.contiguous(memory_format=torch.channels_last)), expected) < 1e-4
    assert not optimized(x).requires_grad


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("name", "options", "how"),
    [
        ("WRN-10-1", {}, "Winograd kernels"),
        ("ResNet-8", {}, "normalizations folded into convolutions, channels last in memory"),
        ("ResNet-8", {"norm": "group"}, "channels last in memory"),
        ("WRN-10-1", {"norm": "group"}, "channels last in memory"),
        ("PreActResNet-18", {}, "Winograd kernels"),
        ("WRN-18-0.5", {}, "Winograd kernels"),
        ("ResNet-50", {"norm": "group"}, "channels last in memory"),
        ("ResNeXt-50-32x4d", {}, "normalizations folded into convolutions, channels last in memory"),
    ],
)
def test_it_says_what_was_done(name: str, options: dict[str, Any], how: str) -> None:
    assert optimize(a_trained_network(name, **options)).how() == how


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_network_still_runs() -> None:
    network, x = a_trained_network(), torch.randn(2, 3, 8, 8)
    optimized = optimize(network)
    assert optimized.how() == "channels last in memory"
    assert off(optimized(x), network(x)) < 1e-5


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_kernels_that_are_not_wanted_are_never_used(name: str) -> None:
    network, x = a_trained_network(name), torch.randn(2, 3, 8, 8)
    optimized = optimize(network, kernels=False)
    for again in (optimized, copy.deepcopy(optimized)):
        again.load_state_dict(optimized.state_dict())
        assert not again.has_kernels
        if name == "WRN-10-1":
            assert torch.equal(again(x), network(x.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8", "PreActResNet-18"])
def test_it_is_a_snapshot(name: str) -> None:
    network, x = a_trained_network(name).train(), torch.randn(4, 3, 32, 32)
    state = copy.deepcopy(network.state_dict())
    optimized = optimize(network)
    before = optimized(x)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert type(network) is type(a_trained_network(name))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(x)
    assert torch.equal(optimized(x), before)
    assert not any(p.requires_grad for p in optimized.parameters())


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_train_leaves_it_in_evaluation_mode(name: str) -> None:
    network = a_trained_network(name, dropout=0.5)
    optimized, x = optimize(network), torch.randn(2, 3, 8, 8)
    before = optimized(x)
    assert optimized.train() is optimized
    assert not any(module.training for module in optimized.modules())
    assert torch.equal(optimized(x), before)


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_it_can_be_copied_and_saved(name: str) -> None:
    optimized, x = optimize(a_trained_network(name)), torch.randn(2, 3, 8, 8)
    buffer = io.BytesIO()
    torch.save(optimized, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(optimized), torch.load(buffer, weights_only=False)):
        assert isinstance(again, Optimized)
        assert torch.equal(again(x), optimized(x))


@pytest.mark.usefixtures("needs_kernels")
def test_a_file_leaves_the_transformed_weights_to_the_machine_that_reads_it() -> None:
    optimized, files = optimize(a_trained_network()), []
    for module in (optimized, optimized.network):
        files.append(io.BytesIO())
        torch.save(module, files[-1])
    assert optimized.has_kernels
    assert len(files[0].getvalue()) < 1.1 * len(files[1].getvalue())  # transformed they are four times as large


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_loaded_weights_replace_everything_that_was_precomputed(name: str) -> None:
    optimized, other, x = optimize(a_trained_network(name)), optimize(a_trained_network(name)), torch.randn(2, 3, 8, 8)
    optimized.load_state_dict(other.state_dict())
    assert torch.equal(optimized(x), other(x))


def test_normalizations_without_statistics_or_with_hooks_are_not_folded() -> None:
    network, x = a_trained_network("ResNet-8"), torch.randn(2, 3, 16, 16)
    seen: list[Tensor] = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].register_forward_hook(lambda *given: seen.append(given[-1]))
    norms[1].running_mean = norms[1].running_var = None
    norms[1].track_running_stats = False
    optimized = optimize(network.eval())
    assert off(optimized(x), network(x).detach()) < 1e-5
    assert len(seen) == 2
    assert sum(isinstance(module, nn.BatchNorm2d) for module in optimized.modules()) == 2


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pytorchs_default_type_does_not_matter(dtype: torch.dtype) -> None:
    network, x = a_trained_network(), torch.randn(2, 3, 8, 8)
    optimized, quantized = optimize(network), quantize(network, x)
    expected = optimized(x), quantized(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert optimize(network).has_kernels
        found = [optimize(network)(x), optimized(x), quantize(network, x)(x), quantized(x)]
    finally:
        torch.set_default_dtype(before)
    for result, wanted in zip(found, [expected[0], expected[0], expected[1], expected[1]], strict=True):
        assert torch.equal(result, wanted)


def test_weights_on_the_meta_device_reach_no_kernel() -> None:
    with torch.device("meta"):
        network = create("WRN-10-1", 10)
    assert not optimize(network).has_kernels


def test_a_normalization_is_folded_once() -> None:
    network, x = a_trained_network("ResNet-8"), torch.randn(2, 3, 16, 16)
    optimized = optimize(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 7
    again = optimize(optimized.network)
    assert torch.equal(again(x), optimized(x))


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_accepted_as_the_network_accepts_them(name: str, dtype: torch.dtype) -> None:
    network, x = a_trained_network(name), torch.randn(2, 3, 8, 8)
    for of in (network, optimize(network)):
        with pytest.raises(RuntimeError, match=r"type"):
            of(x.to(dtype))
    converted = copy.deepcopy(network).to(dtype)
    with torch.no_grad():
        expected = converted(x.to(dtype))
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    folded_in_float32 = max(tolerance, 1e-5)
    for optimized, near in ((optimize(converted), tolerance), (optimize(network).to(dtype), folded_in_float32)):
        result = optimized(x.to(dtype))
        assert result.dtype == dtype
        assert off(result, expected) < near


def test_autocast_is_the_networks() -> None:
    network, x = a_trained_network(), torch.randn(2, 3, 8, 8)
    optimized = optimize(network)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert optimized(x).dtype == network(x).dtype == torch.bfloat16
        assert off(optimized(x).float(), network(x).float()) < 0.05


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_a_wrong_input_is_a_usage_error_as_in_the_network(name: str) -> None:
    network = a_trained_network(name)
    wrong = ([1.0], torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    for x in wrong:
        for of in (network, optimize(network)):
            with pytest.raises(UsageError, match=rf"^{name}: the input"):
                of(x)


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_no_images_give_no_scores(name: str) -> None:
    optimized = optimize(a_trained_network(name))
    assert optimized(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


def test_nan_stays_in_its_own_image() -> None:
    optimized, x = optimize(a_trained_network()), torch.randn(3, 3, 9, 9)
    x[1, 2, 4, 4] = float("nan")
    logits = optimized(x)
    assert torch.isnan(logits[1]).all()
    assert torch.isfinite(logits[[0, 2]]).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.usefixtures("needs_kernels")
def test_a_forked_child_computes_the_same() -> None:
    code = """
import os, signal, torch
from wideresnet import create, optimize, quantize
torch.set_num_threads(2)
network, x = create("WRN-10-2", 10).eval(), torch.randn(4, 3, 32, 32)
networks = network, optimize(network), quantize(network, x)
wanted = [network(x) for network in networks]
if not (child := os.fork()):
    signal.alarm(30)
    same = [torch.allclose(network(x), logits, rtol=1e-6) for network, logits in zip(networks, wanted)]
    os._exit(0 if all(same) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "2"]
