"""The first convolution, with bias, ReLU and max pooling, against PyTorch in float64."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wideresnet.base.arithmetic import ceil_div
from wideresnet.kernels import ops
from wideresnet.kernels.library import library, why_unavailable

SIDES = st.integers(1, 45)


@pytest.fixture(autouse=True, scope="module")
def _needs_kernels() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)


def stem(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, *, pooled: bool, threads: int = 2) -> Tensor:
    batch, channels, height, width = x.shape
    reduction = stride * (2 if pooled else 1)
    y = ops.empty(batch, len(weight), ceil_div(height, reduction), ceil_div(width, reduction)).fill_(torch.nan)
    taps = weight.permute(1, 2, 3, 0).contiguous()
    library().wrn_stem(
        ops.at(x), (ctypes.c_long * 4)(*x.stride()), batch, height, width, channels, len(weight), weight.shape[2],
        stride, int(pooled), ops.at(taps), ops.at(bias), None, None, ops.at(y), None, 0, threads,
    )  # fmt: skip
    return y


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 4), SIDES, SIDES, st.sampled_from([16, 48, 64]), st.sampled_from([1, 3, 5, 7]),
    st.sampled_from([1, 2]), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_every_size_is_the_definition(
    batch: int, ins: int, height: int, width: int, outs: int, kernel: int, stride: int, pooled: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(batch, ins, height, width), torch.randn(outs, ins, kernel, kernel), torch.randn(outs)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), stride, kernel // 2).relu()
    if pooled:
        wanted = F.max_pool2d(wanted, 3, 2, 1)
    found = stem(x, weight, bias, stride, pooled=pooled)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * (1 + wanted.abs().max())
    for again in (x.contiguous(memory_format=torch.channels_last), x.flip(2).flip(2)):
        assert torch.equal(stem(again, weight, bias, stride, pooled=pooled, threads=1), found)


def test_without_bias_nothing_is_rectified() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 9, 11), torch.randn(32, 3, 3, 3)
    wanted = F.conv2d(x.double(), weight.double(), None, 1, 1)
    assert (stem(x, weight, None, 1, pooled=False) - wanted).abs().max() < 1e-5
    assert (wanted < 0).any()


def test_pooling_keeps_nan() -> None:
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 5, 9] = torch.nan
    found = stem(x, torch.ones(16, 1, 1, 1), torch.zeros(16), 1, pooled=True)
    assert torch.equal(found.isnan(), F.max_pool2d(x, 3, 2, 1).isnan().expand(-1, 16, -1, -1))
