"""Trained weights with images of their data: what can be compared by its answers, too, and not by its time alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import UsageError
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.export.write import calibration_images
from wideresnet.weights.hub import Weights, holds_weights, read_weights
from wideresnet.weights.matching import data_of_run, fit_images, load_matching, run_of
from wideresnet.weights.pretrained import find_weights, shipped_name

NUM_TEST_IMAGES = 1000
"""Test images on which answers are compared, spread evenly over the set: one is 0.1 points. This package's choice."""


@dataclass(frozen=True)
class Trained:
    """A trained network and the images that it is timed and compared with.

    Attributes:
        weights: the network, its preprocessing and its size.
        test: uint8 (N, H, W, C), at most `NUM_TEST_IMAGES` test images.
        training: uint8 (N, H, W, C), at most 1,000 training images, to quantize by.
        notes: what the reader should know, one line each.
    """

    weights: Weights
    test: np.ndarray
    training: np.ndarray
    notes: tuple[str, ...]

    def prepare(self, images: np.ndarray) -> Tensor:
        """Preprocess images, uint8 (N, H, W, C), to float32 (N, C, H, W)."""
        return torch.cat(list(evaluation_batches(images, self.weights.preprocessing, device="cpu")))


def are_weights(name: str) -> bool:
    """Tell whether a word of the command line is trained weights rather than the name of a network."""
    path = Path(name)
    return shipped_name(name) is not None or path.is_file() or (path.is_dir() and holds_weights(path))


def data_for(weights: str, data: str | None) -> str:
    """Return the data that goes with weights: what is named, or that of their run.

    Raises:
        UsageError: it is not known.
    """
    return data_of_run(weights) if data is None else data


@lru_cache(maxsize=1)
def read_trained(weights: str, data: str) -> Trained:
    """Read trained weights, and images of a data set with their classes.

    Args:
        weights: as for `read_weights`.
        data: as for `load_dataset`.

    Raises:
        UsageError, DataError: as for `read_weights` and `load_matching`; or the images are not square.
    """
    found = read_weights(find_weights(weights))
    if found.input_size[0] != found.input_size[1]:
        raise UsageError(f"{weights}: images of {found.input_size[1]} x {found.input_size[0]} px; must be square")
    dataset, notes = load_matching(found, data, run=run_of(weights))
    chosen = spread(len(dataset.test), NUM_TEST_IMAGES)
    test, more = fit_images(found, dataset, dataset.test.images[chosen])
    training, _ = calibration_images(found, dataset)
    # Streamed images are decoded now, not while they are timed.
    return Trained(found, np.asarray(test), np.asarray(training), tuple(dict.fromkeys([*notes, *more])))
