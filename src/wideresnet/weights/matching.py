"""Data for trained weights: with their classes, and images as their network takes them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data import Dataset, ImageSet, load_dataset
from wideresnet.data.feeds.lazy import as_array, lazy
from wideresnet.data.feeds.workers import chosen_workers
from wideresnet.data.images import fit_to_size
from wideresnet.data.load import is_there
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights
from wideresnet.weights.pretrained import find_weights, shipped_name


def load_matching(
    weights: Weights,
    data: str | Path | Dataset,
    *,
    run: RunFolder | None = None,
    skip_unreadable: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[Dataset, list[str]]:
    """Load a data set with the classes of the weights, at the size that they were trained on if that is square.

    Classes in another order are brought into that of the weights, and 16-bit images are scaled as in training.

    Args:
        weights: the network, its class names and input size.
        data: as for `load_dataset`, or what that returned.
        run: that may have made the weights: its own data is read by the columns that it was told to read.
        skip_unreadable: leave out images that cannot be read, with a note.
        image_column, label_column: as for `load_dataset`; None for those of the run.

    Returns:
        The data, whose images `fit_images` converts; and the notes on weights and data.

    Raises:
        UsageError: the data has other classes.
        DataError: the data cannot be read.
    """
    if isinstance(data, Dataset):
        dataset = data
    else:
        of_run = _columns(run, data) if run is not None else (None, None)
        load = partial(
            load_dataset, data, skip_unreadable=skip_unreadable, image_column=image_column or of_run[0],
            label_column=label_column or of_run[1], white=weights.preprocessing.white,
        )  # fmt: skip
        height, width = weights.input_size
        whole = weights.resize is not None  # a center crop needs whole images
        dataset = load(image_size=max(height, width), feed="stream") if whole else load()
        if dataset.test.images.shape[1:3] != (height, width) and height == width:
            dataset = load(image_size=height)
    dataset, notes = _in_order_of(weights, dataset)
    return dataset, [*weights.notes, *dataset.notes, *notes, *_check_names(weights, dataset)]


def _columns(run: RunFolder, data: str | Path) -> tuple[str | None, str | None]:
    """Return the columns of images and labels that a run was told to read, if this is its own data."""
    try:
        if run.is_run() and (recipe := run.read_recipe()).data == str(data):
            return recipe.feed.image_column, recipe.feed.label_column
    except DataError:  # a damaged record, which the weights do not need
        pass
    return None, None


def _in_order_of(weights: Weights, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Number the classes as the weights do, if they have the same names in another order."""
    known, found = weights.class_names, dataset.class_names
    if known == found or sorted(known) != sorted(found) or len(set(known)) < len(known):
        return dataset, []
    labels = np.array([known.index(name) for name in found])
    train, test = (ImageSet(part.images, labels[part.labels]) for part in (dataset.train, dataset.test))
    ordered = replace(dataset, train=train, test=test, class_names=known)
    return ordered, [f"the classes are numbered as in the weights, by their names: {_listed(known)}"]


def run_of(weights: str | Path) -> RunFolder:
    """Return the folder of weights as that of the run that may have made them."""
    path = find_weights(weights)
    return RunFolder(path if path.is_dir() else path.parent)


def data_of_run(weights: str | Path, option: str = "data") -> str:
    """Return the data that weights were trained on.

    Args:
        option: that names other data, for messages.

    Raises:
        UsageError: they are not in the folder of a run, or its data is not there any more.
    """
    run, name = run_of(weights), shipped_name(weights)
    why = f"{name}: comes without its data" if name else f"{run.path}: no run, so the data is not known"
    if run.is_run():
        if is_there(data := run.read_recipe().data):
            return data
        why = f"{run.path}: was trained on {data}, which is not there now"
    raise UsageError(f"{why}; name it with {option}=")


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
