"""Convolutions of 8-bit maps as functions of tensors: uint8, on the CPU, channels last in memory.

A map of bytes q stands for the values step * q, with one step per channel. Weights are integers of up to 16 bits, small
enough that no sum of products can overflow 32 bits, whatever the bytes are. The integer arithmetic is therefore exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import ceil_div
from wideresnet.kernels.library import library
from wideresnet.kernels.ops import Normalized, at, empty
from wideresnet.kernels.threads import num_threads

MAX_BYTE = 255
MAX_SIGNED_BYTE = 127
MAX_WEIGHT = 2**15 - 1
MAX_SUM = 2**31 - 1


@dataclass(frozen=True)
class Tiles:
    """The one-dimensional matrices of Winograd's algorithm for tiles of 4x4 outputs.

    Attributes:
        b_t: float64 (points, points), transforms inputs.
        g: float64 (points, 3), transforms weights.
    """

    b_t: Tensor
    g: Tensor

    def highest(self) -> Tensor:
        """Return float64 (points^2,): the largest magnitude that the input transform makes of values in 0..1.

        Both dimensions are transformed, so a frequency is a sum over products of two matrix entries. Its positive
        extreme takes 1 where the product is positive and 0 elsewhere; `up` and `down` are the row sums of the positive
        and of the negative entries.
        """
        up, down = self.b_t.clamp(min=0).sum(1), -self.b_t.clamp(max=0).sum(1)
        same, other = torch.outer(up, up) + torch.outer(down, down), torch.outer(up, down) + torch.outer(down, up)
        return torch.maximum(same, other).flatten()

    def weight(self, weight: Tensor) -> Tensor:
        """Transform weights: float64 (out, in, 3, 3) -> (points^2, out, in)."""
        return torch.einsum("fi,gj,nkij->fgnk", self.g, self.g, weight).flatten(0, 1)


def tiles(stride: int) -> Tiles:
    """Return the matrices for a 3x3 convolution of stride 1 or 2.

    Stride 1 is F(4x4, 3x3). With stride 2, four outputs in a row see nine inputs: the even ones meet the two outer
    weights, which is F(4, 2); the odd ones meet the middle weight, which needs no transform.

    Source: Lavin & Gray 2015 (arXiv 1509.09308), section 4.3, for F(4x4, 3x3). F(4, 2) is the Toom-Cook construction
    with the points 0, 1, -1, 2 and infinity.
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


def direct_is_fast() -> bool:
    """Return whether this processor multiplies bytes in one instruction; without it tiles are faster."""
    return library().wrn_direct_is_fast()


@dataclass(frozen=True)
class Quantizer:
    """Fused normalization, ReLU and quantization: the byte is scale * x + shift, clipped to 0..255 and truncated.

    Attributes:
        scale, shift: float32 (C,).
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def after(cls, norm: Normalized, step: Tensor) -> Quantizer:
        """Quantize relu(norm(x)) to the nearest multiple of `step`, float64 (C,)."""
        # Clipping at 0 is the ReLU. The 0.5 turns truncation into rounding.
        return cls((norm.scale.double() / step).float(), (norm.shift.double() / step + 0.5).float())

    @classmethod
    def active(cls, step: Tensor, bias: Tensor | float = 0.0) -> Quantizer:
        """Quantize relu(x + bias), with a bias of float64 (C,), to the nearest multiple of `step`, float64 (C,)."""
        return cls((1 / step).float(), (bias / step + 0.5).float())


class QuantizedConv:
    """A convolution of byte maps with integer weights.

    Args:
        conv: a convolution that `ops.fits`.
        step: float64 (in_channels,), the value of one unit of the input bytes.
        weight: float32 (out, in, kernel, kernel), instead of the convolution's: with a normalization folded into it.
        direct: whether weights have 8 bits and are used as they are; False for 16 bits, transformed for tiles.

    Attributes:
        kernel, stride: side of the kernel, and its step.
        weight: int16 or int8, in the kernel's layout.
        rescale: float32 (frequencies, output channels), the value of one unit of the products.
    """

    def __init__(self, conv: nn.Conv2d, step: Tensor, *, weight: Tensor | None = None, direct: bool = False) -> None:
        self.in_channels, self.out_channels, self.direct = conv.in_channels, conv.out_channels, direct
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        # The steps of the input are folded into the weights, so that bytes can be multiplied as they are.
        weight = (conv.weight.detach() if weight is None else weight).double() * step[:, None, None]
        if direct:
            matrices = weight.permute(0, 2, 3, 1).flatten(1)[None]
            self.weight, self.rescale = pack(*to_bytes(matrices), together=4)
            return
        if self.kernel == 1:
            matrices, highest = weight.flatten(1)[None], torch.tensor([MAX_BYTE])
        else:
            form = tiles(self.stride)
            matrices, highest = form.weight(weight), MAX_BYTE * form.highest()
        self.weight, self.rescale = pack(*to_integers(matrices, highest), together=2)

    def __call__(
        self,
        q: Tensor,
        *,
        add: Tensor | None = None,
        bias: Tensor | None = None,
        quantizer: Quantizer | None = None,
        values: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the convolution of a map, plus `add`, as values and as bytes; both through ReLU if there is a bias.

        Args:
            q: uint8 (B, in, H, W).
            add: (B, out, H', W'), overwritten by the values.
            bias: float32 (out,).
            quantizer: applied to the result; None if no bytes are needed.
            values: whether values are needed.
            dtype: float32 or bfloat16, of what is added and of the values.

        Returns:
            Values (B, out, H', W') and uint8 of the same shape, each or None.
        """
        batch, _, height, width = q.shape
        shape = batch, self.out_channels, ceil_div(height, self.stride), ceil_div(width, self.stride)
        result = None if not values else empty(*shape, dtype=dtype) if add is None else add
        quantized = empty(*shape, dtype=torch.uint8) if quantizer else None
        run = library().wrn_direct_conv if self.direct else library().wrn_quantized_conv
        run(
            at(q), batch, height, width, self.in_channels, self.out_channels, self.kernel, self.stride,
            at(self.weight), at(self.rescale), at(add), at(bias), at(quantizer and quantizer.scale),
            at(quantizer and quantizer.shift), at(result), at(quantized), dtype == torch.bfloat16,
            num_threads(),
        )  # fmt: skip
        return result, quantized


def to_bytes(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to integers of 8 bits, float64 (F, N, K), with one unit (F, N) for each output channel."""
    unit = matrices.abs().amax(2) / MAX_SIGNED_BYTE
    unit = torch.where(unit > 0, unit, 1.0)
    return (matrices / unit[:, :, None]).round(), unit


def to_integers(matrices: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to integers, as finely as the sums of products allow.

    Args:
        matrices: float64 (F, N, K).
        highest: (F,), the largest magnitude of the factors of each frequency.

    Returns:
        float64 (F, N, K) of integers, at most 2^15 - 1 in magnitude: the sum over K of their products with any factors
        up to `highest` fits in 32 bits. And (F, N), the value of one unit.
    """
    room = torch.floor(MAX_SUM / highest)[:, None] - matrices.shape[2] / 2  # rounding adds up to 1/2 to each of the K
    sizes = matrices.abs()
    unit = torch.maximum(sizes.sum(2) / room, sizes.amax(2) / MAX_WEIGHT)
    unit = torch.where(unit > 0, unit, 1.0)
    return (matrices / unit[:, :, None]).round(), unit


def pack(integers: Tensor, unit: Tensor, *, together: int) -> tuple[Tensor, Tensor]:
    """Bring weights into the kernel's layout, with N padded to a multiple of the panel.

    Args:
        integers: float64 (F, N, K).
        unit: float64 (F, N).
        together: 2 integers of 16 bits, or 4 of 8 bits, that one instruction multiplies.

    Returns:
        int16 or int8 [n / panel][f][k / together][n % panel][k % together] and float32 [f][n].
    """
    num_f, out, size = integers.shape
    panel, dtype = library().wrn_panel(), torch.int16 if together == 2 else torch.int8
    padded = ceil_div(out, panel) * panel
    weight = torch.zeros(num_f, padded, size, dtype=dtype, device="cpu")
    weight[:, :out] = integers.to(dtype)
    rescale = torch.zeros(num_f, padded, dtype=torch.float32, device="cpu")
    rescale[:, :out] = unit
    return weight.view(num_f, -1, panel, size // together, together).permute(1, 0, 3, 2, 4).contiguous(), rescale
