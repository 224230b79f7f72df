"""The optimizer that a recipe asks for."""

from __future__ import annotations

import torch
from torch import nn

from wideresnet.spec.options import OptimizerOptions


def make_optimizer(network: nn.Module, options: OptimizerOptions) -> torch.optim.SGD:
    """Return SGD with weight decay on every parameter, or only on those with more than one dimension."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if options.weight_decay_on == "all" or p.ndim > 1]
    spared = [p for p in parameters if options.weight_decay_on != "all" and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=0.0,  # set at every step
        momentum=options.momentum,
        dampening=options.dampening,
        nesterov=options.nesterov,
        fused=True,
    )
