"""The forward and backward pass of pre-activation networks by the kernels: the fast twin of `PreActNet.forward`.

A block keeps only what its normalisations saw; activations are computed again on the way back, inside the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from wideresnet.kernels import ops
from wideresnet.kernels.library import why_unavailable
from wideresnet.kernels.ops import Normalised
from wideresnet.networks.blocks import PreActBlock

if TYPE_CHECKING:
    from wideresnet.networks.models import PreActNet


_KNOWN = (PreActBlock, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, nn.Sequential, nn.ModuleList)
"""Modules of a pre-activation network beside convolutions and normalisations: these very classes, no heirs of them."""


def why_not(network: PreActNet, x: Tensor) -> str | None:
    """Why the kernels would not compute what the plain forward pass does, here and now; None where they would."""
    return why_not_for(x) or _why_not_in(network)


def why_not_for(x: Tensor) -> str | None:
    """The same for what may be another at each call, whatever the network: the images and what surrounds the call."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "the kernels are for fp32 on a CPU"
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    ):
        return "the kernels cannot be traced"
    return "there are no images" if x.numel() == 0 else None


def _why_not_in(network: PreActNet) -> str | None:
    """The same for the network, whatever its images."""
    if torch.is_grad_enabled() and not network.training:
        return "the kernels have no gradients in evaluation mode"
    if any(type(block) is not PreActBlock for group in network.groups for block in cast("nn.Sequential", group)):
        return "the kernels are for pre-activation blocks"
    modules = [module for module in network.modules() if module is not network]
    if any(module.training != network.training for module in modules):
        return "the kernels have all modules either in training or in evaluation mode"
    if _has_any_global_hook():
        return "the kernels would pass by the hooks of all modules"
    return next((reason for module in modules if (reason := _why_not(module))), None) or why_unavailable()


def _why_not(module: nn.Module) -> str | None:
    """The same for one module: it must be of a kind that the kernels know, and nothing may hang on to it."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "the kernels would pass by the hooks of its modules"
    if type(module) is nn.BatchNorm2d:
        tensors = (module.weight, module.bias, module.running_mean, module.running_var)
        known = all(t is not None and _is_plain(t) and t.is_contiguous() for t in tensors)
        if not known or module.momentum is None or not module.track_running_stats or module.num_features % ops.LANES:
            return f"the kernels are for batch normalisation of multiples of {ops.LANES} channels"
    elif type(module) is nn.Conv2d:
        plain = module.bias is None and module.groups == 1 and module.dilation == (1, 1)
        if not plain or module.padding_mode != "zeros":
            return "the kernels are for plain convolutions without bias"
        if not _is_plain(module.weight):
            return "the kernels are for fp32 on a CPU"
    elif type(module) not in _KNOWN:
        return f"the kernels know no {type(module).__name__}"
    elif type(module) is PreActBlock and type(module.activation) is not nn.ReLU:
        return "the kernels are for ReLU"
    return "the kernels leave out no blocks" if getattr(module, "survival", 1) != 1 else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def forward(network: PreActNet, x: Tensor) -> Tensor:
    """Logits (B, num_classes), where `why_not` has nothing to say."""
    x = ops.channels_last(network.stem(x))
    blocks = [cast(PreActBlock, block) for group in network.groups for block in cast("nn.Sequential", group)]
    norm = cast("nn.BatchNorm2d", network.norm)
    if not network.training:
        for block in blocks:
            x = _residual_at_test_time(block, x)
        x = ops.activate(x, ops.normalise_running(norm))
    else:
        sums = ops.statistics(x.detach())
        for block in blocks:
            x, sums = _Residual.apply(block, sums, x, *block.parameters())  # type: ignore[misc]
        x = _Activation.apply(norm, sums, x, norm.weight, norm.bias)  # type: ignore[assignment]
    return network.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def layers_of(block: PreActBlock) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """Each convolution with the normalisation before it."""
    return cast("list[tuple[nn.BatchNorm2d, nn.Conv2d]]", list(zip(block.norms, block.convs, strict=True)))


class _Residual(torch.autograd.Function):
    """A block in training: from its input, and the sums of that and of its square, to the same of its output."""

    @staticmethod
    def forward(ctx: Any, block: PreActBlock, sums: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        shortcut, inputs, norms, masks = x, [], [], []
        layers = layers_of(block)
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
            x, sums = cast("tuple[Tensor, Tensor]", _forward(conv, x, norm, active, add, summed=True))
        ctx.block, ctx.norms = block, norms
        ctx.save_for_backward(*inputs, *masks, *parameters)  # the block may have other parameters on the way back
        ctx.mark_non_differentiable(sums)
        return x, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        block: PreActBlock = ctx.block
        arrived = gradient = ops.channels_last(gradients[0])
        num, names = len(block.convs), [name for name, _ in block.named_parameters()]
        saved = ctx.saved_tensors
        inputs, masks, parameters = saved[:num], saved[num : 2 * num], dict(zip(names, saved[2 * num :], strict=True))
        found: dict[str, Tensor] = {}
        for i, (_, conv) in reversed(list(enumerate(layers_of(block)))):
            x, norm, mask = inputs[i], ctx.norms[i], masks[i]
            add, through = None, arrived
            if i == 0 and block.shortcut is not None:
                weight = parameters["shortcut.weight"]
                add, found["shortcut.weight"] = _convolve_backward(
                    arrived, ops.activate(x, norm), block.shortcut, weight
                )
                through = None
            weight, gamma = parameters[f"convs.{i}.weight"], parameters[f"norms.{i}.weight"]
            gradient, sums, found[f"convs.{i}.weight"] = _backward(conv, weight, gradient, x, norm, mask, add)
            gradient, found[f"norms.{i}.weight"], found[f"norms.{i}.bias"] = ops.normalise_backward(
                gradient, sums, x, norm, gamma, through if i == 0 else None
            )
        return None, None, gradient, *(found[name] for name in names)


class _Activation(torch.autograd.Function):
    """The normalisation and activation that end the trunk, in training."""

    @staticmethod
    def forward(ctx: Any, norm: nn.BatchNorm2d, sums: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.normalised = ops.normalise(sums, x.numel() // x.shape[1], norm)
        ctx.save_for_backward(x, *parameters)
        return ops.activate(x, ctx.normalised)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gamma, _ = ctx.saved_tensors
        gradient = ops.empty(*x.shape).copy_(gradients[0])  # what arrives is a view of the pool's, to be left alone
        sums = ops.activate_backward(gradient, x, ctx.normalised)
        return None, None, *ops.normalise_backward(gradient, sums, x, ctx.normalised, gamma)


def _residual_at_test_time(block: PreActBlock, x: Tensor) -> Tensor:
    shortcut, layers = x, layers_of(block)
    for i, (module, conv) in enumerate(layers):
        norm, active = ops.normalise_running(module), None
        if i == 0 and block.shortcut is not None:
            active = ops.activate(x, norm)
            shortcut = _convolve(active, block.shortcut)
        x, _ = _forward(conv, x, norm, active, shortcut if i == len(layers) - 1 else None)
    return x


def _forward(
    conv: nn.Conv2d,
    x: Tensor,
    norm: Normalised,
    active: Tensor | None,
    add: Tensor | None,
    *,
    summed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """conv(relu(norm(x))) + add and, where asked for, its sums; `active`, where it is known, is what is convolved."""
    if ops.fits(conv):
        source, prologue = (x, norm) if active is None else (active, None)
        weight = ops.transform_weight(conv.weight)
        return ops.convolve(source, weight, conv.out_channels, prologue, add, summed=summed)
    y = _convolve(ops.activate(x, norm) if active is None else active, conv)
    if add is not None:
        y += add
    return y, ops.statistics(y) if summed else None


def _backward(
    conv: nn.Conv2d,
    weight: Tensor,
    gradient: Tensor,
    x: Tensor,
    norm: Normalised,
    mask: Tensor | None,
    add: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through `_forward` to the normalisation: the gradient there, its sums, the weights' gradient."""
    if ops.fits(conv) and mask is None:
        found = ops.convolve_weight_gradient(x, gradient, norm)
        backwards = ops.transform_weight(weight, backwards=True)
        return *ops.convolve_backward(gradient, backwards, x, norm, add), found
    active = ops.activate(x, norm)
    if mask is not None:
        active *= mask
    if ops.fits(conv):
        found = ops.convolve_weight_gradient(active, gradient)
        through, _ = ops.convolve(gradient, ops.transform_weight(weight, backwards=True), conv.in_channels)
    else:
        through, found = _convolve_backward(gradient, active, conv, weight)
    if mask is not None:
        through *= mask
    if add is not None:
        through += add
    return through, ops.activate_backward(through, x, norm), found


def _convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return ops.channels_last(F.conv2d(x, conv.weight, None, conv.stride, conv.padding))


def _convolve_backward(gradient: Tensor, x: Tensor, conv: nn.Conv2d, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weights, by PyTorch."""
    through, found, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1, (True, True, False)
    )
    return ops.channels_last(through), found
