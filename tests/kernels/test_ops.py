"""Each float32 kernel against its slow, obvious twin in float64."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from wideresnet.base.arithmetic import ceil_div
from wideresnet.kernels import ops

CLOSE = 3e-6  # a few roundings of float32; Winograd's transforms multiply them by ten at single places
MAPS = [(1, 1), (3, 5), (5, 7), (13, 4), (33, 31)]
SHAPES = [(3, 16, 32, size) for size in MAPS] + [
    (1, 16, 16, (1, 1)),
    (1, 48, 16, (5, 7)),
    (3, 16, 48, (8, 8)),
    (2, 32, 160, (6, 6)),
    (1, 160, 48, (9, 4)),
    (1, 640, 640, (2, 3)),
    (9, 16, 16, (40, 36)),  # several blocks of tiles
]


KINDS = [(3, 1), (3, 2), (1, 1), (1, 2)]  # kernel and stride


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_map(batch: int, channels: int, size: tuple[int, int], *, mean: float = 0.0) -> Tensor:
    return ops.channels_last(mean + torch.randn(batch, channels, *size))


def weights(outs: int, ins: int, kernel: int = 3) -> Tensor:
    return torch.randn(outs, ins, kernel, kernel) * (2 / (kernel**2 * ins)) ** 0.5


def a_norm(channels: int) -> ops.Normalized:
    """A normalization of random maps; of negative slope here and there, which no two channels share."""
    mean, scale = torch.randn(channels) / 2, torch.randn(channels)
    return ops.Normalized(mean, torch.rand(channels) + 0.5, scale, torch.randn(channels) / 2)


def doubled(norm: ops.Normalized, x: Tensor) -> Tensor:
    return x.double() * norm.scale.double()[:, None, None] + norm.shift.double()[:, None, None]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    off, scale = actual.double() - expected, expected.abs().max().item() + 1e-30
    assert off.norm().item() <= tolerance * expected.norm().item()
    assert off.abs().max().item() <= 10 * tolerance * scale


def assert_sums(actual: Tensor | None, first: Tensor, second: Tensor) -> None:
    """Sums over a map, against the maps of what is summed; an error is measured by the sum of absolute values."""
    assert actual is not None
    for total, values in zip(actual, (first, second), strict=True):
        scale = values.abs().sum((0, 2, 3)).clamp_min(1e-30)
        assert ((total - values.sum((0, 2, 3))).abs() / scale).max().item() < CLOSE


@pytest.mark.parametrize(("kernel", "stride"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_convolution_equals_its_definition(
    shape: tuple[int, int, int, tuple[int, int]], kernel: int, stride: int
) -> None:
    batch, ins, outs, size = shape
    x, weight, norm = a_map(batch, ins, size), weights(outs, ins, kernel), a_norm(ins)
    transformed = ops.transform_weight(weight, stride)
    plain, sums = ops.convolve(x, transformed)
    assert sums is None
    assert_near(plain, F.conv2d(x.double(), weight.double(), None, stride, kernel // 2))
    add = ops.channels_last(torch.randn_like(plain))
    whole, sums = ops.convolve(x, transformed, norm, add, summed=True)
    assert_near(whole, F.conv2d(doubled(norm, x).relu(), weight.double(), None, stride, kernel // 2) + add.double())
    assert_sums(sums, whole.double(), whole.double().square())


@pytest.mark.parametrize(("kernel", "stride"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_of_the_input_equals_autograds(
    shape: tuple[int, int, int, tuple[int, int]], kernel: int, stride: int
) -> None:
    batch, ins, outs, size = shape
    x, weight, norm = a_map(batch, ins, size), weights(outs, ins, kernel), a_norm(ins)
    small = ceil_div(size[0], stride), ceil_div(size[1], stride)
    gradient, add, transformed = (
        a_map(batch, outs, small),
        a_map(batch, ins, small),
        ops.transform_weight(weight, stride, backwards=True),
    )
    through = conv2d_input(x.shape, weight.double(), gradient.double(), stride, kernel // 2)
    plain, no_sums, of_weights = ops.convolve_backward(gradient, transformed, x)
    assert_near(plain, through)
    assert no_sums is None
    assert_near(of_weights, conv2d_weight(x.double(), weight.shape, gradient.double(), stride, kernel // 2))
    for more in (None, add):
        result, sums, of_weights = ops.convolve_backward(gradient, transformed, x, norm, more)
        alone = ops.convolve_weight_gradient(x, gradient, norm, kernel=kernel, stride=stride)
        assert torch.equal(of_weights, alone)
        whole = through.clone()
        if more is not None:
            whole[:, :, ::stride, ::stride] += more.double()
        # where the sign of the activation's input hangs on the last digit either answer is right
        settled = doubled(norm, x).abs() > 1e-5
        assert_near(result * settled, whole * (doubled(norm, x) > 0) * settled)
        far = x.double() - norm.mean.double()[:, None, None]
        assert_sums(sums, result.double(), result.double() * far)


@pytest.mark.parametrize(("kernel", "stride"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_of_the_weights_equals_autograds(
    shape: tuple[int, int, int, tuple[int, int]], kernel: int, stride: int
) -> None:
    batch, ins, outs, size = shape
    x, norm = a_map(batch, ins, size), a_norm(ins)
    gradient = a_map(batch, outs, (ceil_div(size[0], stride), ceil_div(size[1], stride)))
    for prologue, source in ((None, x.double()), (norm, doubled(norm, x).relu())):
        expected = conv2d_weight(source, (outs, ins, kernel, kernel), gradient.double(), stride, kernel // 2)
        found = ops.convolve_weight_gradient(x, gradient, prologue, kernel=kernel, stride=stride)
        assert_near(found, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_larger_than_any_cache_are_used_on_larger_blocks_with_the_same_results(stride: int) -> None:
    size = 29 * stride, 28 * stride
    x, gradient, weight, norm = a_map(4, 640, size), a_map(4, 640, (29, 28)), weights(640, 640), a_norm(640)
    forwards, backwards = (ops.transform_weight(weight, stride, backwards=flag) for flag in (False, True))
    y, sums = ops.convolve(x, forwards, norm, summed=True)
    through, back, found = ops.convolve_backward(gradient, backwards, x, norm)
    assert_sums(back, through.double(), through.double() * (x.double() - norm.mean.double()[:, None, None]))
    expected = F.conv2d(doubled(norm, x).relu(), weight.double(), None, stride, 1)
    assert_near(y, expected, 2 * CLOSE)  # 640 products are added one after the other
    assert_sums(sums, y.double(), y.double().square())
    for i in range(4):  # whatever the size of a block
        own, others = x[i : i + 1], gradient[i : i + 1]
        assert torch.equal(ops.convolve(own, forwards, norm)[0], y[i : i + 1])
        assert torch.equal(ops.convolve_backward(others, backwards, own, norm)[0], through[i : i + 1])
    each = [
        ops.convolve_weight_gradient(x[i : i + 1], gradient[i : i + 1], norm, stride=stride).double() for i in range(4)
    ]
    assert_near(found, torch.stack(each).sum(0))


@pytest.mark.parametrize(("batch", "channels", "size"), [(1, 16, (1, 2)), (3, 48, (5, 7)), (7, 32, (33, 31))])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_normalization_equals_batch_norm_with_its_running_statistics(
    batch: int, channels: int, size: tuple[int, int], mean: float
) -> None:
    x = a_map(batch, channels, size, mean=mean)
    ours = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    for tensor in (ours.weight, ours.bias, ours.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    theirs = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3).double()
    theirs.load_state_dict(ours.state_dict())
    norm = ops.normalize(ops.statistics(x), x.numel() // channels, ours)
    expected = theirs(x.double())
    for name, buffer in theirs.named_buffers():
        assert_near(getattr(ours, name).double(), buffer.double())
    variance = x.double().var((0, 2, 3), correction=0)
    assert (norm.mean - x.double().mean((0, 2, 3))).abs().max() < 1e-6 * (1 + mean)
    assert_near(norm.rstd, (variance + 1e-3).rsqrt())
    # a shift of a thousand deviations costs three digits, whoever computes scale * x + shift
    assert_near(ops.activate(x, norm), expected.relu(), CLOSE if mean == 0 else 1e-3)
    at_test_time = ops.activate(x, ops.normalize_running(ours))
    assert_near(at_test_time, theirs.eval()(x.double()).relu(), CLOSE if mean == 0 else 1e-3)


def test_sums_fused_into_the_convolution_give_the_variance_of_a_map_far_from_zero() -> None:
    x, weight = a_map(6, 16, (33, 31)), weights(32, 16)
    add = a_map(6, 32, (33, 31), mean=1000.0)
    y, sums = ops.convolve(x, ops.transform_weight(weight), None, add, summed=True)
    assert sums is not None
    mean, square = sums / (y.numel() // 32)
    variance = y.double().var((0, 2, 3), correction=0)
    assert ((square - mean.square()) / variance - 1).abs().max() < 1e-5
    assert (ops.statistics(y) / sums - 1).abs().max() < 1e-8


def test_a_single_position_has_no_statistics() -> None:
    x = a_map(1, 16, (1, 1))
    with pytest.raises(ValueError, match="more than one value"):
        ops.normalize(ops.statistics(x), 1, nn.BatchNorm2d(16))


@pytest.mark.parametrize("size", [(1, 2), (5, 7), (33, 31)])
def test_backpropagation_through_activation_and_normalization_equals_autograds(size: tuple[int, int]) -> None:
    x, gradient, add = a_map(3, 32, size), a_map(3, 32, size), a_map(3, 32, size)
    module = nn.BatchNorm2d(32)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    twin = nn.BatchNorm2d(32).double()
    twin.load_state_dict(module.state_dict())
    norm = ops.normalize(ops.statistics(x), x.numel() // 32, module)
    leaf = x.double().requires_grad_()
    normalized = twin(leaf)
    gradient *= normalized.detach().abs() > 1e-5  # else the sign hangs on the last digit
    normalized.relu().backward(gradient.double())
    assert leaf.grad is not None
    mine = gradient.clone()
    sums = ops.activate_backward(mine, x, norm)
    gated = gradient.double() * (normalized.detach() > 0)
    assert_near(mine, gated, 1e-12)
    assert_sums(sums, gated, gated * (x.double() - norm.mean.double()[:, None, None]))
    for more in (None, add):
        dx, dgamma, dbeta = ops.normalize_backward(mine.clone(), sums, x, norm, module.weight, more)
        assert_near(dx, leaf.grad if more is None else leaf.grad + more.double(), 2e-5 if size == (1, 2) else CLOSE)
        assert_near(dgamma, twin.weight.grad)  # type: ignore[arg-type]
        assert_near(dbeta, twin.bias.grad)  # type: ignore[arg-type]


def test_a_part_of_a_batch_is_normalized_by_the_statistics_and_sums_of_the_whole() -> None:
    x, gradient, module = a_map(5, 32, (5, 7)), a_map(5, 32, (5, 7)), nn.BatchNorm2d(32)
    norm = ops.normalize(ops.statistics(x), x.numel() // 32, module)
    total = ops.activate_backward(gradient, x, norm)
    whole, *expected = ops.normalize_backward(gradient.clone(), total, x, norm, module.weight)
    parts = []
    for part in (slice(0, 2), slice(2, 5)):
        own = ops.activate_backward(gradient[part], x[part], norm)
        parts.append(ops.normalize_backward(gradient[part].clone(), own, x[part], norm, module.weight, total=total))
    assert torch.equal(torch.cat([dx for dx, _, _ in parts]), whole)
    for found, value in zip(zip(*(of_parameters for _, *of_parameters in parts), strict=True), expected, strict=True):
        assert_near(sum(found), value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kernel", "stride"), KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_the_output(bad: float, kernel: int, stride: int) -> None:
    x, weight, norm, last = a_map(2, 16, (9, 9)), weights(32, 16, kernel), a_norm(16), 8 // stride
    gradient = a_map(2, 32, (last + 1, last + 1))
    with torch.no_grad():
        norm.scale.abs_()
    x[1, 3, 8, 8] = bad
    y, sums = ops.convolve(x, ops.transform_weight(weight, stride), norm, summed=True)
    assert sums is not None
    nearest = last - (kernel == 3 and stride == 1)
    assert not torch.isfinite(y[1, :, nearest:, nearest:]).any()
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(sums).any()
    assert not torch.isfinite(ops.statistics(x)[:, 3]).any()
    assert torch.isfinite(ops.statistics(x)[:, 4:]).all()
    assert not torch.isfinite(ops.activate(x, norm)[1, 3, 8, 8])
    found = ops.convolve_weight_gradient(x, gradient, norm, kernel=kernel, stride=stride)
    assert not torch.isfinite(found[:, 3, kernel // 2, kernel // 2]).any()
    gradient[0, 0, 0, 0] = bad
    back, *_ = ops.convolve_backward(gradient, ops.transform_weight(weight, stride, backwards=True), x, norm)
    open_there = doubled(norm, x)[0, :, 0, 0] > 0
    assert not torch.isfinite(back[0, :, 0, 0][open_there]).any()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
@pytest.mark.parametrize(
    ("batch", "ins", "outs", "size"), [(1, 16, 16, (5, 7)), (2, 160, 48, (8, 8)), (9, 16, 32, (40, 36))]
)
def test_the_number_of_threads_changes_the_rounding_of_sums_and_nothing_else(
    batch: int, ins: int, outs: int, size: tuple[int, int], kernel: int, stride: int
) -> None:
    x, weight, norm = a_map(batch, ins, size), weights(outs, ins, kernel), a_norm(ins)
    gradient = a_map(batch, outs, (ceil_div(size[0], stride), ceil_div(size[1], stride)))
    results = []
    for number in range(1, 8):
        torch.set_num_threads(number)
        transformed, backwards = (ops.transform_weight(weight, stride, backwards=way) for way in (False, True))
        y, sums = ops.convolve(x, transformed, norm, gradient, summed=True)
        dx, dsums, dw = ops.convolve_backward(gradient, backwards, x, norm)
        equal = [y, dx, ops.activate(x, norm), ops.statistics(x), ops.activate_backward(dx.clone(), x, norm)]
        results.append((equal, sums, dsums, dw))
    for equal, sums, dsums, dw in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(equal, results[0][0], strict=True))
        assert_near(dw, results[0][3].double())
        values = results[0][0][0].double()
        assert ((sums - results[0][1])[0].abs() / values.abs().sum((0, 2, 3))).max() < 1e-6
        assert torch.allclose(dsums, results[0][2], rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("threads")
def test_no_partial_sum_survives_from_the_previous_call() -> None:
    torch.set_num_threads(3)
    for batch in (108, 97):  # 97 tiles leave the last of 12 parts of 9 without any
        x, gradient = a_map(batch, 16, (4, 4)), a_map(batch, 16, (4, 4))
        found = ops.convolve_weight_gradient(x, gradient)
        torch.set_num_threads(1)
        assert_near(found, ops.convolve_weight_gradient(x, gradient).double())
        torch.set_num_threads(3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thread_that_ends_leaves_no_memory_behind() -> None:
    def held_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    def work() -> None:
        torch.set_num_threads(1)
        ops.convolve(x, transformed)

    x, transformed = a_map(4, 64, (32, 32)), ops.transform_weight(weights(64, 64))  # needs some 2 MiB of scratch
    before = 0.0
    for number in range(60):
        if number == 20:  # whatever else grows at first has done so
            before = held_mib()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert held_mib() - before < 40


def test_other_memory_layouts_are_converted() -> None:
    x, weight = torch.randn(5, 16, 12, 9), weights(32, 16)
    expected, _ = ops.convolve(ops.channels_last(x), ops.transform_weight(weight))
    wide = torch.randn(5, 32, 24, 9)
    wide[:, ::2, 1::2] = x
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        wide[:, ::2, 1::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        y, _ = ops.convolve(ops.channels_last(same), ops.transform_weight(weight))
        assert torch.equal(y, expected)
    turned = ops.transform_weight(weight.contiguous(memory_format=torch.channels_last))
    assert torch.equal(turned.values, ops.transform_weight(weight).values)


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (4, 16, 1, 1), (1, 16, 5, 1), (2, 16, 1, 7), (3, 16, 4, 4)])
def test_maps_with_a_side_of_one_have_the_kernels_strides(shape: tuple[int, int, int, int]) -> None:
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    for x in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=torch.channels_last)):
        assert ops.channels_last(x).stride() == ops.empty(*shape).stride() == strides
        assert torch.equal(ops.channels_last(x), x)


def test_a_map_that_is_channels_last_is_not_copied() -> None:
    x = ops.empty(2, 16, 4, 4)
    assert ops.channels_last(x) is x


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"kernel_size": 1, "padding": 0}, True),
        ({"stride": 2}, True),
        ({"kernel_size": 1, "padding": 0, "stride": 2}, True),
        ({"stride": 3}, False),
        ({"stride": (1, 2)}, False),
        ({"kernel_size": (3, 1)}, False),
        ({"kernel_size": 5, "padding": 2}, False),
        ({"padding": 0}, False),
        ({"kernel_size": 1}, False),
        ({"dilation": 2, "padding": 2}, False),
        ({"groups": 2}, False),
        ({"bias": True}, True),  # which the caller adds
        ({"padding_mode": "reflect"}, False),
        ({"in_channels": 24}, False),
        ({"out_channels": 8}, False),
    ],
    ids=str,
)
def test_only_plain_convolutions_of_3x3_and_1x1_fit(changes: dict[str, object], fits: bool) -> None:
    options = {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1, "bias": False, **changes}
    assert ops.fits(nn.Conv2d(**options)) is fits  # type: ignore[arg-type]


@pytest.mark.parametrize("far", [0, 3, 10, 100, 1000])
def test_sums_keep_their_digits_where_the_first_outputs_stand_out(far: float) -> None:
    add = ops.channels_last(torch.randn(4, 32, 16, 16) + 5)
    add[:, :, 0, 0] += far  # in standard deviations of the others
    transformed = ops.transform_weight(torch.randn(32, 32, 3, 3) * 0.01)
    y, sums = ops.convolve(ops.channels_last(torch.randn(4, 32, 16, 16)), transformed, None, add, summed=True)
    assert sums is not None
    variance = y.double().var((0, 2, 3), unbiased=False)
    for mean, mean_square in (sums / 1024, ops.statistics(y) / 1024):
        assert ((mean_square - mean * mean) / variance - 1).abs().max() < 5e-6
