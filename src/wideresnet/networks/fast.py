"""The forward and backward pass of pre-activation networks by the kernels: the fast twin of `PreActNet.forward`.

A block keeps only what its normalisations saw; activations are computed again on the way back, inside the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wideresnet.kernels import ops
from wideresnet.kernels.ops import Normalised
from wideresnet.networks.blocks import PreActBlock

if TYPE_CHECKING:
    from wideresnet.networks.models import PreActNet


_KNOWN = (PreActBlock, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, nn.Sequential, nn.ModuleList)
"""Modules of a pre-activation network beside convolutions and normalisations: these very classes, no heirs of them."""


def why_not(network: nn.Module, x: Tensor) -> str | None:
    """Why the kernels would not compute what the plain forward pass does, here and now; None where they would."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "the kernels are for fp32 on a CPU"
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    ):
        return "the kernels cannot be traced"
    if torch.is_grad_enabled() and not network.training:
        return "the kernels have no gradients in evaluation mode"
    if x.numel() == 0:
        return "there are no images"
    modules = (module for module in network.modules() if module is not network)
    return next((reason for module in modules if (reason := _why_not(module))), None)


def _why_not(module: nn.Module) -> str | None:
    """The same for one module: it must be of a kind that the kernels know, and nothing may hang on to it."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "the kernels would pass by the hooks of its modules"
    if type(module) is nn.BatchNorm2d:
        known = module.affine and module.track_running_stats and module.momentum is not None
        if not known or module.num_features % ops.LANES or module.weight.dtype != torch.float32:
            return f"the kernels are for batch normalisation of multiples of {ops.LANES} channels"
    elif type(module) is nn.Conv2d:
        plain = module.bias is None and module.groups == 1 and module.dilation == (1, 1)
        if not plain or module.padding_mode != "zeros":
            return "the kernels are for plain convolutions without bias"
    elif type(module) not in _KNOWN:
        return f"the kernels know no {type(module).__name__}"
    return "the kernels leave out no blocks" if getattr(module, "survival", 1) != 1 else None


def forward(network: PreActNet, x: Tensor) -> Tensor:
    """Logits (B, num_classes), where `why_not` has nothing to say."""
    x = ops.channels_last(network.stem(x))
    blocks = [cast(PreActBlock, block) for group in network.groups for block in cast("nn.Sequential", group)]
    norms = cast("list[nn.BatchNorm2d]", [*(block.norms[0] for block in blocks), network.norm])
    if not network.training:
        for block in blocks:
            x = _residual_at_test_time(block, x)
        x = ops.activate(x, ops.normalise_running(norms[-1]))
    else:
        sums = ops.statistics(x.detach(), _centre(norms[0]))
        for block, following in zip(blocks, norms[1:], strict=True):
            x, sums = _Residual.apply(block, sums, _centre(following), x, *block.parameters())  # type: ignore[misc]
        x = _Activation.apply(norms[-1], sums, x, norms[-1].weight, norms[-1].bias)  # type: ignore[assignment]
    return network.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def layers_of(block: PreActBlock) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """Each convolution with the normalisation before it."""
    return cast("list[tuple[nn.BatchNorm2d, nn.Conv2d]]", list(zip(block.norms, block.convs, strict=True)))


def _centre(norm: nn.BatchNorm2d) -> Tensor:
    """Something near the means of what is normalised, so that sums of squares around it lose no digits."""
    assert norm.running_mean is not None
    return norm.running_mean


class _Residual(torch.autograd.Function):
    """A block in training: from its input, and the input's sums around its first running means, to its output and that
    output's sums around the running means that follow."""

    @staticmethod
    def forward(
        ctx: Any, block: PreActBlock, sums: Tensor, centre: Tensor, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        del parameters  # the block's own; given so that autograd knows of them
        shortcut, inputs, norms, masks = x, [], [], []
        layers = layers_of(block)
        centres = [*(_centre(module) for module, _ in layers[1:]), centre]
        for i, (module, conv) in enumerate(layers):
            norm = ops.normalise(sums, x.numel() // x.shape[1], module)
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
            add = shortcut if i == len(layers) - 1 else None
            x, sums = cast("tuple[Tensor, Tensor]", _forward(conv, x, norm, active, add, centres[i]))
        ctx.block, ctx.norms, ctx.masks = block, norms, masks
        ctx.save_for_backward(*inputs, *(conv.weight for _, conv in layers))
        ctx.mark_non_differentiable(sums)
        return x, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        block: PreActBlock = ctx.block
        arrived = gradient = ops.channels_last(gradients[0])
        layers, inputs = layers_of(block), ctx.saved_tensors
        found: dict[int, Tensor] = {}
        for i, (module, conv) in reversed(list(enumerate(layers))):
            x, norm, mask = inputs[i], ctx.norms[i], ctx.masks[i]
            add, through = None, arrived
            if i == 0 and block.shortcut is not None:
                add, found[id(block.shortcut.weight)] = _convolve_backward(
                    arrived, ops.activate(x, norm), block.shortcut
                )
                through = None
            gradient, sums, found[id(conv.weight)] = _backward(conv, gradient, x, norm, mask, add)
            gradient, found[id(module.weight)], found[id(module.bias)] = ops.normalise_backward(
                gradient, sums, x, norm, module.weight, through if i == 0 else None
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        gradient = ops.empty(*x.shape).copy_(gradients[0])  # what arrives is a view of the pool's, to be left alone
        sums = ops.activate_backward(gradient, x, ctx.normalised)
        return None, None, *ops.normalise_backward(gradient, sums, x, ctx.normalised, ctx.norm.weight)


def _residual_at_test_time(block: PreActBlock, x: Tensor) -> Tensor:
    shortcut, layers = x, layers_of(block)
    for i, (module, conv) in enumerate(layers):
        norm, active = ops.normalise_running(module), None
        if i == 0 and block.shortcut is not None:
            active = ops.activate(x, norm)
            shortcut = _convolve(active, block.shortcut)
        x, _ = _forward(conv, x, norm, active, shortcut if i == len(layers) - 1 else None, None)
    return x


def _forward(
    conv: nn.Conv2d, x: Tensor, norm: Normalised, active: Tensor | None, add: Tensor | None, centre: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """conv(relu(norm(x))) + add and its sums around the centre; `active`, where it is known, is what is convolved."""
    if ops.fits(conv):
        prologue = (x, norm) if active is None else (active, None)
        return ops.convolve(prologue[0], ops.transform_weight(conv.weight), conv.out_channels, prologue[1], add, centre)
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
