"""The kernels as functions of tensors: float32, on the CPU, channels last in memory, channels a multiple of 16.

Callers see to that (`networks.fast` asks `fits`); nothing here takes part in autograd.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wideresnet.kernels.library import library

LANES = 16  # channels come in multiples of the widest vector's floats


def fits(conv: nn.Conv2d) -> bool:
    """Whether `convolve` does what this convolution does."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.in_channels % LANES == conv.out_channels % LANES == 0
    )


@dataclass(frozen=True)
class Normalised:
    """What a normalisation made of a batch's statistics, float32 (C,) each.

    Attributes:
        mean, rstd: of the batch; the latter is 1 / standard deviation.
        scale, shift: such that scale * x + shift is the normalised x.
    """

    mean: Tensor
    rstd: Tensor
    scale: Tensor
    shift: Tensor


def transform_weight(weight: Tensor, *, backwards: bool = False) -> Tensor:
    """The weights (out, in, 3, 3) as `convolve` takes them; `backwards` for the gradient of the input."""
    weight = channels_last(weight.detach())
    out_channels, in_channels = weight.shape[:2]
    ins, outs = (out_channels, in_channels) if backwards else (in_channels, out_channels)
    transformed = weight.new_empty(library().wrn_weight_size(_long(ins), _long(outs)))
    library().wrn_transform_weight(
        _at(weight), _long(in_channels), _long(out_channels), int(backwards), _at(transformed), _threads()
    )
    return transformed


def convolve(
    x: Tensor,
    transformed: Tensor,
    out_channels: int,
    norm: Normalised | None = None,
    add: Tensor | None = None,
    *,
    summed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """conv3x3(relu(norm(x))) + add, and the sums that a normalisation of it needs.

    Args:
        x: (B, in, H, W).
        transformed: from `transform_weight`.
        norm: normalisation and activation before the convolution; None for neither.
        add: (B, out, H, W).
        summed: whether the sums are needed.

    Returns:
        (B, out, H, W), and float64 (2, out): sums of the result and of its square; else None.
    """
    batch, channels, height, width = x.shape
    y = empty(batch, out_channels, height, width)
    sums = _sums(out_channels) if summed else None
    failed = library().wrn_conv(
        _at(x), *map(_long, (batch, height, width, channels, out_channels)), _at(norm and norm.scale),
        _at(norm and norm.shift), _at(transformed), _at(add), None, None, None, None, _at(y), _at(sums),
        _threads(),
    )  # fmt: skip
    _check(failed)
    return y, sums


def convolve_backward(
    gradient: Tensor, transformed: Tensor, x: Tensor, norm: Normalised, add: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Through convolution and activation, up to the normalisation: `activate_backward` of the input's gradient + add.

    Args:
        gradient: (B, out, H, W), of the convolution's result.
        transformed: the weights, backwards.
        x: (B, in, H, W), what was normalised by `norm`.
        add: (B, in, H, W), another gradient of the activation's result.
    """
    batch, channels, height, width = gradient.shape
    result = empty(*x.shape)
    sums = _sums(x.shape[1])
    failed = library().wrn_conv(
        _at(gradient), *map(_long, (batch, height, width, channels, x.shape[1])), None, None, _at(transformed),
        _at(add), _at(x), _at(norm.scale), _at(norm.shift), _at(norm.mean), _at(result), _at(sums), _threads(),
    )  # fmt: skip
    _check(failed)
    return result, sums


def convolve_weight_gradient(x: Tensor, gradient: Tensor, norm: Normalised | None = None) -> Tensor:
    """The gradient of the weights (out, in, 3, 3) of conv3x3(relu(norm(x)))."""
    batch, channels, height, width = x.shape
    result = empty(gradient.shape[1], channels, 3, 3)
    failed = library().wrn_conv_weight_gradient(
        _at(x), _at(gradient), *map(_long, (batch, height, width, channels, gradient.shape[1])),
        _at(norm and norm.scale), _at(norm and norm.shift), _at(result), _threads(),
    )  # fmt: skip
    _check(failed)
    return result


def statistics(x: Tensor) -> Tensor:
    """float64 (2, C): sums over a map (B, C, H, W) of x and of its square."""
    sums = _sums(x.shape[1])
    _check(library().wrn_statistics(_at(x), *_positions(x), _at(sums), _threads()))
    return sums


def normalise(sums: Tensor, num: int, norm: nn.BatchNorm2d) -> Normalised:
    """A batch's normalisation; the running statistics move towards it.

    Args:
        sums: of `statistics`.
        num: positions that were summed over.

    Raises:
        ValueError: fewer than two positions, as in PyTorch.
    """
    if num < 2:
        raise ValueError("batch normalisation in training needs more than one value a channel")
    parts = norm.weight.new_empty(4, norm.num_features)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    library().wrn_normalise(
        _at(sums), _long(num), _long(norm.num_features), _at(norm.weight), _at(norm.bias), ctypes.c_float(norm.eps),
        ctypes.c_float(norm.momentum), _at(norm.running_mean), _at(norm.running_var), *map(_at, parts),
    )  # fmt: skip
    norm.num_batches_tracked += 1
    return Normalised(*parts)


def normalise_running(norm: nn.BatchNorm2d) -> Normalised:
    """The normalisation by running statistics, as at test time."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    rstd = (norm.running_var.double() + norm.eps).rsqrt()
    scale = norm.weight.detach().double() * rstd
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    return Normalised(norm.running_mean, rstd.float(), scale.float(), shift.float())


def activate(x: Tensor, norm: Normalised) -> Tensor:
    """relu(norm(x))"""
    y = empty(*x.shape)
    library().wrn_activate(_at(x), *_positions(x), _at(norm.scale), _at(norm.shift), _at(y), _threads())
    return y


def activate_backward(gradient: Tensor, x: Tensor, norm: Normalised) -> Tensor:
    """The gradient, in place, where relu(norm(x)) is above 0; returns the sums of it and of it * (x - mean)."""
    sums = _sums(x.shape[1])
    failed = library().wrn_activate_backward(
        _at(gradient), _at(x), *_positions(x), _at(norm.scale), _at(norm.shift), _at(norm.mean), _at(sums), _threads()
    )
    _check(failed)
    return sums


def normalise_backward(
    gradient: Tensor, sums: Tensor, x: Tensor, norm: Normalised, gamma: Tensor, add: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (in the memory of `gradient`; plus `add`), gamma and beta of a normalisation."""
    factor, dgamma, dbeta = gamma.new_empty(3, len(gamma)), torch.empty_like(gamma), torch.empty_like(gamma)
    library().wrn_normalise_backward(
        _at(gradient), _at(x), _at(add), _at(sums), *_positions(x), _at(gamma), _at(norm.mean), _at(norm.rstd),
        _at(factor), _at(gradient), _at(dgamma), _at(dbeta), _threads(),
    )  # fmt: skip
    return gradient, dgamma, dbeta


def empty(batch: int, channels: int, height: int, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a map (B, C, H, W), channels last also where a size of 1 leaves PyTorch the choice.

    Type and device are said wherever C writes: PyTorch's defaults are the user's to change.
    """
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided((batch, channels, height, width), strides, dtype=dtype, device="cpu")


def channels_last(x: Tensor) -> Tensor:
    """The tensor channels last in memory; itself where it is so already."""
    batch, channels, height, width = x.shape
    if x.stride() == (height * width * channels, 1, width * channels, channels):
        return x
    return empty(batch, channels, height, width, dtype=x.dtype).copy_(x)


def _sums(channels: int) -> Tensor:
    return torch.empty(2, channels, dtype=torch.float64, device="cpu")


def _positions(x: Tensor) -> tuple[ctypes.c_long, ctypes.c_long]:
    return _long(x.numel() // x.shape[1]), _long(x.shape[1])


def _long(number: int) -> ctypes.c_long:
    return ctypes.c_long(number)


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _threads() -> int:
    return torch.get_num_threads()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a kernel")
