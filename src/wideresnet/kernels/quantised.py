"""Convolutions of 8-bit maps as functions of tensors: uint8, on the CPU, channels last in memory.

A map of bytes q stands for the values step * q, with a step for each channel. Weights are whole numbers of up to 16
bits, so small that no sum of products can leave 32 bits whatever the bytes are: the arithmetic is exact up to there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wideresnet.kernels.library import library
from wideresnet.kernels.ops import LANES, Normalised, _at, _check, _long, _positions, _threads, empty

MAX_BYTE = 255
MAX_WEIGHT = 2**15 - 1
MAX_SUM = 2**31 - 1


@dataclass(frozen=True)
class Tiles:
    """Winograd's algorithm for tiles of 4x4 outputs: the matrices of one dimension.

    Attributes:
        b_t: float64 (points, points), from inputs.
        g: float64 (points, 3), from weights.
    """

    b_t: Tensor
    g: Tensor

    def highest(self) -> Tensor:
        """float64 (points^2,): the most that the input transform makes of values of 0..1, in magnitude."""
        up, down = self.b_t.clamp(min=0).sum(1), -self.b_t.clamp(max=0).sum(1)
        same, other = torch.outer(up, up) + torch.outer(down, down), torch.outer(up, down) + torch.outer(down, up)
        return torch.maximum(same, other).flatten()

    def weight(self, weight: Tensor) -> Tensor:
        """float64 (points^2, out, in) of float64 (out, in, 3, 3)."""
        return torch.einsum("fi,gj,nkij->fgnk", self.g, self.g, weight).flatten(0, 1)


def tiles(stride: int) -> Tiles:
    """F(4x4, 3x3) for stride 1; for stride 2, F(4, 2) of every other input and the outer weights beside the rest.

    Source: Lavin & Gray 2015 (arXiv 1509.09308), section 4.3, for the former; F(4, 2) is made in the same way (that of
    Toom and Cook) from the points 0, 1, -1, 2 and infinity.
    """
    if stride == 1:
        b_t = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
               [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
        g = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
             [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
        return Tiles(torch.tensor(b_t, dtype=torch.float64), torch.tensor(g, dtype=torch.float64))
    b_t, g = torch.zeros(9, 9, dtype=torch.float64), torch.zeros(9, 3, dtype=torch.float64)
    b_t[:5, ::2] = torch.tensor(
        [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]]
    )
    g[:5, ::2] = torch.tensor(
        [[1 / 2, 0], [-1 / 2, -1 / 2], [-1 / 6, 1 / 6], [1 / 6, 1 / 3], [0, 1]], dtype=torch.float64
    )
    b_t[5:, 1::2], g[5:, 1] = torch.eye(4), 1
    return Tiles(b_t, g)


def fits(conv: nn.Conv2d) -> bool:
    """Whether `QuantisedConv` does what this convolution does."""
    size = conv.kernel_size[0]
    return (
        conv.kernel_size == (size, size)
        and size in (1, 3)
        and conv.padding == (size // 2, size // 2)
        and conv.stride in ((1, 1), (2, 2))
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.in_channels % LANES == conv.out_channels % LANES == 0
    )


@dataclass(frozen=True)
class Quantiser:
    """Normalisation, ReLU and quantisation in one: the byte is scale * x + shift, cut to 0..255 and to a whole number.

    Attributes:
        scale, shift: float32 (C,).
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def after(cls, norm: Normalised, step: Tensor) -> Quantiser:
        """Of relu(norm(x)), in steps of float64 (C,), to the nearest."""
        return cls((norm.scale.double() / step).float(), (norm.shift.double() / step + 0.5).float())

    def __call__(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of float32 (B, C, H, W)."""
        q = empty(*x.shape, dtype=torch.uint8)
        library().wrn_quantise(_at(x), *_positions(x), _at(self.scale), _at(self.shift), _at(q), _threads())
        return q


class QuantisedConv:
    """A convolution of maps of bytes, its weights in whole numbers.

    Args:
        conv: a convolution that `fits`.
        step: float64 (in_channels,), what a unit of the input's bytes is worth.

    Attributes:
        points: 6 or 9 by tiles, which have so many squared numbers a channel; 1 for 1x1.
        weight: int16, as the kernel takes them.
        rescale: float32 (points^2, output channels), what a unit of the products is worth.
    """

    def __init__(self, conv: nn.Conv2d, step: Tensor) -> None:
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.stride = conv.stride[0]
        weight = conv.weight.detach().double() * step[:, None, None]  # (out, in, kernel, kernel)
        if conv.kernel_size == (1, 1):
            self.points, matrices, highest = 1, weight.flatten(1)[None], torch.tensor([MAX_BYTE])
        else:
            way = tiles(self.stride)
            self.points, matrices, highest = len(way.g), way.weight(weight), MAX_BYTE * way.highest()
        whole, worth = to_whole(matrices, highest)
        self.weight, self.rescale = _pack(whole, worth)

    def __call__(
        self, q: Tensor, *, add: Tensor | None = None, quantiser: Quantiser | None = None, values: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """The convolution of a map + add, as values and as bytes.

        Args:
            q: uint8 (B, in, H, W).
            add: float32 (B, out, H', W'); its memory is where the values go.
            quantiser: of the result; None where no bytes are needed.
            values: whether the values are needed.

        Returns:
            float32 (B, out, H', W') and uint8 of the same shape, each or None.
        """
        batch, _, height, width = q.shape
        shape = batch, self.out_channels, -(-height // self.stride), -(-width // self.stride)
        result = None if not values else empty(*shape) if add is None else add
        quantised = empty(*shape, dtype=torch.uint8) if quantiser else None
        failed = library().wrn_quantised_conv(
            _at(q),
            *map(_long, (batch, height, width, self.in_channels, self.out_channels, self.stride)), self.points,
            _at(self.weight), _at(self.rescale), _at(add), _at(quantiser and quantiser.scale),
            _at(quantiser and quantiser.shift), _at(result), _at(quantised), _threads(),
        )  # fmt: skip
        _check(failed)
        return result, quantised


def to_whole(matrices: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to whole numbers, as fine as the sums of products allow.

    Args:
        matrices: float64 (F, N, K).
        highest: (F,), the highest magnitude of what they are multiplied by.

    Returns:
        float64 (F, N, K), whole, at most 2^15 - 1, with sums over K of products with anything up to `highest` within
        32 bits; and (F, N), what a unit of them is worth.
    """
    room = torch.floor(MAX_SUM / highest)[:, None] - matrices.shape[2] / 2  # each may be rounded up by a half
    sizes = matrices.abs()
    worth = torch.maximum(sizes.sum(2) / room, sizes.amax(2) / MAX_WEIGHT)
    worth = torch.where(worth > 0, worth, 1.0)
    return (matrices / worth[:, :, None]).round(), worth


def _pack(whole: Tensor, worth: Tensor) -> tuple[Tensor, Tensor]:
    """int16 [f][n / panel][k / 2][n % panel][k % 2] and float32 [f][n], n filled up to a multiple of the panel."""
    num_f, out, size = whole.shape
    panel = library().wrn_panel()
    filled = -(-out // panel) * panel
    weight = torch.zeros(num_f, filled, size, dtype=torch.int16, device="cpu")
    weight[:, :out] = whole.to(torch.int16)
    rescale = torch.zeros(num_f, filled, dtype=torch.float32, device="cpu")
    rescale[:, :out] = worth
    return weight.view(num_f, -1, panel, size // 2, 2).transpose(2, 3).contiguous(), rescale
