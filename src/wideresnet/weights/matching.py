"""Data for trained weights: with their classes, and images as their network takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wideresnet.base.errors import UsageError
from wideresnet.data import Dataset, load_dataset
from wideresnet.data.feeds.lazy import as_array, lazy
from wideresnet.data.feeds.workers import chosen_workers
from wideresnet.data.images import fit_to_size
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights


def load_matching(
    weights: Weights, data: str | Path | Dataset, *, skip_unreadable: bool = False
) -> tuple[Dataset, list[str]]:
    """Load a data set with the classes of the weights, at the size that they were trained on if that is square.

    Args:
        weights: the network, its class names and input size.
        data: as for `load_dataset`, or what that returned.
        skip_unreadable: leave out images that cannot be read, with a note.

    Returns:
        The data, whose images `fit_images` converts; and the notes on weights and data.

    Raises:
        UsageError: the data has other classes.
        DataError: the data cannot be read.
    """
    if isinstance(data, Dataset):
        dataset = data
    elif weights.resize is not None:  # a center crop needs whole images
        dataset = load_dataset(data, image_size=max(weights.input_size), skip_unreadable=skip_unreadable, feed="stream")
    else:
        dataset = load_dataset(data, skip_unreadable=skip_unreadable)
        height, width = weights.input_size
        if dataset.test.images.shape[1:3] != (height, width) and height == width:
            dataset = load_dataset(data, image_size=height, skip_unreadable=skip_unreadable)
    return dataset, [*weights.notes, *dataset.notes, *_check_names(weights, dataset)]


def data_of_run(run: RunFolder) -> str:
    """Return the data that a run was trained on.

    Raises:
        UsageError: the folder holds no run.
    """
    if not run.is_run():
        raise UsageError(f"{run.path}: no run, so the data is not known; name it with data=")
    return run.read_recipe().data


def fit_images(weights: Weights, dataset: Dataset, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Convert images to the size and channels of the weights.

    Args:
        weights: the network and its input size.
        dataset: where the images are from.
        images: uint8 (N, H, W, C), its training or test images.

    Returns:
        uint8 (N, H, W, C) for `weights.preprocessing`, and notes on what was done.

    Raises:
        UsageError: the network takes images of other channels.
    """
    notes: list[str] = []
    channels, wanted = images.shape[3], weights.network.in_channels
    if (stream := lazy(images)) is not None and channels <= wanted <= 3:
        return as_array(
            stream.fitted(weights.input_size, weights.resize, chosen_workers(None, "cpu", 1), wanted)
        ), notes
    if channels == 1 and wanted == 3:
        images = np.repeat(images, 3, axis=3)
        notes.append("the images are grayscale and the network takes RGB: gray repeated in all three channels")
    elif channels != wanted:
        raise UsageError(
            f"{dataset.source}: images of {channels} channels, but the weights take {wanted}; convert them"
        )
    if images.shape[1:3] != weights.input_size:
        height, width = weights.input_size
        notes.append(f"test images resized from {images.shape[2]} x {images.shape[1]} to {width} x {height} px")
        images = np.stack([fit_to_size(image, weights.input_size) for image in images])
    return images, notes


def _check_names(weights: Weights, dataset: Dataset) -> list[str]:
    """Refuse data with other classes than the weights. The user's own data may have numbers instead of names."""
    known, found = weights.class_names, dataset.class_names
    if known == found:
        return []
    if len(known) != len(found):
        raise UsageError(
            f"{dataset.source}: {len(found)} classes ({_listed(found)}), but the weights know {len(known)} "
            f"({_listed(known)}); use data with the classes that they were trained on"
        )
    if dataset.facts is None and found == tuple(str(label) for label in range(len(found))):
        return [f"the classes of the data are only numbered; they get the names in the weights: {_listed(known)}"]
    place = next(place for place, pair in enumerate(zip(known, found, strict=True)) if pair[0] != pair[1])
    raise UsageError(
        f"{dataset.source}: class {place} is {found[place]!r}, but in the weights it is {known[place]!r}; use data "
        "with the same names in the same order"
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
