from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from wideresnet.base.errors import UsageError
from wideresnet.networks import create
from wideresnet.spec.names import parse


def test_weights_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return create("WRN-10-1", bn_scale="uniform").state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_convolutions_start_he_normal_by_the_fan_that_was_asked_for(init: str) -> None:
    torch.manual_seed(0)
    network = create("WRN-16-4", init=init)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            out_channels, in_channels, height, width = module.weight.shape
            fan = (in_channels if init == "fan_in" else out_channels) * height * width
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.06)
            assert abs(module.weight.mean().item()) < 0.1 * math.sqrt(2 / fan)
            assert module.weight.abs().max() > 2.5 * math.sqrt(2 / fan)  # a normal's tail, no uniform's edge


def test_the_linear_layer_starts_with_torchs_uniform_weights_and_no_bias() -> None:
    torch.manual_seed(0)
    fc = create("WRN-10-4", 100).fc
    bound = 1 / math.sqrt(fc.in_features)
    assert not fc.bias.any()
    assert fc.weight.abs().max() <= bound
    assert fc.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_norms_scale_starts_at_one_or_uniform(norm: str) -> None:
    torch.manual_seed(0)

    def scales(bn_scale: str) -> torch.Tensor:
        network = create("WRN-16-4", norm=norm, bn_scale=bn_scale)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
        assert all(not m.bias.any() for m in norms)
        return torch.cat([m.weight.detach() for m in norms])

    assert torch.equal(scales("one"), torch.ones_like(scales("one")))
    uniform = scales("uniform")
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() <= 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wrn-10-1", {}),
        (
            "WRN-10-2-B(3,1,3)",
            {"dropout": 0.3, "activation": "leaky_relu", "bn_momentum": 0.001, "bn_eps": 1e-3},
        ),
        ("WRN-34-0.25", {"family": "cifar", "in_channels": 1, "norm": "group", "activation": "silu"}),
        ("ResNet-14", {"stochastic_depth": 0.5, "init": "fan_out", "bn_scale": "uniform"}),
        ("PreActResNet-18", {"dropout": 0.1}),
    ],
)
def test_name_classes_and_options_rebuild_the_network(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    network = create(name, 7, **options)
    torch.manual_seed(3)
    again = create(str(network.name), network.num_classes, **json.loads(json.dumps(network.options)))
    assert repr(again) == repr(network)
    assert again.options == network.options
    assert options.items() <= network.options.items()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_parsed_name_will_do_and_brings_its_family() -> None:
    with torch.device("meta"):
        assert create(parse("WRN-34-2", "imagenet")).name.family == "imagenet"
        assert sum(p.numel() for p in create("WRN-34-10").parameters()) == 46_160_474


def test_options_reach_the_modules() -> None:
    network = create("WRN-10-1", in_channels=1, dropout=0.3, activation="leaky_relu", bn_momentum=0.01, bn_eps=1e-3)
    modules = list(network.modules())
    assert {(m.momentum, m.eps) for m in modules if isinstance(m, nn.BatchNorm2d)} == {(0.01, 1e-3)}
    assert {m.p for m in modules if isinstance(m, nn.Dropout)} == {0.3}
    assert {m.negative_slope for m in modules if isinstance(m, nn.LeakyReLU)} == {0.1}
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_stochastic_depth_falls_linearly_to_the_last_block() -> None:
    network = create("ResNet-20", stochastic_depth=0.5)
    survivals = [m.survival for m in network.modules() if hasattr(m, "survival")]
    assert survivals == pytest.approx([1 - i / 9 * 0.5 for i in range(1, 10)])  # Huang et al. 2016, Equation 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0: must be a whole number from 1 to 10000000"),
        ({"num_classes": 10.0}, "num_classes=10.0"),
        ({"num_classes": True}, "num_classes=True"),
        ({"in_channels": -1}, "in_channels=-1"),
        ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"dropout": "0.3"}, "dropout='0.3'"),
        ({"bn_momentum": 0}, r"bn_momentum=0\.0: must be above 0 and at most 1"),
        ({"bn_eps": -1e-5}, "bn_eps=-1e-05: must be above 0"),
        ({"bn_eps": math.inf}, "bn_eps=inf"),
        ({"stochastic_depth": 0.0}, "stochastic_depth=0.0: must be above 0 and at most 1"),
        ({"activation": "rely"}, "activation='rely': .*nearest: relu"),
        ({"norm": "layer"}, "norm='layer': .*batch, group"),
        ({"init": "fanin"}, "nearest: fan_in"),
        ({"bn_scale": 1}, "bn_scale=1: must be text"),
        ({"family": "cifar100"}, "did you mean cifar?"),
    ],
)
def test_an_option_outside_its_range_is_a_one_line_usage_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        create("WRN-10-1", **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "WRN-10-1",
            {"norm": "group", "bn_momentum": 0.01},
            "bn_momentum 0.01 has no effect with norm group",
        ),
        ("WRN-10-1-l1", {"dropout": 0.3}, "dropout 0.3 has no effect in WRN-10-1-l1"),
        ("WRN-10-1-B(3)", {"dropout": 0.3}, "its blocks have one convolution"),
    ],
)
def test_an_option_without_effect_warns(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        create(name, **options)


def test_options_with_effect_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create("WRN-10-1", norm="group", bn_eps=1e-3, bn_scale="uniform", dropout=0.3)


def test_a_network_that_does_not_fit_in_memory_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UsageError, match=r"^WRN-3994-100: .* parameters need .*TiB of memory, available are .*"):
        create("WRN-3994-100")
    with pytest.raises(UsageError, match=r"need .* of memory"):
        create("WRN-28-100", num_classes=10**7)
    with torch.device("meta"):  # only its shapes are asked for
        assert create("WRN-10-100").fc.in_features == 6400
