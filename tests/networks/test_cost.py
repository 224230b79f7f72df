from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.networks import Network, cost, create
from wideresnet.networks.cost import saved_bytes
from wideresnet.networks.shapes import ShapesAlone


def on_meta(name: str, num_classes: int = 10) -> Network:
    with torch.device("meta"):
        return create(name, num_classes)


@pytest.mark.parametrize(
    ("name", "giga_macs"),
    [("WRN-28-10", 5.24), ("WRN-16-8", 1.55), ("WRN-40-4", 1.30), ("WRN-40-2", 0.33), ("WRN-16-4", 0.39)],
)
def test_macs_are_those_of_the_direct_convolutions(name: str, giga_macs: float) -> None:
    counted = cost(on_meta(name), 32)
    assert round(counted.macs / 1e9, 2) == giga_macs
    assert counted.flops == 2 * counted.macs
    assert counted.training_flops == 3 * counted.flops


def test_any_module_has_totals_but_only_a_network_has_stages() -> None:
    with torch.device("meta"):
        counted = cost(torchvision.models.resnet50(), 224, batch_size=1)
    assert f"{counted.macs / 1e9:.2f}" == "4.09"  # torchvision's model page
    assert counted.params == 25_557_032
    assert counted.stages == ()
    ours = cost(on_meta("ResNet-50", 1000), 224, batch_size=1)
    assert (ours.macs, ours.params, ours.buffers) == (counted.macs, counted.params, counted.buffers)
    assert ours.activation_bytes == counted.activation_bytes


@pytest.mark.parametrize("name", ["WRN-16-2", "ResNet-20", "PreActResNet-11-bottleneck", "ResNeXt-50-32x4d"])
def test_stages_add_up_to_the_totals(name: str) -> None:
    counted = cost(on_meta(name), (40, 24), batch_size=2)
    assert sum(stage.params for stage in counted.stages) == counted.params
    assert sum(stage.macs for stage in counted.stages) == counted.macs
    assert [stage.name for stage in counted.stages][-2:] == ["pooled", "fc"]


def test_a_stage_can_be_checked_by_hand() -> None:
    conv1, conv2, *_, fc = cost(on_meta("WRN-10-2"), 32).stages
    assert (conv1.shape, conv1.macs) == ((16, 32, 32), 3 * 16 * 9 * 1024)
    assert (conv2.shape, conv2.macs) == ((32, 32, 32), (16 * 32 * 9 + 32 * 32 * 9 + 16 * 32) * 1024)
    assert conv2.params == 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32 + 2 * (16 + 32)
    assert (fc.shape, fc.macs, fc.params) == ((10,), 1280, 1290)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"activation": "silu"}, {"norm": "group"}], ids=str)
@pytest.mark.parametrize("name", ["WRN-10-2", "ResNet-8"])
def test_activation_bytes_are_what_autograd_really_saves(name: str, options: dict[str, str]) -> None:
    network = create(name, **options)  # pyright: ignore[reportArgumentType]
    parameters = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    kept: dict[int, Tensor] = {}  # by address, which on a real device tells tensors apart

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = torch.randn(2, 3, 20, 20)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    real = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in parameters)
    assert saved_bytes(lambda: network(images), network) == real
    assert cost(network, 20, batch_size=2).activation_bytes == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("name", ["WRN-10-1", "WRN-40-1", "ResNet-20"])
def test_what_autograd_saves_of_real_images_is_what_the_shapes_say(name: str) -> None:
    network = create(name)
    images = torch.randn(3, 3, 16, 16)
    assert saved_bytes(lambda: network(images), network) == cost(network, 16, 3).activation_bytes


@pytest.mark.parametrize("name", ["WRN-10-2", "ResNet-8", "PreActResNet-11-bottleneck", "ResNeXt-50-32x4d"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "norm": "group"}, {"activation": "silu"}], ids=str)
def test_shapes_alone_are_those_of_pytorchs_own_operations(name: str, options: dict[str, str]) -> None:
    with torch.device("meta"):
        network = create(name, **options)  # pyright: ignore[reportArgumentType]
    network.fc.requires_grad_(False)
    next(network.parameters()).requires_grad_(False)

    def see() -> tuple[list[torch.Size], int]:
        images = torch.empty(3, 3, 37, 50, device="meta")
        shapes = [stage.shape for stage in network.features(images).values()]
        return [*shapes, network(images).shape], saved_bytes(lambda: network(images), network)

    slow = see()
    with ShapesAlone():
        assert see() == slow


def test_shapes_alone_refuse_what_pytorch_refuses() -> None:
    conv, norm = nn.Conv2d(3, 4, 5, device="meta"), nn.BatchNorm2d(3, device="meta")
    with ShapesAlone():
        for module, shape in ((conv, (1, 2, 9, 9)), (conv, (1, 3, 4, 9)), (norm, (1, 3, 1, 1))):
            with pytest.raises((RuntimeError, ValueError), match=r"channel dim|Kernel size|more than 1 value"):
                module(torch.empty(shape, device="meta"))


def test_what_a_custom_function_saves_is_counted_once() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            extra = torch.ones(1000)
            ctx.save_for_backward(extra, extra)
            return 2 * x

    x = torch.ones(1, requires_grad=True)
    assert saved_bytes(lambda: Double.apply(x), nn.Identity()) == 4000


def test_relu_in_place_saves_one_map_where_silu_saves_two() -> None:
    relu, silu = (
        cost(create("WRN-10-2", activation=activation), 32).activation_bytes for activation in ("relu", "silu")
    )
    assert silu > 1.25 * relu


def test_activation_bytes_grow_with_the_batch() -> None:
    network = on_meta("WRN-10-2")
    small, large = (cost(network, 32, batch).activation_bytes for batch in (8, 80))
    assert large == pytest.approx(10 * small, rel=0.01)


def test_model_and_seed_do_not_change() -> None:
    network = create("ResNet-8", dropout=0.3, stochastic_depth=0.2).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    seed = torch.get_rng_state()
    counted = cost(network, 32)
    assert torch.equal(torch.get_rng_state(), seed)
    assert counted.macs == cost(on_meta("ResNet-8"), 32).macs  # no block is skipped
    assert not network.training
    assert all(not module._forward_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.layer1[0].survival < 1  # pyright: ignore


def test_a_half_precision_model_is_counted_in_float32() -> None:
    network = create("WRN-10-1")
    assert cost(network, 32) == cost(create("WRN-10-1").half(), 32)


@pytest.mark.parametrize(("size", "batch"), [(0, 1), (-3, 1), ((32,), 1), ((32, 0), 1), ("32", 1), (32, 0), (10**9, 1)])
def test_a_size_out_of_range_is_a_usage_error(size: object, batch: int) -> None:
    name = "input_size" if size != 32 or batch == 1 else "batch_size"
    with pytest.raises(UsageError, match=rf"^{name}=.*from 1 to 65,536$"):
        cost(on_meta("WRN-10-1"), size, batch)  # pyright: ignore[reportArgumentType]


def test_a_model_without_convolution_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Linear has no convolution"):
        cost(nn.Linear(3, 2), 32)
