"""Sharpness-aware minimization (SAM): the gradient of the largest loss within a ball around the weights.

A step has two passes over the batch. The first computes the gradient g at the weights w, the second the one that the
optimizer uses, at w + rho * g / |g|. Source: Foret et al. 2021 (arXiv 2010.01412), Algorithm 1 and equation 2; the
authors' code, google-research/sam, sam_jax/training_utils/flax_training.py. What they leave to the implementation:

- Loss, error and BN's running statistics are those of the first pass, as in their code.
- Both passes draw the same dropout masks and leave out the same blocks, as in their code.
- Weight decay is not part of g: it is outside of the maximum, as in the paper's equation. In the code it is inside.
- A batch that is computed in parts has one perturbation, from the gradient of all its parts.
- Each of several processes perturbs its weights by the gradient of its own share of the batch ("m-sharpness" with m
  images, section 4.1 of the paper, and the default of the code); only the second gradient is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed(network: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights by rho * g / |g| within a block, where g is in the parameters' `grad`, which this clears.

    After the block the parameters and buffers have their values from before, bit by bit, whatever was computed in it.

    Args:
        network: a module with the parameters and buffers; parameters without a gradient stay where they are.
        rho: the length of the step in the space of all weights together.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    changing = [*parameters, *network.buffers()]
    with torch.no_grad():
        kept = [tensor.clone() for tensor in changing]  # w + e - e is not w
        norm = nn.utils.get_total_norm(gradients)
        scale = rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # without asking the host
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.addcmul_(gradient, scale)
            parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)
