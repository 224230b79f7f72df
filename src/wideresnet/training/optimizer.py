"""The optimizer that a recipe asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wideresnet.distributed.collectives import all_reduce
from wideresnet.distributed.world import World
from wideresnet.networks import Network
from wideresnet.spec.options import OptimizerOptions
from wideresnet.training.muon import update_of


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


class _MuonSGD(_SGD):
    """SGD whose groups with `muon` get Muon's updates; these have no momentum for SGD, which would add up updates.

    Args:
        groups: of parameters, as for SGD.
        world: processes that train together: each orthogonalizes its share, for all.
        options: as for SGD.
    """

    def __init__(self, groups: list[dict[str, Any]], world: World | None, **options: Any) -> None:
        super().__init__(groups, **options)
        self.world = world

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        kernels = [p for group in self.param_groups if group["muon"] for p in group["params"]]
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for kernel in kernels:
            shapes.setdefault(kernel.shape, []).append(kernel)
        for alike in shapes.values():
            updates = self._updates(torch.stack([self._direction(kernel) for kernel in alike]).flatten(2))
            for kernel, update in zip(alike, updates, strict=True):
                kernel.grad = torch.empty_like(kernel).copy_(update.view_as(kernel))
        norms = [kernel.norm() for kernel in kernels]
        found = super().step(closure)
        for kernel, norm in zip(kernels, norms, strict=True):
            kernel.mul_(norm / kernel.norm().clamp(min=torch.finfo(norm.dtype).tiny))
        return found

    def _direction(self, kernel: nn.Parameter) -> Tensor:
        """Add a kernel's gradient to its momentum, unless the loss was not finite, and return where that points."""
        momentum, gradient = self.defaults["momentum"], kernel.grad
        assert gradient is not None
        state = self.state[kernel]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(kernel)
        kept = state["momentum_buffer"]
        added = torch.add(gradient * (1 - self.defaults["dampening"]), kept, alpha=momentum)
        failed = getattr(self, "found_inf", None)
        kept.copy_(added if failed is None else torch.where(failed > 0, kept, added))
        return torch.add(gradient, kept, alpha=momentum) if self.defaults["nesterov"] else kept

    def _updates(self, directions: Tensor) -> Tensor:
        """Return Muon's updates (N, rows, columns), with the same bits in all processes."""
        if self.world is None or self.world.size == 1:
            return update_of(directions)
        mine, updates = slice(self.world.rank, None, self.world.size), torch.zeros_like(directions)
        if len(directions[mine]):
            updates[mine] = update_of(directions[mine])
        all_reduce(updates)
        return updates


def make_optimizer(
    network: nn.Module, options: OptimizerOptions, lr: float = 1.0, world: World | None = None
) -> torch.optim.SGD:
    """Return SGD with weight decay on every parameter, or only on those with more than one dimension; or Muon.

    Frozen parameters have no part in it. Each group has the factor of its learning rate as `lr_scale`.

    Args:
        lr: the schedule's highest, of which Muon's is a multiple.
        world: the processes that train together.
    """
    turned = {id(kernel) for kernel in muon_kernels(network)} if options.muon_lr else set()
    groups: list[dict[str, Any]] = []
    for scale, parameters in _by_scale(network, options.layer_lr_decay).items():
        others = [p for p in parameters if id(p) not in turned]
        decayed = [p for p in others if options.weight_decay_on == "all" or p.ndim > 1]
        spared = [p for p in others if options.weight_decay_on != "all" and p.ndim <= 1]
        groups += [
            {"params": decayed, "weight_decay": options.weight_decay, "lr_scale": scale, "muon": False},
            {"params": spared, "weight_decay": 0.0, "lr_scale": scale, "muon": False},
        ]
        if turned:
            groups.append({
                "params": [p for p in parameters if id(p) in turned], "weight_decay": 0.0, "muon": True,
                "lr_scale": scale * options.muon_lr / lr, "momentum": 0.0, "dampening": 0.0, "nesterov": False,
            })  # fmt: skip
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {
        "lr": 0.0,  # set at every step
        "momentum": options.momentum,
        "dampening": options.dampening,
        "nesterov": options.nesterov,
        "fused": True,
    }
    return _MuonSGD(groups, world, **settings) if turned else _SGD(groups, **settings)


def muon_kernels(network: nn.Module) -> list[nn.Parameter]:
    """Return what Muon updates: the kernels that learn, of all convolutions but the first, which sees three colors."""
    kernels = [parameter for parameter in network.parameters() if parameter.ndim == 4]
    return [kernel for kernel in kernels[1:] if kernel.requires_grad]


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
