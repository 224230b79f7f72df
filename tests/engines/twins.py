"""Networks for the tests of this folder, one training step of each, and the distance between two results."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.engines import accelerate, why_no_kernels
from wideresnet.networks import Network, create

SMALL = (3, 3, 8, 8)


def a_network(name: str = "WRN-10-1", num_classes: int = 10, **options: Any) -> Network:
    """A network as after training: statistics and scales differ from channel to channel."""
    network = create(name, num_classes, **options)
    for tensor_name, tensor in network.state_dict().items():
        if "running_var" in tensor_name or (tensor.dim() == 1 and tensor_name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:
            tensor.normal_(std=0.2)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def off(actual: Tensor, expected: Tensor) -> float:
    """Distance relative to the expected."""
    return ((actual.double() - expected).norm() / (expected.double().norm() + 1e-12)).item()


def step(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a training step, and all gradients (the input's too) and buffers after it, by the network's names."""
    leaf = x.clone().requires_grad_()
    module.zero_grad()
    torch.manual_seed(1)
    logits = module(leaf)
    F.cross_entropy(logits, torch.arange(len(x)) % 10).backward()
    assert leaf.grad is not None
    found = {"input": leaf.grad}
    found |= {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    found |= {f"{name} (buffer)": buffer for name, buffer in module.named_buffers()}
    return logits.detach(), {name.removeprefix("network."): value for name, value in found.items()}


def assert_same_step(network: Network, x: Tensor) -> None:
    """A step by the kernels is that of float64, about as near as the plain network's."""
    plain, exact = copy.deepcopy(network), copy.deepcopy(network).double()
    assert why_no_kernels(network, x) is None
    expected_logits, expected = step(exact, x.double())
    logits, found = step(accelerate(network), x)
    plain_logits, plain_found = step(plain, x)
    assert found.keys() == expected.keys()
    assert off(logits, expected_logits) < 1e-5 + 5 * off(plain_logits, expected_logits)
    for name, value in expected.items():
        assert off(found[name], value) < 5e-5 + 10 * off(plain_found[name], value), name
        assert found[name].shape == value.shape
