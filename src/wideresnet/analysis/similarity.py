"""Linear centered kernel alignment (CKA) between the outputs of layers, over batches of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_IMAGES = 4
"""The unbiased estimator of HSIC needs four images: it divides by n - 3."""


class Similarity:
    """Linear CKA between several layers, in the form that does not depend on the batch size.

    Args:
        num_layers: number of layers.

    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited"; over batches with the
    unbiased estimator of HSIC: Nguyen, Raghu & Kornblith 2021, "Do wide and deep networks learn the same things?",
    Equations 2 and 3.
    """

    def __init__(self, num_layers: int) -> None:
        self._sums = torch.zeros(num_layers, num_layers, dtype=torch.float64)

    def add(self, grams: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            grams: for each layer what `gram` returns, of the same images; batches of fewer than `MIN_IMAGES` images are
                left out.
        """
        if len(grams[0]) >= MIN_IMAGES:
            self._sums += unbiased_hsic(torch.stack(list(grams))).cpu()

    def result(self) -> Tensor:
        """Return the similarities, float64 (layers, layers), 1 on the diagonal; 0 for a layer without variation."""
        own = self._sums.diagonal().clamp_min(0).sqrt()
        scale = own[:, None] * own[None, :]
        return torch.where(scale > 0, self._sums / scale.clamp_min(1e-300), 0.0)


def gram(output: Tensor) -> Tensor:
    """Return the products of all pairs of different images, 0 on the diagonal: (B, ...) -> float64 (B, B)."""
    flat = output.flatten(1).double()
    return (flat @ flat.T).fill_diagonal_(0)


def unbiased_hsic(grams: Tensor) -> Tensor:
    """Estimate the Hilbert-Schmidt independence criterion (HSIC) between all pairs of layers.

    Args:
        grams: float64 (layers, n, n), symmetric, 0 on the diagonals, n at least `MIN_IMAGES`.

    Returns:
        float64 (layers, layers).

    Source: Song et al. 2012, "Feature selection via dependence maximization", Equation 5.
    """
    n = grams.shape[1]
    flat, rows, sums = grams.flatten(1), grams.sum(1), grams.sum((1, 2))
    traces = flat @ flat.T  # of the product of each pair: both matrices are symmetric
    outer = sums[:, None] * sums[None, :] / ((n - 1) * (n - 2))
    cross = 2 * (rows @ rows.T) / (n - 2)
    return (traces + outer - cross) / (n * (n - 3))
