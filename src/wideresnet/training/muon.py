"""Muon: momentum whose direction is orthogonalized, kernel by kernel.

A convolution's kernel is a matrix of rows (output channels) and columns (input channels times positions). Few singular
values dominate its momentum; Muon replaces all of them by about 1, so that the rare directions are learned as fast as
the frequent ones. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon), whose coefficients and factor for tall matrices are used.

A kernel keeps its norm instead of decaying: behind a normalization only the direction counts, and how far a step turns
a kernel is then the learning rate, from the first step to the last. Source: the same author's airbench94_muon.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5 in an iteration. They raise small singular values fast, and leave them all between 0.7 and 1.2."""

ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return the nearest matrices with orthonormal rows (columns, if tall), roughly: all singular values near 1.

    Args:
        matrices: floating point (N, rows, columns); zeros stay zeros. On a GPU they are multiplied in bf16.

    Returns:
        The same shape and type.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp(min=torch.finfo(x.dtype).tiny)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def update_of(directions: Tensor) -> Tensor:
    """Return what the learning rate multiplies: orthogonalized, with the norm sqrt(rows) also of tall kernels.

    Args:
        directions: floating point (N, rows, columns).
    """
    rows, columns = directions.shape[1:]
    return orthogonalized(directions) * max(1.0, rows / columns) ** 0.5
