"""From uint8 pixels to what a network sees. Weights are stored together with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.progress import track
from wideresnet.data.depth import WHITE

GCN_SCALE = 55.0
"""Norm of an image after contrast normalization. Source: pylearn2's make_cifar10_gcn_whitened, which the authors'
README names."""

PIECE = 2048
"""Number of images whitened at a time, which bounds the memory: 50 MiB of float64 for CIFAR."""

ZCA_BIAS = 0.1
"""Added to the covariance's eigenvalues. Source: pylearn2's ZCA, default filter_bias."""


@dataclass(frozen=True)
class Preprocessing:
    """How pixels 0..255 are preprocessed.

    Attributes:
        kind: "mean_std": (x - mean) / std per channel; "scale": x / 255; "zca": global contrast normalization (each
            image's mean subtracted, its norm scaled to 55), then ZCA whitening by the training set. "pixels": none,
            for exported models, which do it inside; no configuration has it.
        mean, std: gray levels 0..255, one per channel; only for mean_std.
        zca_mean: float32 (D,) and `zca_matrix` float32 (D, D), D = H*W*C; only for zca.
        white: the value of 16-bit image files that becomes 255; None if there were none in training.
    """

    kind: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    zca_mean: Tensor | None = None
    zca_matrix: Tensor | None = None
    white: int | None = None

    @classmethod
    def fit(
        cls,
        kind: str,
        images: np.ndarray,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> Preprocessing:
        """Fit the preprocessing to a training set.

        Args:
            kind: "mean_std", "zca" or "scale".
            images: uint8 (N, H, W, C), the training set.
            mean, std: gray levels 0..255 per channel, if they are published; None computes them over all pixels.

        Raises:
            DataError: a channel is constant, so that its standard deviation is 0.
            UsageError: there is no such kind.
        """
        if kind == "scale":
            return cls(kind)
        if kind == "zca":
            return cls(kind, **_fit_zca(images))
        if kind != "mean_std":
            raise UsageError(f"preprocessing={kind!r}: must be one of mean_std, zca, scale")
        if mean is None or std is None:
            mean, std = channel_statistics(images)
        for channel, value in enumerate(std):
            if value <= 0:
                raise DataError(
                    f"channel {channel} of the training images has the value {mean[channel]:g} everywhere: "
                    "nothing can be learned from it; use preprocessing='scale' to train anyway"
                )
        return cls(kind, tuple(mean), tuple(std))

    def resident(self, images: np.ndarray) -> Tensor:
        """Return the images as they are kept on the device.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, H, W, C): the same uint8 pixels, or whitened float32 for ZCA.

        Raises:
            UsageError: ZCA was fit to images of another size.
        """
        if self.kind != "zca":
            return torch.from_numpy(np.ascontiguousarray(images))
        assert self.zca_mean is not None
        assert self.zca_matrix is not None
        whitened = torch.empty(images.shape, dtype=torch.float32)
        if whitened[0].numel() != len(self.zca_mean):
            raise UsageError(
                f"images of {images.shape[1:]}: this whitening is for {len(self.zca_mean)} values per image"
            )
        for start in _pieces(len(images), "whitening images"):
            normalized = torch.from_numpy(contrast_normalize(images[start : start + PIECE])).float()
            whitened[start : start + PIECE] = ((normalized - self.zca_mean) @ self.zca_matrix).view(
                -1, *images.shape[1:]
            )
        return whitened

    def __call__(self, batch: Tensor) -> Tensor:
        """Turn a batch of resident images into what the network takes.

        Args:
            batch: (B, H, W, C), a part of what `resident` returned.

        Returns:
            float32 (B, C, H, W), channels last in memory.
        """
        pixels = batch.to(torch.float32)
        if self.kind == "scale":
            pixels = pixels / 255
        elif self.kind == "mean_std":
            # mean and std as rows of W*C numbers: broadcasting over 3 channels alone does not fill a vector register
            num, height, width, channels = pixels.shape
            mean, std = (_row(values, width, pixels.device) for values in (self.mean, self.std))
            pixels = pixels.view(num, height, width * channels).sub_(mean).div_(std).view(batch.shape)
        return pixels.permute(0, 3, 1, 2)

    def to_config(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        config = {"kind": self.kind, "mean": list(self.mean), "std": list(self.std), "range": "0..255"}
        return config if self.white is None else {**config, "white": self.white}

    def tensors(self) -> dict[str, Tensor]:
        """Return what is too large for `config.json`: nothing, or ZCA's mean and matrix."""
        if self.zca_mean is None or self.zca_matrix is None:
            return {}
        return {"zca_mean": self.zca_mean, "zca_matrix": self.zca_matrix}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Preprocessing:
        """Return the inverse of `to_config` and `tensors`.

        Raises:
            DataError: there is no such kind, or no training set has such statistics or matrices.
            KeyError: something is missing.
        """
        kind, mean, std = config["kind"], tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
        white = config.get("white")
        if white is not None and not (type(white) is int and 1 <= white <= WHITE):
            raise DataError(f"white {white!r}: must be a whole number from 1 to {WHITE:,}")
        if kind == "scale":
            return cls(kind, white=white)
        if kind == "zca":
            zca_mean, matrix = tensors["zca_mean"], tensors["zca_matrix"]
            if zca_mean.ndim != 1 or matrix.shape != (len(zca_mean), len(zca_mean)):
                raise DataError(f"zca_mean {tuple(zca_mean.shape)} and zca_matrix {tuple(matrix.shape)} do not match")
            return cls(kind, zca_mean=zca_mean, zca_matrix=matrix, white=white)
        if kind != "mean_std":
            raise DataError(f"preprocessing {kind!r}: must be one of mean_std, zca, scale")
        if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
            raise DataError(f"mean {mean} and std {std}: must have one finite number per channel, std above 0")
        return cls(kind, mean, std, white=white)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels.

    They are computed from exact counts of the 256 levels, so that the order of the images changes nothing.

    Args:
        images: uint8 (N, H, W, C).

    Returns:
        Gray levels 0..255: C means and C standard deviations.
    """
    return statistics_of(level_counts(images))


def level_counts(images: np.ndarray) -> np.ndarray:
    """Count the gray levels of uint8 (N, H, W, C): int64 (C, 256)."""
    channels = range(images.shape[3])
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in channels])


def statistics_of(level_counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations from counts, int64 (C, 256), of all images together."""
    levels = np.arange(256, dtype=np.float64)
    means, stds = [], []
    for counts in level_counts:
        mean = float((counts * levels).sum() / counts.sum())
        means.append(mean)
        stds.append(float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum())))
    return tuple(means), tuple(stds)


def contrast_normalize(images: np.ndarray) -> np.ndarray:
    """Normalize the global contrast of images.

    Args:
        images: uint8 (N, H, W, C).

    Returns:
        float64 (N, H*W*C), each row with mean 0 and norm 55; a constant image, which has no contrast, becomes zeros.
    """
    rows = images.reshape(len(images), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * (GCN_SCALE / np.where(norms < 1e-8, 1.0, norms))


@functools.lru_cache(maxsize=8)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """One value per channel, repeated for each pixel of a row; cached on the device, so that no step waits for it."""
    return torch.tensor(values, device=device).repeat(width)


def _pieces(num_images: int, description: str) -> Iterable[int]:
    """The start of each piece of a set; with progress if there is more than one."""
    starts = range(0, num_images, PIECE)
    return track(starts, description) if len(starts) > 1 else starts


def _fit_zca(images: np.ndarray) -> dict[str, Any]:
    """ZCA's mean (D,) and symmetric matrix (D, D), from covariances summed piece by piece in float64."""
    size = int(np.prod(images.shape[1:]))
    total, products = np.zeros(size), np.zeros((size, size))
    for start in _pieces(len(images), "computing the covariance for ZCA"):
        rows = contrast_normalize(images[start : start + PIECE])
        total += rows.sum(axis=0)
        products += rows.T @ rows
    mean = total / len(images)
    values, vectors = np.linalg.eigh(products / len(images) - np.outer(mean, mean))
    matrix = (vectors / np.sqrt(np.maximum(values, 0) + ZCA_BIAS)) @ vectors.T
    return {"zca_mean": torch.from_numpy(mean).float(), "zca_matrix": torch.from_numpy(matrix).float()}
