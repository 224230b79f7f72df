"""`Network.optimize`: the same outputs, of the weights as they were."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.engines import winograd as fast
from wideresnet.engines.optimized import Optimized
from wideresnet.kernels.library import why_unavailable
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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def a_network(name: str = "WRN-10-1", **options: Any) -> Network:
    """A network as after training: statistics and scales that differ from channel to channel."""
    network = create(name, 5, **options)
    for tensor_name, tensor in network.state_dict().items():
        if "running_var" in tensor_name or (tensor.dim() == 1 and tensor_name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:
            tensor.normal_(std=0.2)
    return network.eval()


@torch.no_grad()
def off(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("name", "shape", "options"), CASES, ids=str)
def test_outputs_are_the_network_s(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    network, x = a_network(name, **options), torch.randn(shape)
    optimized = network.optimize()
    with torch.no_grad():
        expected = network(x)
    assert off(optimized(x), expected) < 1e-4
    assert off(optimized(x.contiguous(memory_format=torch.channels_last)), expected) < 1e-4
    assert not optimized(x).requires_grad


@pytest.mark.parametrize(
    ("name", "options", "how"),
    [
        ("WRN-10-1", {}, "Winograd kernels, weights transformed beforehand"),
        ("ResNet-8", {}, "normalisations folded into convolutions, channels last in memory"),
        ("ResNet-8", {"norm": "group"}, "channels last in memory"),
        ("WRN-10-1", {"norm": "group"}, "channels last in memory"),
        ("PreActResNet-18", {}, "channels last in memory"),
    ],
)
def test_it_says_what_was_done(name: str, options: dict[str, Any], how: str) -> None:
    if how.startswith("Winograd") and (reason := why_unavailable()):
        pytest.skip(reason)
    assert a_network(name, **options).optimize().how() == how


def test_without_a_compiler_the_network_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "why_unavailable", lambda: "no C compiler here")
    network, x = a_network(), torch.randn(2, 3, 8, 8)
    optimized = network.optimize()
    assert optimized.how() == "channels last in memory"
    assert off(optimized(x), network(x)) < 1e-5


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8", "PreActResNet-18"])
def test_it_is_a_snapshot(name: str) -> None:
    network, x = a_network(name).train(), torch.randn(4, 3, 32, 32)
    state = copy.deepcopy(network.state_dict())
    optimized = network.optimize()
    before = optimized(x)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert type(network) is type(a_network(name))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(x)
    assert torch.equal(optimized(x), before)
    assert not any(p.requires_grad for p in optimized.parameters())


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_train_leaves_it_in_evaluation_mode(name: str) -> None:
    network = a_network(name, dropout=0.5)
    optimized, x = network.optimize(), torch.randn(2, 3, 8, 8)
    before = optimized(x)
    assert optimized.train() is optimized
    assert not any(module.training for module in optimized.modules())
    assert torch.equal(optimized(x), before)


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_it_can_be_copied_and_kept(name: str) -> None:
    optimized, x = a_network(name).optimize(), torch.randn(2, 3, 8, 8)
    buffer = io.BytesIO()
    torch.save(optimized, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(optimized), torch.load(buffer, weights_only=False)):
        assert isinstance(again, Optimized)
        assert torch.equal(again(x), optimized(x))


def test_another_machine_makes_its_own_form_of_the_weights() -> None:
    optimized = a_network().optimize()
    assert optimized.blocks
    assert not optimized.__getstate__()["blocks"]


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_loaded_weights_reach_all_that_was_computed_beforehand(name: str) -> None:
    optimized, other, x = a_network(name).optimize(), a_network(name).optimize(), torch.randn(2, 3, 8, 8)
    optimized.load_state_dict(other.state_dict())
    assert torch.equal(optimized(x), other(x))


def test_normalisations_without_statistics_or_with_hooks_are_not_folded() -> None:
    network, x = a_network("ResNet-8"), torch.randn(2, 3, 16, 16)
    seen: list[Tensor] = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].register_forward_hook(lambda *given: seen.append(given[-1]))
    norms[1].running_mean = norms[1].running_var = None
    norms[1].track_running_stats = False
    optimized = network.eval().optimize()
    assert off(optimized(x), network(x).detach()) < 1e-5
    assert len(seen) == 2
    assert sum(isinstance(module, nn.BatchNorm2d) for module in optimized.modules()) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pytorch_s_default_type_does_not_matter(dtype: torch.dtype) -> None:
    network, x = a_network(), torch.randn(2, 3, 8, 8)
    optimized, quantised = network.optimize(), network.quantise(x)
    expected = optimized(x), quantised(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert network.optimize().blocks
        found = [network.optimize()(x), optimized(x), network.quantise(x)(x), quantised(x)]
    finally:
        torch.set_default_dtype(before)
    for result, wanted in zip(found, [expected[0], expected[0], expected[1], expected[1]], strict=True):
        assert torch.equal(result, wanted)


def test_weights_that_are_nowhere_reach_no_kernel() -> None:
    with torch.device("meta"):
        network = create("WRN-10-1", 10)
    assert not network.optimize().blocks


def test_a_normalisation_is_folded_once() -> None:
    network, x = a_network("ResNet-8"), torch.randn(2, 3, 16, 16)
    optimized = network.optimize()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 7
    again = optimized.network.optimize()
    assert torch.equal(again(x), optimized(x))


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_taken_as_the_network_takes_them(name: str, dtype: torch.dtype) -> None:
    network, x = a_network(name), torch.randn(2, 3, 8, 8)
    for of in (network, network.optimize()):
        with pytest.raises(RuntimeError, match=r"type"):
            of(x.to(dtype))
    converted = copy.deepcopy(network).to(dtype)
    with torch.no_grad():
        expected = converted(x.to(dtype))
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    folded_in_float32 = max(tolerance, 1e-5)
    for optimized, near in ((converted.optimize(), tolerance), (network.optimize().to(dtype), folded_in_float32)):
        result = optimized(x.to(dtype))
        assert result.dtype == dtype
        assert off(result, expected) < near


def test_autocast_is_the_network_s() -> None:
    network, x = a_network(), torch.randn(2, 3, 8, 8)
    optimized = network.optimize()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert optimized(x).dtype == network(x).dtype == torch.bfloat16
        assert off(optimized(x).float(), network(x).float()) < 0.05


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_a_wrong_input_is_a_usage_error_as_in_the_network(name: str) -> None:
    network = a_network(name)
    wrong = ([1.0], torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    for x in wrong:
        for of in (network, network.optimize()):
            with pytest.raises(UsageError, match=rf"^{name}: the input"):
                of(x)


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_no_images_give_no_scores(name: str) -> None:
    optimized = a_network(name).optimize()
    assert optimized(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


def test_what_is_no_number_stays_so_in_its_own_image() -> None:
    optimized, x = a_network().optimize(), torch.randn(3, 3, 9, 9)
    x[1, 2, 4, 4] = float("nan")
    logits = optimized(x)
    assert torch.isnan(logits[1]).all()
    assert torch.isfinite(logits[[0, 2]]).all()
