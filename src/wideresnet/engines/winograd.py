"""Training by the Winograd kernels: the forward and backward pass of a described network.

A block saves only the inputs of its normalizations. Normalized and activated maps, which convolutions read, are
recomputed inside the kernels in the backward pass.

Synchronized normalizations exchange one message each in the forward and in the backward pass, in the order of the
layers, so that processes with the same description wait for each other at the same places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wideresnet.distributed.sync_norm import SyncBatchNorm2d, add_up
from wideresnet.engines.description import Block, Description, Ineligible, Layer, describe_for, why_not_now
from wideresnet.engines.program import lower
from wideresnet.kernels import ops
from wideresnet.kernels.ops import Normalized
from wideresnet.networks.models import Network


def accelerate(network: Network) -> Accelerated:
    """Run a network, forward and backward, by the Winograd kernels whenever they compute what plain PyTorch would.

    Whether they do is decided at each call: see `why_no_kernels`. Otherwise the network itself runs. Results agree up
    to rounding.

    Args:
        network: keeps its parameters, buffers and mode; nothing is copied.

    Returns:
        A module with the `forward` of the network.
    """
    return Accelerated(network)


class Accelerated(nn.Module):
    """See `accelerate`.

    Attributes:
        network: the wrapped network.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @property  # type: ignore[override]
    def training(self) -> bool:
        """The mode of the network."""
        return self.network.training

    @training.setter
    def training(self, mode: bool) -> None:  # type: ignore[override]
        """Nothing: `train` and `eval` set the mode of the network, as that of any submodule."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, C, H, W), like `Network.forward`.

        Raises:
            UsageError: x has another type or shape than the network takes.
        """
        self.network.check(x)
        if why_not_now(x) is not None:  # asked first so that compilers, which trace this line, see no exception
            return self.network(x)
        try:
            description = describe_for(self.network, x)
        except Ineligible:
            return self.network(x)
        return _train(description, x) if self.network.training else lower(description)(x)


def _train(description: Description, x: Tensor) -> Tensor:
    x = ops.channels_last(description.stem(x))
    sums = ops.statistics(x.detach())
    for block in description.blocks:
        x, sums = _Residual.apply(block, sums, x, *block.parameters())  # type: ignore[misc]
    norm = description.norms[description.output]
    x = cast("Tensor", _Activation.apply(norm, sums, x, norm.weight, norm.bias))
    return description.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Residual(torch.autograd.Function):
    """A block in training.

    Next to each map go the sums of the map and of its square, from which the next normalization takes the statistics
    of the batch. The kernels compute them while they write the map. No gradient flows through them: the backward pass
    of the normalization accounts for the statistics.
    """

    @staticmethod
    def forward(ctx: Any, block: Block, sums: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        shortcut, inputs, norms, masks = x, [], [], []
        for i, layer in enumerate(block.convs):
            norm = _normalize(sums, x, layer.norm)
            inputs.append(x)
            norms.append(norm)
            mask = active = None
            if i == 0 and block.projection is not None:
                shortcut = _convolve(block.projection.conv, x, norm)[0]
            elif layer.dropout:
                active = ops.activate(x, norm)
                # Drawn as nn.Dropout draws it, so that both give the same masks for the same seed.
                mask = torch.empty_like(active).bernoulli_(1 - layer.dropout).div_(1 - layer.dropout)
                active *= mask
            masks.append(mask)
            add = None if layer.adds is None else shortcut
            source, prologue = (x, norm) if active is None else (active, None)
            x, found = _convolve(layer.conv, source, prologue, add, summed=True)
            sums = cast("Tensor", found)
        ctx.block, ctx.norms = block, norms
        # Parameters are saved because the modules may hold others by the time of the backward pass (functional_call),
        # and so that PyTorch notices if one is modified in place.
        ctx.save_for_backward(*inputs, *masks, *parameters)
        ctx.mark_non_differentiable(sums)
        return x, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        block: Block = ctx.block
        # `arrived` is the gradient of the sum: it reaches the last convolution and the shortcut alike.
        arrived = gradient = ops.channels_last(gradients[0])
        num, saved = len(block.convs), ctx.saved_tensors
        inputs, masks, parameters = saved[:num], saved[num : 2 * num], saved[2 * num :]
        found: list[Tensor | None] = [None] * len(parameters)  # in the order of Block.parameters
        for i, layer in reversed(list(enumerate(block.convs))):
            x, norm, mask = inputs[i], ctx.norms[i], masks[i]
            gamma, weight = parameters[3 * i], parameters[3 * i + 2]
            into_activation = into_input = None  # what the shortcut adds to the gradient of the block's input
            if i == 0 and block.projection is None:
                into_input = arrived
            elif i == 0 and block.projection is not None:
                into_activation, found[-1] = _project_backward(block, parameters[-1], arrived, x, norm)
            gradient, sums, found[3 * i + 2] = _backward(layer, weight, gradient, x, norm, mask, into_activation)
            gradient, found[3 * i], found[3 * i + 1] = ops.normalize_backward(
                gradient, sums, x, norm, gamma, into_input, _total(sums, layer.norm)
            )
        return None, None, gradient, *found


class _Activation(torch.autograd.Function):
    """The normalization and activation at the end of the trunk, in training."""

    @staticmethod
    def forward(ctx: Any, norm: nn.BatchNorm2d, sums: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.norm, ctx.normalized = norm, _normalize(sums, x, norm)
        ctx.save_for_backward(x, *parameters)
        return ops.activate(x, ctx.normalized)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gamma, _ = ctx.saved_tensors
        gradient = ops.empty(*x.shape).copy_(gradients[0])  # a copy: what arrives is an expanded view from pooling
        sums = ops.activate_backward(gradient, x, ctx.normalized)
        return (
            None,
            None,
            *ops.normalize_backward(gradient, sums, x, ctx.normalized, gamma, total=_total(sums, ctx.norm)),
        )


def _normalize(sums: Tensor, x: Tensor, norm: nn.BatchNorm2d) -> Normalized:
    """Fold the statistics of the batch into a normalization: those of this process, or of all if it is synchronized."""
    num = x.numel() // x.shape[1]
    if isinstance(norm, SyncBatchNorm2d):
        sums, num = add_up(sums, num)
    return ops.normalize(sums, num, norm)


def _total(sums: Tensor, norm: nn.BatchNorm2d) -> Tensor | None:
    """Return sums of the backward pass over all processes, or None if the statistics are those of this one.

    As every gradient of a parameter, those of gamma and beta are of this process's images: see `distributed.gradients`.
    """
    return add_up(sums)[0] if isinstance(norm, SyncBatchNorm2d) else None


def _convolve(
    conv: nn.Conv2d, x: Tensor, norm: Normalized | None, add: Tensor | None = None, *, summed: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute conv(relu(norm(x))) + add and, if `summed`, its sums.

    Args:
        norm: None if x is activated already.
    """
    if ops.fits(conv):
        return ops.convolve(x, _transform(conv, conv.weight), norm, add, summed=summed)
    active = x if norm is None else ops.activate(x, norm)
    y = ops.channels_last(F.conv2d(active, conv.weight, None, conv.stride, conv.padding))
    if add is not None:
        y += add
    return y, ops.statistics(y) if summed else None


def _backward(
    layer: Layer,
    weight: Tensor,
    gradient: Tensor,
    x: Tensor,
    norm: Normalized,
    mask: Tensor | None,
    add: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backpropagate through `_convolve` and its dropout, up to the normalization.

    Args:
        gradient: with respect to the result of the convolution.
        mask: of dropout, scaled.
        add: another gradient with respect to the activation, of all positions or as `ops.convolve_backward` adds it.

    Returns:
        The gradient with respect to the normalized x, its sums for `ops.normalize_backward`, and the gradient with
        respect to the weight.
    """
    conv = layer.conv
    if ops.fits(conv) and mask is None and (add is None or add.shape[2:] == gradient.shape[2:]):
        # everything in one kernel, with the activation recomputed inside
        backwards = _transform(conv, weight, backwards=True)
        return cast("tuple[Tensor, Tensor, Tensor]", ops.convolve_backward(gradient, backwards, x, norm, add))
    active = ops.activate(x, norm)
    if mask is not None:
        active *= mask
    through, found = _convolve_backward(conv, weight, gradient, active)
    if mask is not None:
        through *= mask
    if add is not None:
        through += add
    return through, ops.activate_backward(through, x, norm), found


def _project_backward(
    block: Block, weight: Tensor, gradient: Tensor, x: Tensor, norm: Normalized
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a projection with respect to the activation and the weight.

    The first one is for `_backward` of the block's first convolution. If both have a stride, it leaves out the
    positions that a projection of 1x1 does not read.
    """
    assert block.projection is not None
    conv, first = block.projection.conv, block.convs[0].conv
    if not ops.fits(conv) or conv.kernel_size != (1, 1) or conv.stride != first.stride or not ops.fits(first):
        return _convolve_backward(conv, weight, gradient, ops.activate(x, norm))
    backwards = _transform(conv, weight, backwards=True)
    found = ops.convolve_weight_gradient(x, gradient, norm, kernel=1, stride=conv.stride[0])
    return ops.convolve(gradient, replace(backwards, stride=1))[0], found


def _convolve_backward(conv: nn.Conv2d, weight: Tensor, gradient: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a convolution alone with respect to its input and its weight."""
    if ops.fits(conv):
        through, _, found = ops.convolve_backward(gradient, _transform(conv, weight, backwards=True), active)
        return through, found
    through, found, _ = torch.ops.aten.convolution_backward(
        gradient, active, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1, (True, True, False)
    )
    return ops.channels_last(through), found


def _transform(conv: nn.Conv2d, weight: Tensor, *, backwards: bool = False) -> ops.Weight:
    return ops.transform_weight(weight, conv.stride[0], backwards=backwards, reuse=True)
