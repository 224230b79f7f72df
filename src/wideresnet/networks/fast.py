"""The forward and backward pass of pre-activation networks by the kernels: the fast twin of `PreActNet.forward`.

A block keeps only what its normalisations saw; activations are computed again on the way back, inside the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wideresnet.kernels import ops
from wideresnet.kernels.ops import Normalised

if TYPE_CHECKING:
    from wideresnet.networks.blocks import PreActBlock
    from wideresnet.networks.models import PreActNet


def can_run(network: PreActNet, x: Tensor) -> bool:
    """Whether the kernels compute what the plain forward pass would, here and now."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if torch.is_grad_enabled() and not network.training or x.numel() == 0:
        return False
    return all(map(_is_plain, network.modules()))


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing hangs on to this module that the kernels would pass by, and it is of a kind that they know."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if isinstance(module, nn.BatchNorm2d):
        known = module.affine and module.track_running_stats and module.momentum is not None
        return known and module.num_features % ops.LANES == 0 and module.weight.dtype == torch.float32
    if isinstance(module, nn.Conv2d):
        return module.bias is None
    return not isinstance(module, nn.GroupNorm | nn.SiLU | nn.LeakyReLU | nn.SyncBatchNorm)


def forward(network: PreActNet, x: Tensor) -> Tensor:
    """Logits (B, num_classes), where `can_run` holds."""
    x = ops.channels_last(network.stem(x))
    blocks: list[PreActBlock] = [block for group in network.groups for block in group]  # type: ignore[misc]
    norms: list[nn.BatchNorm2d] = [*(block.norms[0] for block in blocks), network.norm]  # type: ignore[list-item]
    if not network.training:
        for block in blocks:
            x = _residual_at_test_time(block, x)
        x = ops.activate(x, ops.normalise_running(norms[-1]))
    else:
        sums = ops.statistics(x.detach(), norms[0].running_mean)
        for block, following in zip(blocks, norms[1:], strict=True):
            x, sums = _Residual.apply(block, sums, following.running_mean, x, *block.parameters())  # type: ignore[misc]
        x = _Activation.apply(norms[-1], sums, x, norms[-1].weight, norms[-1].bias)  # type: ignore[assignment]
    return network.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Residual(torch.autograd.Function):
    """A block in training: from its input, and the input's sums around its first running means, to its output and that
    output's sums around the running means that follow."""

    @staticmethod
    def forward(
        ctx: Any, block: PreActBlock, sums: Tensor, centre: Tensor, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        del parameters  # the block's own; given so that autograd knows of them
        shortcut, inputs, norms, masks = x, [], [], []
        last = len(block.convs) - 1
        for i, conv in enumerate(block.convs):
            norm = ops.normalise(sums, x.numel() // x.shape[1], block.norms[i])
            inputs.append(x)
            norms.append(norm)
            mask = active = None
            if i == 0 and block.shortcut is not None:
                active = ops.activate(x, norm)
                shortcut = _convolve(active, block.shortcut)
            elif i > 0 and isinstance(block.dropout, nn.Dropout):
                active = ops.activate(x, norm)
                mask = torch.empty_like(active).bernoulli_(1 - block.dropout.p).div_(1 - block.dropout.p)
                active *= mask
            masks.append(mask)
            add, around = (shortcut, centre) if i == last else (None, block.norms[i + 1].running_mean)
            x, sums = _forward(conv, x, norm, active, add, around)
        ctx.block, ctx.norms, ctx.masks = block, norms, masks
        ctx.save_for_backward(*inputs, *(conv.weight for conv in block.convs))
        ctx.mark_non_differentiable(sums)
        return x, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        block: PreActBlock = ctx.block
        arrived = gradient = ops.channels_last(gradients[0])
        inputs = ctx.saved_tensors[: len(block.convs)]
        found: dict[int, Tensor] = {}
        for i in reversed(range(len(block.convs))):
            conv, x, norm, mask, norm_module = block.convs[i], inputs[i], ctx.norms[i], ctx.masks[i], block.norms[i]
            add, through = None, arrived
            if i == 0 and block.shortcut is not None:
                add, found[id(block.shortcut.weight)] = _convolve_backward(
                    arrived, ops.activate(x, norm), block.shortcut
                )
                through = None
            gradient, sums, found[id(conv.weight)] = _backward(conv, gradient, x, norm, mask, add)
            gradient, found[id(norm_module.weight)], found[id(norm_module.bias)] = ops.normalise_backward(
                gradient, sums, x, norm, norm_module.weight, through if i == 0 else None
            )
        return None, None, None, gradient, *(found[id(parameter)] for parameter in block.parameters())


class _Activation(torch.autograd.Function):
    """The normalisation and activation that end the trunk, in training."""

    @staticmethod
    def forward(ctx: Any, norm: nn.BatchNorm2d, sums: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        del parameters
        ctx.norm, ctx.normalised = norm, ops.normalise(sums, x.numel() // x.shape[1], norm)
        ctx.save_for_backward(x)
        return ops.activate(x, ctx.normalised)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = ops.empty(*x.shape).copy_(gradients[0])  # what arrives is a view of the pool's, to be left alone
        sums = ops.activate_backward(gradient, x, ctx.normalised)
        return None, None, *ops.normalise_backward(gradient, sums, x, ctx.normalised, ctx.norm.weight)


def _residual_at_test_time(block: PreActBlock, x: Tensor) -> Tensor:
    shortcut, last = x, len(block.convs) - 1
    for i, conv in enumerate(block.convs):
        norm, active = ops.normalise_running(block.norms[i]), None
        if i == 0 and block.shortcut is not None:
            active = ops.activate(x, norm)
            shortcut = _convolve(active, block.shortcut)
        x, _ = _forward(conv, x, norm, active, shortcut if i == last else None, None)
    return x


def _forward(
    conv: nn.Conv2d, x: Tensor, norm: Normalised, active: Tensor | None, add: Tensor | None, centre: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """conv(relu(norm(x))) + add and its sums around the centre; `active`, where it is known, is what is convolved."""
    if ops.fits(conv):
        prologue = (x, norm) if active is None else (active, None)
        return ops.convolve(
            prologue[0], ops.transform_weight(conv.weight), conv.out_channels, prologue[1], add, centre
        )
    y = _convolve(ops.activate(x, norm) if active is None else active, conv)
    if add is not None:
        y += add
    return y, None if centre is None else ops.statistics(y, centre)


def _backward(
    conv: nn.Conv2d, gradient: Tensor, x: Tensor, norm: Normalised, mask: Tensor | None, add: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through `_forward` to the normalisation: the gradient there, its sums, the weights' gradient."""
    if ops.fits(conv) and mask is None:
        found = ops.convolve_weight_gradient(x, gradient, norm)
        weight = ops.transform_weight(conv.weight, backwards=True)
        return *ops.convolve_backward(gradient, weight, x, norm, add), found
    active = ops.activate(x, norm)
    if mask is not None:
        active *= mask
    if ops.fits(conv):
        found = ops.convolve_weight_gradient(active, gradient)
        weight = ops.transform_weight(conv.weight, backwards=True)
        through, _ = ops.convolve(gradient, weight, conv.in_channels)
    else:
        through, found = _convolve_backward(gradient, active, conv)
    if mask is not None:
        through *= mask
    if add is not None:
        through += add
    return through, ops.activate_backward(through, x, norm), found


def _convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return ops.channels_last(F.conv2d(x, conv.weight, None, conv.stride, conv.padding))


def _convolve_backward(gradient: Tensor, x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weights, by PyTorch."""
    through, found, _ = torch.ops.aten.convolution_backward(
        gradient, x, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1, (True, True, False)
    )
    return ops.channels_last(through), found
