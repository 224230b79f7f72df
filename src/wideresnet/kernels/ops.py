"""The float32 kernels as functions of tensors on the CPU, channels last in memory, with multiples of 16 channels.

The caller is responsible for these conditions (see `fits` and `engines.description`). Nothing here records gradients.
Shapes are (B, C, H, W) throughout.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import ceil_div
from wideresnet.kernels.abi import Op
from wideresnet.kernels.library import library
from wideresnet.kernels.threads import num_threads

_memory = threading.local()
LANES = 16  # channels come in multiples of the floats in the widest vector


def fits(conv: nn.Conv2d) -> bool:
    """Return whether `convolve` computes this convolution, apart from its bias."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    return (
        size in (1, 3)
        and stride in (1, 2)
        and conv.kernel_size == (size, size)
        and conv.stride == (stride, stride)
        and conv.padding == (size // 2, size // 2)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.in_channels % LANES == conv.out_channels % LANES == 0
    )


@dataclass(frozen=True)
class Normalized:
    """A batch normalization with its statistics folded in, float32 (C,) each.

    Attributes:
        mean, rstd: statistics of the batch, or the running ones; rstd is 1 / standard deviation.
        scale, shift: the normalized x is scale * x + shift.
        num: positions that the statistics are of; 0 for the running ones.
    """

    mean: Tensor
    rstd: Tensor
    scale: Tensor
    shift: Tensor
    num: int = 0


@dataclass(frozen=True)
class Weight:
    """Transformed weights of a convolution, or of its gradient with respect to the input.

    Attributes:
        values: in the order in which the kernels read them.
        channels: of the result.
        kernel, stride: of the convolution.
    """

    values: Tensor
    channels: int
    kernel: int
    stride: int


def transform_weight(weight: Tensor, stride: int = 1, *, backwards: bool = False, reuse: bool = False) -> Weight:
    """Transform weights (out, in, kernel, kernel) for `convolve`.

    Args:
        stride: of the convolution.
        backwards: whether to transform them for the gradient with respect to the input.
        reuse: whether the result is only needed until this thread's next call. It then gets the same memory each time:
            to fetch fresh memory from the system takes twice as long as to write it.
    """
    weight = channels_last(weight.detach())
    out_channels, in_channels, kernel, _ = weight.shape
    ins, outs = (out_channels, in_channels) if backwards else (in_channels, out_channels)
    size = library().wrn_weight_size(kernel, ins, outs)
    transformed = _reused(size) if reuse else weight.new_empty(size)
    library().wrn_transform_weight(
        at(weight), kernel, stride, in_channels, out_channels, int(backwards), at(transformed), num_threads()
    )
    return Weight(transformed, outs, kernel, stride)


def convolve(
    x: Tensor,
    weight: Weight,
    norm: Normalized | None = None,
    add: Tensor | None = None,
    *,
    summed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute conv(relu(norm(x))) + add, and the sums for a normalization of the result.

    Args:
        x: (B, in, H, W).
        weight: from `transform_weight`.
        norm: fused normalization and activation before the convolution; None for neither.
        add: like the result.
        summed: whether to compute the sums.

    Returns:
        (B, out, H', W'), where H' is H / stride, rounded up; and float64 (2, out): sums of the result and of its
        square, or None.
    """
    batch, channels, height, width = x.shape
    y = empty(batch, weight.channels, ceil_div(height, weight.stride), ceil_div(width, weight.stride))
    sums = _sums(weight.channels) if summed else None
    library().wrn_conv(
        at(x), batch, height, width, channels, weight.channels, weight.kernel, weight.stride,
        at(norm and norm.scale), at(norm and norm.shift), at(weight.values), at(add), None, at(y), at(sums),
        num_threads(),
    )  # fmt: skip
    return y, sums


def convolve_backward(
    gradient: Tensor, weight: Weight, x: Tensor, norm: Normalized | None = None, add: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Backpropagate through convolution and activation, up to the normalization, and to the weights.

    Args:
        gradient: (B, out, H', W'), with respect to the result of the convolution.
        weight: from `transform_weight(..., backwards=True)`.
        x: (B, in, H, W), the input of `norm`.
        norm: None if the convolution reads x itself, without activation.
        add: (B, in, H', W'), another gradient with respect to what the convolution reads. With stride 2 it is that of
            every second row and column, which a 1x1 convolution of stride 2 reads.

    Returns:
        (B, in, H, W); float64 (2, in): sums of it and of its product with x - mean, or None without `norm`; and
        (out, in, kernel, kernel).
    """
    if weight.kernel < weight.stride:  # 1x1: three of four positions are not read
        result = empty(*x.shape).zero_()
        result[:, :, ::2, ::2] = convolve(gradient, replace(weight, stride=1), None, add)[0]
        found = convolve_weight_gradient(x, gradient, norm, kernel=weight.kernel, stride=weight.stride)
        return result, norm and activate_backward(result, x, norm), found
    result, sums = empty(*x.shape), norm and _sums(x.shape[1])
    return result, sums, _backpropagate(x, gradient, norm, weight.kernel, weight.stride, weight, add, result, sums)


def convolve_weight_gradient(
    x: Tensor, gradient: Tensor, norm: Normalized | None = None, *, kernel: int = 3, stride: int = 1
) -> Tensor:
    """Compute the gradient with respect to the weights (out, in, kernel, kernel) of conv(relu(norm(x)))."""
    return _backpropagate(x, gradient, norm, kernel, stride)


def _backpropagate(
    x: Tensor,
    gradient: Tensor,
    norm: Normalized | None,
    kernel: int,
    stride: int,
    weight: Weight | None = None,
    add: Tensor | None = None,
    result: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    batch, channels, height, width = x.shape
    found = empty(gradient.shape[1], channels, kernel, kernel)
    library().wrn_conv_backward(
        at(x), at(gradient), batch, height, width, channels, gradient.shape[1], kernel, stride,
        at(norm and norm.scale), at(norm and norm.shift), at(norm and norm.mean), at(weight and weight.values),
        at(add), at(result), at(sums), at(found), num_threads(),
    )  # fmt: skip
    return found


def statistics(x: Tensor) -> Tensor:
    """Sum a map and its square over all positions: float64 (2, C)."""
    sums = _sums(x.shape[1])
    library().wrn_statistics(at(x), *_positions(x), at(sums), num_threads())
    return sums


def normalize(sums: Tensor, num: int, norm: nn.BatchNorm2d) -> Normalized:
    """Fold the statistics of a batch into a normalization, and update the running statistics.

    Args:
        sums: from `statistics`.
        num: number of positions in the sums.

    Raises:
        ValueError: fewer than two positions, as in PyTorch.
    """
    if num < 2:
        raise ValueError("batch normalization in training needs more than one value per channel")
    parts = norm.weight.new_empty(4, norm.num_features)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    library().wrn_normalize(
        at(sums), num, norm.num_features, at(norm.weight), at(norm.bias), norm.eps, norm.momentum,
        at(norm.running_mean), at(norm.running_var), *map(at, parts),
    )  # fmt: skip
    norm.num_batches_tracked += 1
    return Normalized(*parts, num=num)


def normalize_running(norm: nn.BatchNorm2d) -> Normalized:
    """Fold the running statistics into a normalization, as in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    rstd = (norm.running_var.double() + norm.eps).rsqrt()
    scale, shift = scale_and_shift(norm)
    return Normalized(norm.running_mean, rstd.float(), scale.float(), shift.float())


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a normalization in evaluation mode does, x -> scale * x + shift, as float64 (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def activate(x: Tensor, norm: Normalized) -> Tensor:
    """Compute relu(norm(x))."""
    y = empty(*x.shape)
    library().wrn_activate(at(x), *_positions(x), at(norm.scale), at(norm.shift), at(y), num_threads())
    return y


def activate_backward(gradient: Tensor, x: Tensor, norm: Normalized) -> Tensor:
    """Zero the gradient, in place, where relu(norm(x)) is 0.

    Returns:
        float64 (2, C): sums of the gradient and of its product with x - mean.
    """
    sums = _sums(x.shape[1])
    library().wrn_activate_backward(
        at(gradient), at(x), *_positions(x), at(norm.scale), at(norm.shift), at(norm.mean), at(sums),
        num_threads(),
    )  # fmt: skip
    return sums


def normalize_backward(
    gradient: Tensor,
    sums: Tensor,
    x: Tensor,
    norm: Normalized,
    gamma: Tensor,
    add: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backpropagate through a batch normalization.

    Args:
        gradient: (B, C, H, W), with respect to the normalized x; overwritten.
        sums: from `activate_backward` or `convolve_backward`.
        gamma: the scale parameter (C,).
        add: (B, C, H, W), another gradient with respect to x.
        total: such sums over all positions that the statistics are of; None if x has all of them.

    Returns:
        Gradients with respect to x (in the memory of `gradient`, plus `add`), gamma and beta. The last two are of the
        positions in x alone.
    """
    factor, dgamma, dbeta = gamma.new_empty(3, len(gamma)), torch.empty_like(gamma), torch.empty_like(gamma)
    num, channels = _positions(x)
    library().wrn_normalize_backward(
        at(gradient), at(x), at(add), at(sums), at(sums if total is None else total), num, norm.num, channels,
        at(gamma), at(norm.mean), at(norm.rstd), at(factor), at(gradient), at(dgamma), at(dbeta), num_threads(),
    )  # fmt: skip
    return gradient, dgamma, dbeta


def run(operations: ctypes.Array[Op], x: Tensor, logits: Tensor, arena: Tensor, threads: int) -> None:
    """Run a network in evaluation mode, in one call.

    Args:
        operations: from the stem to the head; see program.c.
        x: float32 (B, C, H, W), in any memory format.
        logits: float32 (B, classes), contiguous; overwritten.
        arena: uint8, memory for the maps.
        threads: that share the work.
    """
    strides = (ctypes.c_long * 4)(*x.stride())
    library().wrn_run(
        operations, len(operations), at(x), strides, len(x), at(logits), at(arena), threads
    )  # fmt: skip


def empty(batch: int, channels: int, height: int, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Allocate a map, channels last even if a side of 1 would leave PyTorch the choice of strides.

    Type and device are explicit because C writes here, whatever the user has set as PyTorch's defaults.
    """
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided((batch, channels, height, width), strides, dtype=dtype, device="cpu")


def channels_last(x: Tensor) -> Tensor:
    """Return the tensor channels last in memory: itself if it already is, else a copy."""
    batch, channels, height, width = x.shape
    if x.stride() == (height * width * channels, 1, width * channels, channels):
        return x
    return empty(batch, channels, height, width, dtype=x.dtype).copy_(x)


def _reused(size: int) -> Tensor:
    if len(getattr(_memory, "floats", ())) < size:
        _memory.floats = torch.empty(size, dtype=torch.float32, device="cpu")
    return _memory.floats[:size]


def _sums(channels: int) -> Tensor:
    return torch.empty(2, channels, dtype=torch.float64, device="cpu")


def _positions(x: Tensor) -> tuple[int, int]:
    """Return the number of positions and of channels of a map."""
    return x.numel() // x.shape[1], x.shape[1]


def at(tensor: Tensor | None) -> int | None:
    """Return where the elements of a tensor begin, as C takes it; None is NULL."""
    return None if tensor is None else tensor.data_ptr()
