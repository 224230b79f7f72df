"""`load_dataset`: from a name or a path to a Dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.base.format import nearest
from wideresnet.data.dataset import Dataset, ImageSet, legible
from wideresnet.data.decode import DEFAULT_SIDE_PX, is_native, resize_all
from wideresnet.data.facts import FACTS, Facts, recognize
from wideresnet.data.feeds.loading import Decoding, check_test_images
from wideresnet.data.images import MAX_PIXELS
from wideresnet.data.readers.folders import read_folder
from wideresnet.data.readers.npz import read_npz
from wideresnet.data.readers.parquet import find_parquet, read_parquet
from wideresnet.data.readers.published import download, find_layout, read_digits, read_layout
from wideresnet.data.readers.shards import find_shards, read_shards
from wideresnet.spec.recipe import Recipe

_MAX_SIDE_PX = int(MAX_PIXELS**0.5)


def load_dataset(
    data: str | Path,
    *,
    extra_data: bool = False,
    image_size: int | None = None,
    skip_unreadable: bool = False,
    known: Iterable[Facts] = tuple(FACTS.values()),
    feed: str = "auto",
) -> Dataset:
    """Load a data set into memory, or find its files if it is too large for that.

    Args:
        data: "digits", "cifar10", "cifar100" or "svhn"; or the path of an `.npz`, or of a folder with class folders,
            parquet files or torchvision's files. A Path is never read as a name.
        extra_data: SVHN only: train on the extra images, too, as the paper does.
        image_size: side, px, to which images are resized (shorter side scaled, center cropped); None keeps images that
            all have one size of at most 128 px and resizes others to 64.
        skip_unreadable: leave out images that cannot be read, with a note, instead of raising.
        known: published sets to recognize in the user's files.
        feed: "resident": decode all images of class folders and tar shards at once; "stream": decode them when they are
            needed; "auto": the former if they take at most a quarter of the free memory.

    Returns:
        The data; its `notes` name every decision that was made.

    Raises:
        UsageError: there is no such data set, or an option does not apply to it.
        DataError: the files cannot be used; the message names the file, the reason and the fix.
    """
    if image_size is not None and not 1 <= image_size <= _MAX_SIDE_PX:
        raise UsageError(f"image_size={image_size}: must be 1 to {_MAX_SIDE_PX} px")
    name = re.sub(r"[-_ ]", "", data.lower()) if isinstance(data, str) else ""
    path = Path(os.path.expanduser(data))
    if not str(data).strip() or (name not in FACTS and not path.exists()):
        raise UsageError(_unknown(str(data), name))
    layout = find_layout(path) if name not in FACTS else None
    if extra_data and name != "svhn" and not (layout and layout.name == "svhn"):
        raise UsageError(f"extra_data=True: only svhn has extra images, not {data}; leave out extra_data=True")
    try:
        if name == "digits":
            dataset = read_digits(str(data))
        elif name in FACTS:
            dataset = download(name, str(data), extra=extra_data)
        elif layout is not None:
            dataset = read_layout(layout, str(data), extra=extra_data)
        else:
            dataset = _read_own(path, str(data), image_size, skip_unreadable, known, Decoding(feed))
            dataset = check_test_images(dataset, skip_unreadable=skip_unreadable)
    except OSError as error:
        raise DataError(legible(f"{error.filename or data}: {error.strerror or error}")) from error
    except WRNError as error:  # names of files can hold line breaks and worse
        raise type(error)(legible(str(error))) from error
    if name in FACTS and path.exists():
        dataset = _noted(dataset, f"{path} exists, too; use ./{path} to read it instead")
    dataset = replace(dataset, name=legible(dataset.name), notes=tuple(map(legible, dataset.notes)))
    return _fitted(dataset, image_size)


def load_for(recipe: Recipe) -> Dataset:
    """Load the data set of a recipe."""
    return load_dataset(
        recipe.data,
        extra_data=recipe.feed.extra_data,
        image_size=recipe.feed.image_size,
        skip_unreadable=recipe.feed.skip_unreadable,
        feed="stream" if recipe.feed.streams and recipe.machine.feed == "auto" else recipe.machine.feed,
    )


def _unknown(data: str, name: str) -> str:
    if name == "imagenet":
        return (
            "imagenet: not supported by name, because it cannot be downloaded without an account; use a folder with "
            "train/<class>/ and val/<class>/, or with tar shards such as train-0000.tar and val-0000.tar"
        )
    if "/" in data or "\\" in data or data.endswith((".npz", ".parquet")):
        return f"{data}: no such file or folder"
    return f"{data}: no such data set, file or folder; {nearest(data, FACTS)}, or a path"


def _read_own(
    path: Path,
    source: str,
    image_size: int | None,
    skip_unreadable: bool,
    known: Iterable[Facts],
    decode: Decoding,
) -> Dataset:
    """Read the user's own files, and check whether they are a published set after all."""
    if path.is_file() and path.suffix.lower() == ".tar":
        how = {"image_size": image_size, "skip_unreadable": skip_unreadable, "decode": decode}
        dataset = read_shards(path, find_shards(path), source, **how)
    elif not path.is_dir():
        if path.suffix.lower() != ".npz":
            raise UsageError(
                f"{path}: a single file must be an .npz or a .tar; for images or parquet files use their folder"
            )
        dataset = read_npz(path, source)
    elif (parquet := find_parquet(path)) is not None:
        dataset = read_parquet(parquet, source, image_size=image_size, skip_unreadable=skip_unreadable)
        if parquet != path:
            dataset = _noted(dataset, f"parquet files found in the subfolder {parquet.name}")
    elif shards := find_shards(path):
        dataset = read_shards(
            path, shards, source, image_size=image_size, skip_unreadable=skip_unreadable, decode=decode
        )
    else:
        dataset = read_folder(path, source, image_size=image_size, skip_unreadable=skip_unreadable, decode=decode)
    own_name = path.resolve().stem if path.is_file() else path.resolve().name
    facts = recognize(dataset.train.images, len(dataset.test), len(dataset.class_names), known)
    if facts is not None:
        numbered = dataset.class_names == tuple(str(label) for label in range(len(dataset.class_names)))
        names = facts.class_names if numbered else dataset.class_names
        dataset = replace(dataset, name=facts.name, facts=facts, class_names=names)
        return _noted(dataset, f"recognized as {facts.title}: counts, size, classes and channel means are equal")
    if own_name in FACTS:
        title = FACTS[own_name].title
        dataset = replace(dataset, name=f"{own_name}-own")
        return _noted(dataset, f"called {own_name} but not the published {title}: treated as your own data")
    return replace(dataset, name=own_name)


def _fitted(dataset: Dataset, image_size: int | None) -> Dataset:
    """Resize all images to the given size, or to the default if they are too large to keep."""
    height, width = dataset.train.images.shape[1:3]
    size = image_size or (None if is_native(height, width) else DEFAULT_SIDE_PX)
    if size is None or (height, width) == (size, size):
        return dataset
    train, test = (
        ImageSet(np.ascontiguousarray(resize_all(split.images, size)), split.labels)
        for split in (dataset.train, dataset.test)
    )
    fitted = replace(dataset, train=train, test=test)
    return _noted(fitted, f"all images resized from {width} x {height} to {size} x {size} px")


def _noted(dataset: Dataset, note: str) -> Dataset:
    return replace(dataset, notes=(*dataset.notes, note))
