"""Batch normalisation over the images of all processes, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.distributed.world import all_gather, all_reduce


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """In training, normalises by mean and variance over all processes' images; in evaluation a plain BatchNorm2d.

    Same parameters, buffers and names as BatchNorm2d. PyTorch's own SyncBatchNorm is for GPUs only; this is for any
    device, so that what trains on GPUs is tested on CPUs. Processes may hold different numbers of images.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training or input.is_meta:  # meta: shapes only, nothing to exchange
            return super(nn.SyncBatchNorm, self).forward(input)  # a plain BatchNorm2d's
        if torch.compiler.is_compiling():
            return _without_compiler(self._normalise_together, input)
        return self._normalise_together(input)

    def _normalise_together(self, input: Tensor) -> Tensor:
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
        return cast(Tensor, _Normalise.apply(input, self.weight, self.bias, mean, var, count, self.eps))


def synchronize_norms(network: nn.Module) -> None:
    """Put a `SyncBatchNorm2d` in the place of every BatchNorm2d; parameters and buffers stay the same tensors."""
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                sync = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
                for own in (*norm._parameters, *norm._buffers):
                    setattr(sync, own, getattr(norm, own))
                parent.register_module(name, sync.train(norm.training))


@torch.no_grad()
def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of each channel over all processes, and the number of values; float32 or float64.

    The variances within the processes and between their means are added up (Chan, Golub & LeVeque 1979): sums of
    squares would cancel where a mean is large.
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


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of all processes' x."""

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
        # the gradient as if mean and var were constants, and the sums over this process's images ...
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, mean, scale, False, ctx.eps, [True, True, True]
        )
        # ... then what they pass on to x, for which every process's images count (Ioffe & Szegedy 2015, section 3)
        sums = torch.cat((dweight, dbias))
        all_reduce(sums)
        dscale, dshift = (part.view(-1, 1, 1) / count for part in sums.chunk(2))
        mean, scale, weight = (part.view(-1, 1, 1) for part in (mean, scale, weight))
        dx = dx - (weight * scale) * (dshift + (x - mean) * scale * dscale)
        return dx.to(x.dtype), dweight, dbias, None, None, None, None


def _without_compiler(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function that talks to other processes: the compiler goes on before it and after it."""
    return torch.compiler.disable(function)(x)  # type: ignore[call-arg, arg-type, return-value]
