"""Applying an `Execution`: the network's layout, its forward pass, this process's threads and allocator."""

from __future__ import annotations

import torch
from torch import nn

from wideresnet.engines import accelerate, can_train
from wideresnet.machine.memory import keep_memory
from wideresnet.networks import Network
from wideresnet.spec.execution import Execution


def configure(network: Network, execution: Execution) -> Network:
    """Set up this process as the execution says, and return the network in its memory layout."""
    set_threads(execution.threads)
    keep_memory()
    if execution.device == "cuda":  # cuDNN times its algorithms for each shape, as in the published scripts
        torch.backends.cudnn.benchmark = not execution.deterministic
    layout = torch.channels_last if execution.layout == "channels_last" else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload]


def make_forward(network: Network, execution: Execution) -> nn.Module:
    """Return the module that computes the network's forward pass in training: compiled, accelerated, or itself."""
    if execution.compile:
        return compiled(network)
    return accelerate(network) if execution.kernels == "winograd" else network


def evaluates_by_kernels(network: Network, execution: Execution) -> bool:
    """Return whether evaluation may use the kernels: as training does, or if they have no backward pass for it."""
    return execution.kernels == "winograd" or not can_train(network)


def compiled(network: nn.Module) -> nn.Module:
    """Compile a network with PyTorch, which counts the compiled forms of all networks' `forward` together."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]  # a module for a module


def set_threads(threads: int) -> None:
    """Let PyTorch and the kernels use this many threads."""
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
