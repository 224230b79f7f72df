"""The optimizer that a recipe asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wideresnet.networks import Network
from wideresnet.spec.options import OptimizerOptions


class _SGD(torch.optim.SGD):
    """SGD whose methods do not import PyTorch's compiler, which takes over a second.

    It is the same code without the decorators that keep the compiler out of it. Nothing here compiles an optimizer.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        return inspect.unwrap(torch.optim.SGD.step)(self, closure)


def make_optimizer(network: nn.Module, options: OptimizerOptions) -> torch.optim.SGD:
    """Return SGD with weight decay on every parameter, or only on those with more than one dimension.

    Frozen parameters have no part in it. Each group has the factor of its learning rate as `lr_scale`.
    """
    groups = []
    for scale, parameters in _by_scale(network, options.layer_lr_decay).items():
        decayed = [p for p in parameters if options.weight_decay_on == "all" or p.ndim > 1]
        spared = [p for p in parameters if options.weight_decay_on != "all" and p.ndim <= 1]
        groups += [
            {"params": decayed, "weight_decay": options.weight_decay, "lr_scale": scale},
            {"params": spared, "weight_decay": 0.0, "lr_scale": scale},
        ]
    return _SGD(
        [group for group in groups if group["params"]],
        lr=0.0,  # set at every step
        momentum=options.momentum,
        dampening=options.dampening,
        nesterov=options.nesterov,
        fused=True,
    )


def lr_scales(network: Network, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each stage: 1 for the head, and `decay` times that for each below it.

    The last normalization of a pre-activation network belongs to the last group of blocks, which it normalizes.
    """
    below = [name for name in network.stage_modules() if name not in ("pooled", "fc")][::-1]
    scales = {name: decay**depth for depth, name in enumerate(below, start=1)}
    return {**scales, "pooled": decay, "fc": 1.0}


def _by_scale(network: nn.Module, decay: float) -> dict[float, list[nn.Parameter]]:
    """Return the parameters that learn, in the order of the network, by the factor of their learning rate."""
    scales: dict[int, float] = {}
    if isinstance(network, Network) and decay != 1:
        factors = lr_scales(network, decay)
        for name, modules in network.stage_modules().items():
            scales |= {id(p): factors[name] for module in modules for p in module.parameters()}
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            found.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return found
