"""Training images to quantize trained weights by: those of their run, or of other data with the same classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.data import Dataset
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.export.write import calibration_images as pixels_to_calibrate
from wideresnet.weights.hub import Weights
from wideresnet.weights.matching import data_of_run, load_matching, run_of


def check_int8(device: str, precision: str) -> None:
    """Refuse what does not go with 8 bits.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32" or "bf16".

    Raises:
        UsageError: they ask for a GPU, or for bf16.
    """
    if device == "cuda":
        raise UsageError("device='cuda': int8=True runs on the CPU; leave out one of them")
    if precision == "bf16":
        raise UsageError("precision='bf16': int8=True computes in 8 bits; leave out one of them")


def calibration_images(weights: Weights, dataset: Dataset) -> Tensor:
    """Return training images that are spread evenly over the set, preprocessed: float32 (N, C, H, W) on the CPU.

    Args:
        weights: decide size, channels and preprocessing.
        dataset: from `load_matching`.
    """
    images, _ = pixels_to_calibrate(weights, dataset)
    return torch.cat(list(evaluation_batches(images, weights.preprocessing, device="cpu")))


def read_calibration(
    weights: str | Path | Weights, read: Weights, data: str | Path | Dataset | None = None, *, skip_unreadable: bool
) -> tuple[Tensor, list[str]]:
    """Load the training data of weights, and return its `calibration_images` and notes on that data.

    Args:
        weights: as they were named, or `read` itself.
        read: what `read_weights` returned for them.
        data: as for `load_dataset`, or what that returned; None for the data of the run that produced the weights.
        skip_unreadable: leave out images that cannot be read.

    Raises:
        UsageError: the data has other classes or channels, or no data is named and none is known.
        DataError: the data cannot be read.
    """
    run = None if isinstance(weights, Weights) else run_of(weights)
    if data is None:
        if isinstance(weights, Weights):
            raise UsageError(f"{read.network.name}: weights in memory know no data; name it with data=")
        data = data_of_run(weights)
    dataset, notes = load_matching(read, data, run=run, skip_unreadable=skip_unreadable)
    return calibration_images(read, dataset), notes[len(read.notes) :]
