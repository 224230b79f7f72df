"""Networks in 8 bits: near the network, and refused in one line where they cannot be."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.networks import Network, create


def make(name: str = "WRN-10-2") -> Network:
    """A network whose normalisations have seen something."""
    torch.manual_seed(0)
    network = create(name, 10).train()
    for _ in range(20):
        network(images())
    return network.eval()


def images(num: int = 16, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(num, 3, height, width)


@pytest.mark.parametrize("name", ["WRN-10-2", "WRN-16-1-B(3,1,3)", "WRN-16-1-B(1,3,1)", "PreActResNet-20"])
def test_outputs_are_near_the_networks_and_the_same_again(name: str) -> None:
    network = make(name)
    quantised = network.quantise(images(64, 32, 32))
    for shape in ((16, 8, 8), (8, 29, 17), (1, 32, 32)):
        x = images(*shape)
        with torch.no_grad():
            wanted, found = network(x), quantised(x)
        assert (found - wanted).norm() < 0.05 * wanted.norm()
        assert torch.equal(quantised(x), found)


def test_a_snapshot_is_not_reached_by_later_changes_and_does_not_train() -> None:
    network, x = make(), images()
    quantised = network.quantise(x)
    before = quantised(x)
    nn.init.zeros_(network.fc.weight)
    assert torch.equal(quantised.train()(x), before)
    assert not quantised.training
    assert not before.requires_grad


def test_calibration_leaves_the_network_as_it_was() -> None:
    network = make().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.quantise(images())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_channels_without_activity_in_calibration_are_harmless() -> None:
    network = make()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].bias[:5] = -100
        norms[1].bias[:] = -100
        x = images()
        wanted = network(x)
        assert (network.quantise(x)(x) - wanted).norm() < 0.05 * wanted.norm()


def test_no_images_make_no_outputs() -> None:
    assert make().quantise(images())(images(0)).shape == (0, 10)


def test_autocast_is_left_outside() -> None:
    network, x = make(), images()
    quantised = network.quantise(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantised(x), quantised(x.clone()))
        found = quantised(x)
    assert torch.equal(found, quantised(x))


@pytest.mark.parametrize(
    ("network", "given", "reason"),
    [
        ("WRN-10-1", images(0), "no images"),
        ("WRN-10-1", images()[:, :1], "shape"),
        ("WRN-10-1", images().double(), "fp32"),
        ("WRN-50-2-bottleneck", images(), "pre-activation"),
        ("ResNet-20", images(), "pre-activation"),
    ],
)
def test_what_cannot_be_quantised_is_refused_in_one_line(network: str, given: Tensor, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refusal:
        create(network, 10).quantise(given)
    assert "\n" not in str(refusal.value)


def test_other_activations_and_damaged_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="ReLU"):
        create("WRN-10-1", 10, activation="silu").quantise(images())
    network = create("WRN-10-1", 10)
    nn.init.constant_(network.stem.weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not finite"):
        network.quantise(images())
    with pytest.raises(UsageError, match="fp32 on a CPU"):
        make().quantise(images())(images().double())


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wideresnet.engines.winograd.why_unavailable", lambda: "no C compiler here (gcc, cc or clang)")
    with pytest.raises(UsageError, match="no C compiler"):
        create("WRN-10-1", 10).quantise(images())


def test_another_machine_makes_its_own_form_of_the_weights() -> None:
    quantised, x = make().quantise(images()), images()
    buffer = io.BytesIO()
    torch.save(quantised, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(quantised), torch.load(buffer, weights_only=False)):
        assert torch.equal(again(x), quantised(x))
    assert "blocks" not in quantised.__getstate__()


def test_other_weights_are_refused() -> None:
    network = make()
    with pytest.raises(UsageError, match="keeps its weights"):
        network.quantise(images()).load_state_dict(network.state_dict())


def test_what_is_no_number_stays_so_in_its_own_image() -> None:
    quantised, x = make().quantise(images()), images(4)
    expected = quantised(x)
    x[1, 0, 3, 3], x[2, 1, 0, 0] = torch.nan, -torch.inf
    found = quantised(x)
    assert found[1:3].isnan().all()
    assert torch.equal(found[::3], expected[::3])


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_refused_because_nothing_would_fill_its_memory() -> None:
    with pytest.raises(UsageError, match="traced"):
        torch.jit.trace(make().quantise(images()), images())
