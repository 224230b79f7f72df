from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from wideresnet.base.errors import UsageError
from wideresnet.networks import Network, create

TORCHVISION = {
    "ResNet-18": "resnet18",
    "ResNet-34": "resnet34",
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
    "WRN-50-2-bottleneck": "wide_resnet50_2",
    "WRN-101-2-bottleneck": "wide_resnet101_2",
    "ResNeXt-50-32x4d": "resnext50_32x4d",
    "ResNeXt-101-32x8d": "resnext101_32x8d",
    "ResNeXt-101-64x4d": "resnext101_64x4d",
}
SMALL = ["WRN-10-1", "WRN-10-0.5-B(3,1,3)", "ResNet-8", "PreActResNet-11-bottleneck", "PreActResNet-18"]


def randomize(network: nn.Module) -> None:
    """Give every tensor different values, so that a swapped pair would show."""
    for name, tensor in network.state_dict().items():
        if "var" in name or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:
            tensor.normal_(std=0.1)


@pytest.mark.parametrize(("name", "theirs"), TORCHVISION.items())
def test_parameter_names_and_shapes_are_torchvisions(name: str, theirs: str) -> None:
    with torch.device("meta"):
        expected = torchvision.models.get_model(theirs).state_dict()
        actual = create(name, 1000).state_dict()
    assert {key: tensor.shape for key, tensor in actual.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }


@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-50", "WRN-50-2-bottleneck", "ResNeXt-50-32x4d"])
def test_torchvision_weights_load_unchanged_and_give_the_same_outputs(name: str) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(TORCHVISION[name], num_classes=5)
    randomize(theirs)
    with torch.device("meta"):
        ours = create(name, 5)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = torch.randn(2, 3, 64, 50)
    for training in (False, True):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))


@pytest.mark.parametrize("name", ["ResNet-18", "WRN-50-2-bottleneck"])
def test_features_of_imagenet_networks_are_torchvisions_layers(name: str) -> None:
    """The backbone of anomaly detection such as PatchCore: the outputs of layer2 and layer3."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(TORCHVISION[name]).eval()
    randomize(theirs)
    with torch.device("meta"):
        ours = create(name, 1000).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    maps: dict[str, torch.Tensor] = {}
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        theirs.get_submodule(layer).register_forward_hook(lambda _, __, y, layer=layer: maps.update({layer: y}))
    x = torch.randn(1, 3, 96, 80)
    with torch.no_grad():
        theirs(x)
        stages = ours.features(x)
    for number in (1, 2, 3, 4):
        torch.testing.assert_close(stages[f"conv{number + 1}"], maps[f"layer{number}"], atol=1e-5, rtol=0)


def test_cifar_parameter_names_follow_the_structure() -> None:
    with torch.device("meta"):
        names = set(create("WRN-16-2").state_dict())
    assert {"stem.weight", "groups.2.1.convs.1.weight", "groups.0.0.norms.0.running_mean"} <= names
    assert {"groups.1.0.shortcut.weight", "norm.bias", "fc.bias"} <= names
    assert "groups.1.1.shortcut.weight" not in names
    assert not any(name.endswith("bias") and ("conv" in name or "stem" in name) for name in names)


def test_projections_stand_only_where_channels_or_resolution_change() -> None:
    with torch.device("meta"):
        shortcuts = {k: [n for n in create(f"WRN-16-{k}").state_dict() if "shortcut" in n] for k in (1, 2)}
    assert shortcuts[1] == ["groups.1.0.shortcut.weight", "groups.2.0.shortcut.weight"]
    assert shortcuts[2] == [f"groups.{g}.0.shortcut.weight" for g in range(3)]


@pytest.mark.parametrize("name", ["WRN-16-1", "WRN-16-1-B(1,3,1)", "PreActResNet-11-bottleneck"])
def test_the_stride_of_a_cifar_block_sits_on_its_first_convolution_also_a_1x1(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    strided = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == [f"groups.{g}.0.{conv}" for g in (1, 2) for conv in ("convs.0", "shortcut")]


def test_the_imagenet_preactivation_net_strides_at_its_3x3_and_normalizes_once_after_the_stem() -> None:
    with torch.device("meta"):
        network = create("PreActResNet-50")
    strided = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == ["stem"] + [f"groups.{g}.0.{c}" for g in (1, 2, 3) for c in ("convs.1", "shortcut")]
    assert "groups.0.0.norms.0.weight" not in network.state_dict()
    assert "groups.0.1.norms.0.weight" in network.state_dict()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(28, 28), (31, 31), (64, 64), (96, 40), (8, 8)])
def test_any_image_size_gives_logits_and_stages_of_the_stated_shapes(name: str, size: tuple[int, int]) -> None:
    network = create(name, 7).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits, stages = network(x), network.features(x)
    imagenet = network.name.family == "imagenet"
    assert list(stages) == [f"conv{i}" for i in range(1, 6 if imagenet else 5)] + ["pooled"]
    assert logits.shape == (2, 7)
    torch.testing.assert_close(network.fc(stages["pooled"]), logits)
    for number, widths in enumerate(network.name.group_widths, start=2):
        halvings = number - (0 if imagenet else 2)
        height, width = (-(-side // 2**halvings) for side in size)
        assert stages[f"conv{number}"].shape == (2, widths[-1], height, width)


def test_features_keep_their_values_while_later_layers_run() -> None:
    torch.manual_seed(0)
    for name in ("WRN-10-1", "ResNet-8", "ResNet-18"):
        network = create(name).eval()
        x = torch.randn(1, 3, 32, 32)
        stages = network.features(x)
        torch.testing.assert_close(stages["conv1"], network.enter(x))
        torch.testing.assert_close(stages["conv3"], network.trunk()[1](stages["conv2"].clone()))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    network = create(name)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_channels_last_gives_the_same_logits_and_stays_channels_last(name: str) -> None:
    torch.manual_seed(0)
    network = create(name).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = network(x)
    network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert network.features(x)["conv4"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bfloat16_autocast_trains(norm: str) -> None:
    torch.manual_seed(0)
    network = create("WRN-10-1", norm=norm)
    x = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), network(x), rtol=0.1, atol=0.1)
    logits.float().sum().backward()


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_a_network_compiles_as_one_graph(name: str) -> None:
    torch.manual_seed(0)
    network = create(name, dropout=0.1).eval()
    x = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "input is torch.uint8; normalize"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\), not \(B, 3, H, W\)"),
        (torch.zeros(2, 1, 8, 8), r"shape \(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), "not"),
        ([[1.0]], "a list, not a tensor"),
    ],
)
def test_a_wrong_input_is_a_usage_error(x: Any, message: str) -> None:
    network: Network = create("WRN-10-1")
    for call in (network, network.features):
        with pytest.raises(UsageError, match=message):
            call(x)
