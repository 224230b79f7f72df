"""`quantize`: close to the network, or refused in one line."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import UsageError
from wideresnet.engines import int8, quantize
from wideresnet.engines.description import describe
from wideresnet.engines.int8 import NUM_CALIBRATION_IMAGES
from wideresnet.networks import Network, create
from wideresnet.networks.blocks import PostActBlock, PreActBlock

pytestmark = pytest.mark.usefixtures("needs_kernels")


def make(name: str = "WRN-10-2", size: int = 8, *, branches: float = 1.0) -> Network:
    """A network whose running statistics are those of images; what is left of the residual branches may be little."""
    network = create(name, 10).train()
    for block in network.modules():
        if isinstance(block, PostActBlock):
            nn.init.constant_(getattr(block, f"bn{block.num_convs}").weight, branches)
        elif isinstance(block, PreActBlock):
            nn.init.constant_(block.norms[-1].weight, branches)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(20):
            network(images(16, size, size))
    return network.eval()


def images(num: int = 16, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(num, 3, height, width)


@pytest.mark.parametrize("name", ["WRN-10-2", "WRN-16-1-B(3,1,3)", "WRN-16-1-B(1,3,1)", "PreActResNet-20"])
def test_outputs_are_close_to_the_networks_and_reproducible(name: str) -> None:
    network = make(name)
    quantized = quantize(network, images(64, 32, 32))
    for shape in ((16, 8, 8), (8, 29, 17), (1, 32, 32)):
        x = images(*shape)
        with torch.no_grad():
            wanted, found = network(x), quantized(x)
        assert (found - wanted).norm() < 0.05 * wanted.norm()
        assert torch.equal(quantized(x), found)


IMAGENET = ["WRN-18-0.5", "WRN-50-0.25-bottleneck", "PreActResNet-18"]


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("name", IMAGENET)
def test_imagenets_networks_too(name: str, batch_size: int) -> None:
    network = make(name, 64, branches=0.02)  # with large random branches logits are chaotic
    quantized = quantize(network, images(50, 64, 64), batch_size=batch_size)
    for shape in ((16, 64, 64), (3, 75, 39)):
        x = images(*shape)
        with torch.no_grad():
            wanted, found = network(x), quantized(x)
        assert (found - wanted).norm() < 0.08 * wanted.norm()  # of random weights
        assert torch.equal(torch.cat([quantized(image[None]) for image in x]), found)


def test_a_snapshot_is_not_reached_by_later_changes_and_does_not_train() -> None:
    network, x = make(), images()
    quantized = quantize(network, x)
    before = quantized(x)
    nn.init.zeros_(network.fc.weight)
    assert torch.equal(quantized.train()(x), before)
    assert not quantized.training
    assert not before.requires_grad


def test_calibration_leaves_the_network_as_it_was() -> None:
    network = make().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize(network, images())
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
        assert (quantize(network, x)(x) - wanted).norm() < 0.05 * wanted.norm()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("num", [16, 200])
@pytest.mark.parametrize("factor", [20, 1e4], ids=["x 20", "constant 1e4"])
def test_an_outlier_among_the_calibration_images_does_no_harm(num: int, factor: float) -> None:
    network, given, x = make(), images(num, 16, 16), images(50, 16, 16)
    with torch.no_grad():
        wanted = network(x)
    clean = error(quantize(network, given)(x), wanted)
    given[3] = given[3] * factor if factor == 20 else factor
    assert error(quantize(network, given)(x), wanted) < max(3 * clean, 0.02)


def test_images_on_which_8_bits_fail_are_refused_in_one_line() -> None:
    network = make()
    given = images(100, 16, 16)
    given[::2] *= 1e4  # half of the images need much larger steps than the others
    with pytest.raises(UsageError, match=r"^WRN-10-2 in 8 bits changes .* the 100 images by \d+%, more") as refusal:
        quantize(network, given)
    assert "\n" not in str(refusal.value)


def test_it_says_how_many_answers_change_and_when_images_are_few() -> None:
    network = make()
    assert re.fullmatch(
        r"8-bit kernels, calibrated on 49 images, few: give some hundred; \d+ of their answers change",
        quantize(network, images(49)).how,
    )
    quantized = quantize(network, images(50))
    assert re.fullmatch(r"8-bit kernels, calibrated on 50 images; \d+ of their answers change", quantized.how)
    assert 0 < quantized.change < 0.05


@pytest.mark.parametrize(("name", "normalized"), [("WRN-18-0.25", False), ("WRN-10-1", True)])
def test_steps_become_alike_where_weights_of_8_bits_take_in_those_of_unlike_channels(
    name: str, normalized: bool
) -> None:
    description = describe(create(name, 10).eval())
    steps = {layer.reads: torch.tensor([1.0, 1e-4, 4e-2]).double() for layer in description.layers}
    direct = [layer.conv.kernel_size == (1, 1) for layer in description.layers]
    found = int8.balance(description, steps, direct)
    folded = {layer.reads for layer, is_direct in zip(description.layers, direct, strict=True) if is_direct}
    assert 0 < len(folded) < len(steps)
    for number, step in found.items():
        changes = number in folded and not normalized
        wanted = (
            torch.tensor([1.0, 1e-2, 0.2]).double() if changes else steps[number]
        )  # never smaller: no byte overflows
        torch.testing.assert_close(step, wanted)


def test_of_large_images_fewer_are_taken() -> None:
    found = [int8.num_to_calibrate(side, side) for side in (1, 32, 224, 2000)]
    assert found == [1000, 1000, 300, int8.FEW_IMAGES]


@pytest.mark.parametrize("num", [1001, 1999, 2001])
def test_of_many_images_1000_are_taken_evenly_though_they_are_sorted_by_class(num: int) -> None:
    labels = torch.arange(num) * 10 // num
    taken = labels[spread(num, NUM_CALIBRATION_IMAGES)]
    assert len(taken) == 1000
    assert all(abs(int((taken == label).sum()) - 100) <= 1 for label in range(10))
    assert spread(7, NUM_CALIBRATION_IMAGES) == list(range(7))
    network, given = make("WRN-10-1"), images(num)
    given *= 1 + 0.1 * labels[:, None, None, None]
    found, wanted = quantize(network, given), quantize(network, given[spread(num, NUM_CALIBRATION_IMAGES)])
    assert all(torch.equal(found.steps[number], step) for number, step in wanted.steps.items())


def test_no_images_give_no_outputs() -> None:
    assert quantize(make(), images())(images(0)).shape == (0, 10)


def test_autocast_has_no_effect() -> None:
    network, x = make(), images()
    quantized = quantize(network, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantized(x), quantized(x.clone()))
        found = quantized(x)
    assert torch.equal(found, quantized(x))


@pytest.mark.parametrize(
    ("network", "given", "reason"),
    [
        ("WRN-10-1", images(0), "no images"),
        ("WRN-10-1", images()[:, :1], "shape"),
        ("WRN-10-1", images().double(), "fp32"),
        ("ResNet-20", images(), "pre-activation networks, and for ImageNet's"),
        ("ResNeXt-50-32x4d", images(), "plain convolutions"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(network: str, given: Tensor, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refusal:
        quantize(create(network, 10), given)
    assert "\n" not in str(refusal.value)


def test_other_activations_and_damaged_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="ReLU"):
        quantize(create("WRN-10-1", 10, activation="silu"), images())
    network = create("WRN-10-1", 10)
    nn.init.constant_(network.stem.weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not finite"):
        quantize(network, images())
    with pytest.raises(UsageError, match="fp32 on a CPU"):
        quantize(make(), images())(images().double())


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_says_so() -> None:
    with pytest.raises(UsageError, match="no C compiler"):
        quantize(create("WRN-10-1", 10), images())


def test_a_file_leaves_the_quantized_weights_to_the_machine_that_reads_it() -> None:
    quantized, x = quantize(make(), images()), images()
    buffer, plain = io.BytesIO(), io.BytesIO()
    torch.save(quantized, buffer)
    torch.save(quantized.network, plain)
    assert len(buffer.getvalue()) < 1.1 * len(plain.getvalue()) + 10_000  # the steps are a few numbers per channel
    buffer.seek(0)
    for again in (copy.deepcopy(quantized), torch.load(buffer, weights_only=False)):
        assert torch.equal(again(x), quantized(x))


def test_other_weights_are_refused() -> None:
    network = make()
    with pytest.raises(UsageError, match="keeps its weights"):
        quantize(network, images()).load_state_dict(network.state_dict())


def test_nan_and_inf_make_nan_of_their_own_image() -> None:
    quantized, x = quantize(make(), images()), images(4)
    expected = quantized(x)
    x[1, 0, 3, 3], x[2, 1, 0, 0] = torch.nan, -torch.inf
    found = quantized(x)
    assert found[1:3].isnan().all()
    assert torch.equal(found[::3], expected[::3])


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_refused_because_it_would_record_uninitialized_memory() -> None:
    with pytest.raises(UsageError, match="traced"):
        torch.jit.trace(quantize(make(), images()), images())
