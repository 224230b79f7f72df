"""`load_dataset`: from a name or a path to a Dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.base.format import counted, nearest
from wideresnet.data.catalog import Catalog, ReadOptions
from wideresnet.data.dataset import Dataset, ImageSet, count_repeats, legible
from wideresnet.data.decode import DEFAULT_SIDE_PX, is_native, resize_all
from wideresnet.data.depth import WHITE
from wideresnet.data.facts import FACTS, Facts, recognize
from wideresnet.data.feeds.lazy import as_array, lazy
from wideresnet.data.feeds.loading import Decoding, check_test_images
from wideresnet.data.images import MAX_PIXELS
from wideresnet.data.readers.binaries import find_binaries, read_binaries
from wideresnet.data.readers.folders import read_folder
from wideresnet.data.readers.kinds import describe_file
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
    image_column: str | None = None,
    label_column: str | None = None,
    class_order: str | None = None,
    white: int | None = None,
    known: Iterable[Facts] = tuple(FACTS.values()),
    feed: str = "auto",
) -> Dataset:
    """Load a data set into memory, or find its files if it is too large for that.

    Args:
        data: "digits", "cifar10", "cifar100" or "svhn"; or the path of an `.npz`, of a folder with class folders,
            images and a table of labels, tar shards, parquet files, MNIST's, STL-10's or torchvision's files, or of a
            `.zip` of the first two. A Path is never read as a name.
        extra_data: SVHN only: train on the extra images, too, as the paper does.
        image_size: side, px, to which images are resized (shorter side scaled, center cropped); None keeps images that
            all have one size of at most 128 px and resizes others to 64.
        skip_unreadable: leave out images that cannot be read, with a note, instead of raising.
        image_column, label_column: of a table or of parquet files; None for the one that is clearly meant.
        class_order: "text" or "number", of classes that are called by numbers; None for "text" of folders (1, 10, 2)
            and "number" of labels in tables.
        white: the value of 16-bit images that becomes 255; None for the largest of as many bits as they all use.
        known: published sets to recognize in the user's files.
        feed: "resident": decode all images at once; "stream": decode those that are files, or members of tar shards,
            when they are needed; "auto": the former if they take at most a quarter of the free memory.

    Returns:
        The data; its `notes` name every decision that was made.

    Raises:
        UsageError: there is no such data set, or an option does not apply to it.
        DataError: the files cannot be used; the message names the file, the reason and the fix.
    """
    options = ReadOptions(
        image_size=image_size, skip_unreadable=skip_unreadable, image_column=image_column, label_column=label_column,
        class_order=class_order, white=white,
    )  # fmt: skip
    with _legible_errors(data):
        opened = open_data(data, options, extra_data=extra_data)
        dataset = opened if isinstance(opened, Dataset) else _decoded(opened, options, feed)
    if dataset.facts is None:
        dataset = _recognized(dataset, Path(os.path.expanduser(data)), known)
    dataset = replace(dataset, name=legible(dataset.name), notes=tuple(map(legible, dataset.notes)))
    return _fitted(dataset, image_size)


def open_data(data: str | Path, options: ReadOptions, *, extra_data: bool = False) -> Catalog | Dataset:
    """Find out what a data set is, as `load_dataset` does before it decodes images.

    Args:
        data, extra_data: as for `load_dataset`.
        options: its other arguments.

    Returns:
        A catalog of images to decode, or a data set that is stored as arrays and has been read.

    Raises:
        UsageError, DataError: as for `load_dataset`.
    """
    if options.image_size is not None and not 1 <= options.image_size <= _MAX_SIDE_PX:
        raise UsageError(f"image_size={options.image_size}: must be 1 to {_MAX_SIDE_PX} px")
    if options.class_order not in (None, "text", "number"):
        raise UsageError(f"class_order={options.class_order!r}: must be 'text' or 'number'")
    if options.white is not None and not 1 <= options.white <= WHITE:
        raise UsageError(f"white={options.white}: must be 1 to {WHITE:,}, the largest value of 16 bits")
    name, path = _name(data), Path(os.path.expanduser(data))
    if not is_there(data):
        raise UsageError(_unknown(str(data), name))
    with _legible_errors(data):
        layout = find_layout(path) if name not in FACTS else None
        if extra_data and name != "svhn" and not (layout and layout.name == "svhn"):
            raise UsageError(f"extra_data=True: only svhn has extra images, not {data}; leave out extra_data=True")
        if name == "digits":
            opened = read_digits(str(data))
        elif name in FACTS:
            opened = download(name, str(data), extra=extra_data)
        elif layout is not None:
            opened = read_layout(layout, str(data), extra=extra_data)
        else:
            opened = _open_own(path, str(data), options)
    if name in FACTS and path.exists():
        opened = replace(opened, notes=(*opened.notes, f"{path} exists, too; use ./{path} to read it instead"))
    return opened


def is_there(data: str | Path) -> bool:
    """Tell whether `data` is the name of a data set, or a file or folder that exists."""
    return bool(str(data).strip()) and (_name(data) in FACTS or Path(os.path.expanduser(data)).exists())


def _name(data: str | Path) -> str:
    return re.sub(r"[-_ ]", "", data.lower()) if isinstance(data, str) else ""


@contextmanager
def _legible_errors(data: str | Path) -> Iterator[None]:
    """Turn errors of the system into ours, and write what is no text in them as escapes."""
    try:
        yield
    except OSError as error:
        raise DataError(legible(f"{error.filename or data}: {error.strerror or error}")) from error
    except WRNError as error:  # names of files can hold line breaks and worse
        raise type(error)(legible(str(error))) from error


def load_for(recipe: Recipe) -> Dataset:
    """Load the data set of a recipe."""
    return load_dataset(
        recipe.data,
        extra_data=recipe.feed.extra_data,
        image_size=recipe.feed.image_size,
        skip_unreadable=recipe.feed.skip_unreadable,
        image_column=recipe.feed.image_column,
        label_column=recipe.feed.label_column,
        class_order=recipe.feed.class_order,
        white=recipe.feed.white,
        feed="stream" if recipe.feed.streams and recipe.machine.feed == "auto" else recipe.machine.feed,
    )


def _unknown(data: str, name: str) -> str:
    if name == "imagenet":
        return (
            "imagenet: not supported by name, because it cannot be downloaded without an account; use a folder with "
            "train/<class>/ and val/<class>/, or with tar shards such as train-0000.tar and val-0000.tar"
        )
    if "/" in data or "\\" in data or data.endswith((".npz", ".parquet", ".zip", ".tar")):
        return f"{data}: no such file or folder"
    return f"{data or repr(data)}: no such data set, file or folder; {nearest(data, FACTS)}, or a path"


def _open_own(path: Path, source: str, options: ReadOptions) -> Catalog | Dataset:
    """Open the user's own files by what they are."""
    if path.is_dir():
        if (parquet := find_parquet(path)) is not None:
            catalog = read_parquet(parquet, path, source, options)
            if parquet == path:
                return catalog
            note = f"parquet files found in the subfolder {parquet.name}"
            return replace(catalog, notes=(*catalog.notes, note))
        if (binaries := find_binaries(path)) is not None:
            return read_binaries(binaries, source)
        if shards := find_shards(path):
            return read_shards(path, shards, source)
        return read_folder(path, source, options)
    if path.suffix.lower() == ".tar":
        return read_shards(path, find_shards(path), source)
    if path.suffix.lower() == ".npz":
        return read_npz(path, source, options.white)
    if path.suffix.lower() == ".zip":
        return read_folder(path, source, options)
    raise UsageError(describe_file(path))


def _decoded(catalog: Catalog, options: ReadOptions, feed: str) -> Dataset:
    """Decode the images of a catalog at once, or leave them where they are until they are needed."""
    if not catalog.can_stay:  # each is found in its file only together with others, or is compressed
        dataset = catalog.decode(options)
        note = f"feed='stream': images in {catalog.layout} are decoded at once, and a stream is made of the result"
        return _noted(dataset, note) if feed == "stream" else dataset
    return check_test_images(catalog.decode(options, Decoding(feed)), skip_unreadable=options.skip_unreadable)


def _recognized(dataset: Dataset, path: Path, known: Iterable[Facts]) -> Dataset:
    """Check whether the user's own files are a published set after all, and name them."""
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
        dataset = _noted(dataset, f"called {own_name} but not the published {title}: treated as your own data")
    else:
        dataset = replace(dataset, name=own_name)
    if lazy(dataset.train.images) is not None:
        return _noted(dataset, "images that are there twice are not looked for in a stream; wrn check shows them")
    shared, crossing = count_repeats(dataset)
    if shared:
        images = f"{counted(shared, 'test image')} {'is' if shared == 1 else 'are'}"
        dataset = _noted(dataset, f"{images} also in the training set; wrn check shows them")
    if crossing:
        images = "1 image is" if crossing == 1 else f"{crossing:,} images are"
        dataset = _noted(dataset, f"{images} in two classes or more; wrn check shows them")
    return dataset


def _fitted(dataset: Dataset, image_size: int | None) -> Dataset:
    """Resize all images to the given size, or to the default if they are too large to keep."""
    height, width = dataset.train.images.shape[1:3]
    size = image_size or (None if is_native(height, width) else DEFAULT_SIDE_PX)
    if size is None or (height, width) == (size, size):
        return dataset
    train, test = (ImageSet(_resized(split.images, size), split.labels) for split in (dataset.train, dataset.test))
    fitted = replace(dataset, train=train, test=test)
    return _noted(fitted, f"all images resized from {width} x {height} to {size} x {size} px")


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    if (stream := lazy(images)) is not None:
        return as_array(stream.fitted((size, size), stream.resize, stream.workers))
    return np.ascontiguousarray(resize_all(images, size))


def _noted(dataset: Dataset, note: str) -> Dataset:
    return replace(dataset, notes=(*dataset.notes, note))
