"""Convolutions in 8 bits: exact integer arithmetic for all shapes, threads and processors."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.kernels import abi, ops, quantized
from wideresnet.kernels.compiler import FOLDER, SOURCES
from wideresnet.kernels.quantized import MAX_BYTE, MAX_SUM, QuantizedConv, Quantizer

A_T = {
    6: torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    9: torch.tensor([[1, 1, 1, 1, 0, 1, 0, 0, 0], [0, 1, -1, 2, 0, 0, 1, 0, 0], [0, 1, 1, 4, 0, 0, 0, 1, 0],
                     [0, 1, -1, 8, 1, 0, 0, 0, 1]]),
}  # fmt: skip

# batch, height, width, channels in and out, kernel, stride
SHAPES = [
    (1, 32, 32, 16, 16, 3, 1),
    (2, 5, 7, 16, 48, 3, 1),
    (3, 13, 4, 48, 16, 3, 1),
    (5, 8, 8, 32, 32, 3, 1),
    (1, 1, 1, 16, 32, 3, 1),
    (1, 4, 4, 640, 48, 3, 1),
    (2, 5, 7, 16, 48, 3, 2),
    (1, 13, 4, 48, 16, 3, 2),
    (5, 16, 16, 32, 32, 3, 2),
    (1, 8, 8, 640, 16, 3, 2),
    (2, 5, 7, 48, 16, 1, 1),
    (7, 13, 4, 16, 640, 1, 2),
    (2, 29, 28, 640, 640, 3, 1),  # larger blocks of tiles, since no cache holds the weights
]


def make(in_channels: int, out_channels: int, kernel: int, stride: int, *, direct: bool = False) -> QuantizedConv:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return QuantizedConv(conv, torch.rand(in_channels, dtype=torch.float64) + 0.01, direct=direct)


def bytes_of(batch: int, channels: int, height: int, width: int) -> Tensor:
    return channels_last(torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8))


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def matrices(conv: QuantizedConv) -> Tensor:
    """The integer weights, int64 (frequencies or 1, out, K)."""
    panels, num_f, groups, panel, together = conv.weight.shape
    flat = conv.weight.permute(1, 0, 3, 2, 4).reshape(num_f, panels * panel, together * groups)
    return flat[:, : conv.out_channels].long()


def plainly(conv: QuantizedConv, q: Tensor) -> Tensor:
    """What `conv` should make of q: sums of products in int64, the rest in float64."""
    weight, worth = matrices(conv), conv.rescale[:, : conv.out_channels].double()
    height, width = q.shape[2:]
    if conv.direct:
        kernel = weight[0].unflatten(1, (conv.kernel, conv.kernel, -1)).permute(0, 3, 1, 2)
        sums = F.conv2d(q.double(), kernel.double(), None, conv.stride, conv.kernel // 2)  # exact: below 2^53
        return sums * worth[0][:, None, None]
    if len(weight) == 1:
        seen = q[:, :, :: conv.stride, :: conv.stride].long()
        return torch.einsum("nk,bkij->bnij", weight[0], seen) * worth[0][:, None, None]
    step, points = conv.stride, math.isqrt(len(weight))
    down, across = -(-height // step), -(-width // step)
    padded = F.pad(q.long(), (1, 9, 1, 9))
    result = torch.zeros(len(q), conv.out_channels, down + 4, across + 4, dtype=torch.float64)
    b_t, a_t = quantized.tiles(step).b_t.long(), A_T[points].double()
    for top in range(0, down, 4):
        for left in range(0, across, 4):
            tile = padded[:, :, top * step : top * step + points, left * step : left * step + points]
            seen = torch.einsum("fi,gj,bkij->fgbk", b_t, b_t, tile).flatten(0, 1)
            assert seen.abs().max() < 2**15
            products = torch.einsum("fbk,fnk->fbn", seen, weight)
            assert products.abs().max() <= MAX_SUM
            scaled = (products * worth[:, None]).unflatten(0, (points, points))
            result[:, :, top : top + 4, left : left + 4] = torch.einsum("if,jg,fgbn->bnij", a_t, a_t, scaled)
    return result[:, :, :down, :across]


def assert_equal(found: Tensor | None, wanted: Tensor) -> None:
    """Up to the rounding of what follows the integers."""
    assert found is not None
    assert (found.double() - wanted).abs().max() <= 3e-6 * wanted.abs().max()


@pytest.mark.parametrize("direct", [False, True], ids=["tiles", "direct"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_integer_arithmetic_close_to_the_true_convolution(shape: tuple[int, ...], direct: bool) -> None:
    batch, height, width, ins, outs, kernel, stride = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    step = torch.rand(ins, dtype=torch.float64) + 0.01
    in_8_bits, q = QuantizedConv(conv, step, direct=direct), bytes_of(batch, ins, height, width)
    found, nothing = in_8_bits(q)
    assert nothing is None
    assert_equal(found, plainly(in_8_bits, q))
    assert found is not None
    true = F.conv2d(q * step[:, None, None], conv.weight.double(), None, stride, kernel // 2)
    assert (found - true).norm() < 0.01 * true.norm()


@pytest.mark.parametrize("direct", [False, True], ids=["tiles", "direct"])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7], SHAPES[10]])
def test_a_map_is_added_and_the_result_quantized_for_the_next_layer(shape: tuple[int, ...], direct: bool) -> None:
    batch, height, width, ins, outs, kernel, stride = shape
    conv, q = make(ins, outs, kernel, stride, direct=direct), bytes_of(batch, ins, height, width)
    alone = conv(q)[0]
    assert alone is not None
    add = channels_last(torch.randn(alone.shape) * alone.std())
    norm = nn.BatchNorm2d(outs)
    norm.running_mean, norm.running_var = torch.randn(outs), alone.var((0, 2, 3)) + 1
    normalized = ops.normalize_running(norm)
    step = torch.rand(outs, dtype=torch.float64) / 100 + 0.005
    quantizer = Quantizer.after(normalized, step)
    values, found = conv(q, add=add.clone(), quantizer=quantizer)
    assert values is not None
    assert found is not None
    torch.testing.assert_close(values, alone + add)
    active = norm.eval()(values).relu().detach() / step[:, None, None]
    assert (found - active.clamp(max=MAX_BYTE)).abs().max() < 0.5 + 1e-3
    assert found.min() == 0
    assert found.max() == MAX_BYTE
    bytes_of_values = (values * quantizer.scale[:, None, None] + quantizer.shift[:, None, None]).clamp(0, MAX_BYTE)
    assert (bytes_of_values.floor() - found).abs().max() <= 1  # the kernel rounds once less
    assert (bytes_of_values.floor() == found).float().mean() > 0.999
    without_values, same = conv(q, add=add, quantizer=quantizer, values=False)
    assert without_values is None
    assert same is not None
    assert torch.equal(same, found)


@pytest.mark.parametrize("direct", [False, True], ids=["tiles", "direct"])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7], SHAPES[10]])
def test_with_a_bias_a_sum_is_rectified_before_it_is_stored_and_quantized(shape: tuple[int, ...], direct: bool) -> None:
    batch, height, width, ins, outs, kernel, stride = shape
    conv, q = make(ins, outs, kernel, stride, direct=direct), bytes_of(batch, ins, height, width)
    alone = conv(q)[0]
    assert alone is not None
    add, bias = channels_last(torch.randn(alone.shape) * alone.std()), torch.randn(outs) * alone.std()
    step = (torch.rand(outs, dtype=torch.float64) / 100 + 0.005) * float(alone.std())
    values, found = conv(q, add=add.clone(), bias=bias, quantizer=Quantizer.active(step))
    assert values is not None
    assert found is not None
    torch.testing.assert_close(values, (alone + add + bias[:, None, None]).relu())
    assert (found - (values / step[:, None, None]).clamp(max=MAX_BYTE)).abs().max() < 0.5 + 1e-3
    halves = conv(q, add=add.bfloat16(), bias=bias, quantizer=Quantizer.active(step), dtype=torch.bfloat16)[0]
    assert halves is not None
    exact = (alone + add.bfloat16() + bias[:, None, None]).relu()
    assert ((halves.float() - exact).abs() <= exact / 256).all()  # 8 bits and rounding
    # Of bytes alone the bias may as well be a part of the quantization.
    nothing, same = conv(q, add=add.clone(), quantizer=Quantizer.active(step, bias.double()), values=False)
    assert nothing is None
    assert same is not None
    assert (same.int() - found.int()).abs().max() <= 1
    assert (same == found).float().mean() > 0.99


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("channels", [16, 640])
def test_no_sum_overflows_when_every_product_is_the_largest(kernel: int, stride: int, channels: int) -> None:
    conv = make(channels, 16, kernel, stride)
    way = quantized.tiles(stride)
    highest = MAX_BYTE * (way.highest() if kernel > 1 else torch.ones(1))
    integers, _ = quantized.to_integers(torch.ones(matrices(conv).shape, dtype=torch.float64), highest)
    sums = integers.sum(2) * highest[:, None]
    assert sums.max() <= MAX_SUM
    assert sums.max() > 0.95 * MAX_SUM or integers.max() == quantized.MAX_WEIGHT
    conv.weight, conv.rescale = quantized.pack(integers, torch.ones(integers.shape[:2]), together=2)
    if kernel == 1:
        inputs = [torch.full((6, 6), MAX_BYTE)]
    else:  # for each frequency the tiles that make its number the highest, and the lowest
        products = torch.einsum("fi,gj->fgij", way.b_t, way.b_t).flatten(0, 1)[:: 1 if channels == 16 else 7]
        inputs = [MAX_BYTE * (sign * product > 0) for product in products for sign in (1, -1)]
    q = torch.stack(inputs).to(torch.uint8)[:, None].expand(-1, channels, -1, -1)
    border = 4 * stride - 1  # such that a tile sees all of it
    q = channels_last(F.pad(q, (border, 0, border, 0)))
    assert_equal(conv(q)[0], plainly(conv, q))


@pytest.mark.parametrize("sign", [1, -1])
def test_no_product_of_bytes_saturates(sign: int) -> None:
    conv = nn.Conv2d(640, 16, 3, padding=1, bias=False)
    nn.init.constant_(conv.weight, sign)
    in_8_bits = QuantizedConv(conv, torch.ones(640, dtype=torch.float64), direct=True)
    q = channels_last(torch.full((1, 640, 5, 5), MAX_BYTE, dtype=torch.uint8))
    assert_equal(in_8_bits(q)[0], F.conv2d(q.double(), conv.weight.double(), padding=1))


@pytest.mark.parametrize("direct", [False, True], ids=["tiles", "direct"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[5], SHAPES[6], SHAPES[9], SHAPES[11]])
def test_any_number_of_threads_makes_the_same_bits(shape: tuple[int, ...], direct: bool) -> None:
    batch, height, width, ins, outs, kernel, stride = shape
    conv, q = make(ins, outs, kernel, stride, direct=direct), bytes_of(batch, ins, height, width)
    quantizer = Quantizer(torch.rand(outs), torch.rand(outs))
    values, result = conv(q, quantizer=quantizer)
    before = torch.get_num_threads()
    try:
        for num in range(2, 8):
            torch.set_num_threads(num)
            again, same = conv(q, quantizer=quantizer)
            assert values is not None
            assert again is not None
            assert result is not None
            assert same is not None
            assert torch.equal(again, values)
            assert torch.equal(same, result)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("direct", [False, True], ids=["tiles", "direct"])
def test_one_image_is_the_same_bits_in_any_batch(direct: bool) -> None:
    conv, q = make(16, 32, 3, 1, direct=direct), bytes_of(6, 16, 13, 4)
    together = conv(q)[0]
    assert together is not None
    for i, image in enumerate(q):
        alone = conv(image[None])[0]
        assert alone is not None
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("direct", [False, True], ids=["tiles", "direct"])
def test_zero_weights_cause_no_division_by_zero(direct: bool) -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    values = QuantizedConv(conv, torch.ones(16, dtype=torch.float64), direct=direct)(bytes_of(1, 16, 4, 4))[0]
    assert values is not None
    assert torch.equal(values, torch.zeros(1, 16, 4, 4))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for older processors of this family")
@pytest.mark.parametrize("compiler", [name for name in ("gcc", "clang") if shutil.which(name)])
@pytest.mark.parametrize(
    "target", [("-march=x86-64",), ("-march=sandybridge",), ("-march=sandybridge", "-D__AVX512F__")]
)
def test_other_processors_compute_the_same(
    compiler: str, target: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandy Bridge has wide floats but not wide integers: the portable code; then with vectors of 16 lanes."""
    sources = [os.fspath(FOLDER / name) for name in SOURCES]
    flags = ["-O1", *target, "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, *sources, "-lm", "-o", os.fspath(tmp_path / "old.so")], check=True)
    old = abi.bind(ctypes.CDLL(os.fspath(tmp_path / "old.so")))
    monkeypatch.setattr(quantized, "library", lambda: old)
    assert not old.wrn_direct_is_fast()
    for (batch, height, width, ins, outs, kernel, stride), direct in itertools.product(
        (SHAPES[1], SHAPES[6], SHAPES[10]), (False, True)
    ):
        conv, q = make(ins, outs, kernel, stride, direct=direct), bytes_of(batch, ins, height, width)
        values, result = conv(q, quantizer=Quantizer(torch.full((outs,), 0.1), torch.full((outs,), 100.0)))
        assert_equal(values, plainly(conv, q))
        assert values is not None
        assert result is not None
        assert (result - (values * 0.1 + 99.5).clamp(0, MAX_BYTE)).abs().max() < 0.5 + 1e-3
