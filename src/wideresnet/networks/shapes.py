"""The frequent operations of a network on the meta device: their shapes, and what autograd saves for them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ShapesAlone(TorchFunctionMode):
    """Within this context, take convolution, batch normalization, pooling and addition for one operation each.

    PyTorch's own ones decompose into many in Python on the meta device: that takes five times as long, and imports its
    compiler, which takes more than a second. Whatever is unusual, mistakes included, is left to PyTorch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stand_in = _STAND_INS.get(func)
        result = None if stand_in is None else stand_in(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result


class _Operation(torch.autograd.Function):
    """An operation without values."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, shape: tuple[int, ...], *saved: Tensor | None) -> Tensor:
        ctx.save_for_backward(*saved)  # pyright: ignore[reportArgumentType]  # it also takes None
        return torch.empty(shape, device="meta", dtype=x.dtype)


def _conv2d(x: Tensor, weight: Tensor, *how: Any, **more: Any) -> Tensor | None:
    if more or len(how) != 5:  # not as `nn.Conv2d` calls it
        return None
    _, stride, padding, dilation, groups = how
    pairs = (stride, padding, dilation)
    if x.ndim != 4 or x.shape[1] != groups * weight.shape[1] or not all(isinstance(pair, tuple) for pair in pairs):
        return None
    sides = zip(x.shape[2:], weight.shape[2:], *pairs, strict=True)
    map_size = [(side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, gap in sides]
    return _Operation.apply(x, (len(x), len(weight), *map_size), x, weight) if min(map_size) > 0 else None


def _batch_norm(x: Tensor, *_: Any, weight: Tensor | None = None, **__: Any) -> Tensor | None:
    if math.prod(x.shape) == x.shape[1]:  # one value per channel, which training refuses
        return None
    statistics = [torch.empty(x.shape[1], device="meta") for _ in range(2)]
    return _Operation.apply(x, x.shape, x, weight, *statistics)


def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor | None:
    return _Operation.apply(x, (*x.shape[:2], 1, 1)) if x.ndim == 4 and output_size in (1, (1, 1)) else None


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor | None:
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        return None
    return _Operation.apply(x, (len(x), len(weight)), x if weight.requires_grad else None, weight)


def _add_in_place(x: Tensor, y: Any, **more: Any) -> Tensor | None:
    """Return the sum: `x`, which has the gradient of both if it has one."""
    is_usual = not more and isinstance(y, Tensor) and x.shape == y.shape
    return x if is_usual and x.requires_grad >= y.requires_grad else None


_STAND_INS: dict[Any, Any] = {
    torch.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.linear: _linear,
    Tensor.add_: _add_in_place,
}
