"""Batch normalization over the images of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.distributed.collectives import all_gather, all_reduce


def synchronize_norms(network: nn.Module, *, on_gpu: bool = False) -> None:
    """Replace every BatchNorm2d by a synchronized one, in place; parameters and buffers stay the same tensors.

    On a GPU that is PyTorch's own SyncBatchNorm, with its fused kernels. It refuses tensors on a CPU, and the compiler
    has no rule for it: in both cases `SyncBatchNorm2d` takes its place.

    Args:
        network: the network of this process.
        on_gpu: whether it trains on a GPU and is not compiled.
    """
    kind = nn.SyncBatchNorm if on_gpu else SyncBatchNorm2d
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                sync = kind(norm.num_features, norm.eps, norm.momentum, device="meta")
                for own in (*norm._parameters, *norm._buffers):
                    setattr(sync, own, getattr(norm, own))
                parent.register_module(name, sync.train(norm.training))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Normalizes by mean and variance over all processes' images in training; in evaluation it is a plain BatchNorm2d.

    It has the parameters, buffers and names of BatchNorm2d, and works on any device. Processes may have different
    numbers of images.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W), which keeps its shape."""
        if not self.training or input.is_meta:  # meta: shapes only, nothing to exchange
            return super().forward(input)
        if torch.compiler.is_compiling():
            return _without_compiler(self._normalize_over_processes, input)
        return self._normalize_over_processes(input)

    def _normalize_over_processes(self, input: Tensor) -> Tensor:
        mean, var, count = batch_statistics(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        return cast(Tensor, _Normalize.apply(input, self.weight, self.bias, mean, var, count, self.eps))


@torch.no_grad()
def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the statistics of each channel over all processes.

    The variances within the processes and between their means are added (Chan, Golub & LeVeque 1979), because sums of
    squares lose all digits if a mean is large.

    Args:
        x: (B, C, H, W) of any floating type, this process's part.

    Returns:
        Mean (C,), biased variance (C,) and number of values per channel, float64 if x is, else float32.
    """
    x = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    every = all_gather(torch.cat((mean, var, count)))
    counts = every[:, -1:]
    means, variances = every[:, :-1].chunk(2, dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / total, total


def add_up(sums: Tensor, count: int = 0) -> tuple[Tensor, int]:
    """Add sums over values, and the number of values, over all processes, in one message.

    This is for kernels that compute mean and variance from sums themselves. In float64 the sum of squares keeps all
    digits that values in float32 have, so it may be added as it is.

    Args:
        sums: float64, of one shape in all processes.
        count: values of this process.

    Returns:
        The sums, with the same bits in all processes, and the number of values.
    """
    # A gather and the same sum everywhere: half as many rounds of messages as `all_reduce`.
    total = all_gather(torch.cat((sums.flatten(), sums.new_tensor([count])))).sum(0)
    return total[:-1].view_as(sums), int(total[-1])


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with mean and var over all processes' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        scale = (var + ctx.eps).rsqrt()
        # first the gradient as if mean and var were constants, and the sums over this process's images ...
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, mean, scale, False, ctx.eps, [True, True, True]
        )
        # ... then the part through mean and var, to which every process's images contribute (Ioffe & Szegedy 2015,
        # section 3)
        sums = torch.cat((dweight, dbias))
        all_reduce(sums)
        dscale, dshift = (part.view(-1, 1, 1) / count for part in sums.chunk(2))
        mean, scale, weight = (part.view(-1, 1, 1) for part in (mean, scale, weight))
        dx = dx - (weight * scale) * (dshift + (x - mean) * scale * dscale)
        return dx.to(x.dtype), dweight, dbias, None, None, None, None


def _without_compiler(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function that communicates: the compiler stops before it and continues after it."""
    return torch.compiler.disable(function)(x)  # type: ignore[call-arg, arg-type, return-value]
