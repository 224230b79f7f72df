"""What a reader finds before any image is decoded: names, labels, splits, and how to get at each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import HOLD_OUT_EVERY, Dataset, check_labels, every_fifth, split_images
from wideresnet.data.decode import Decoded, Encoded, decode_all


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read the user's own data, as for `load_dataset`."""

    image_size: int | None = None
    skip_unreadable: bool = False
    image_column: str | None = None
    label_column: str | None = None
    class_order: str | None = None
    white: int | None = None


@dataclass(frozen=True)
class Catalog:
    """Labelled images of a folder or an archive, none of which is decoded yet.

    Attributes:
        name: what the folder or file is called.
        source: what the user asked for.
        layout: what was recognized, a few words.
        class_names: in the order of the labels.
        labels: int64 (N,).
        is_test: bool (N,).
        read: yields all images in order; may be called again.
        folder: what the paths of `files` are relative to.
        files: the files that hold the images; their names, sizes and times are the key of the cache.
        notes: one line for every decision that was made.
        can_stay: whether the images are files or parts of files, which any process can read at any time.
    """

    name: str
    source: str
    layout: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    is_test: np.ndarray
    read: Callable[[], Iterable[Encoded]]
    folder: Path
    files: list[Path]
    notes: tuple[str, ...]
    can_stay: bool = False

    def decode(self, options: ReadOptions, how: Callable[..., Decoded] = decode_all) -> Dataset:
        """Decode all images.

        Args:
            options: how to read them.
            how: `decode_all`, or what takes its place.

        Raises:
            DataError: images cannot be read, or a class has none left.
        """
        decoded = how(
            self.read,
            len(self.labels),
            folder=self.folder,
            files=self.files,
            image_size=options.image_size,
            skip_unreadable=options.skip_unreadable,
            white=options.white,
        )
        labels, is_test = self.labels[decoded.kept], self.is_test[decoded.kept]
        names = check_labels(
            labels[~is_test], labels[is_test], self.class_names, str(self.folder), lambda split, _: split
        )
        train, test = split_images(decoded.images, labels, is_test)
        notes = (*self.notes, *decoded.notes)
        return Dataset(self.name, self.source, train, test, names, None, notes, self.layout, decoded.white)


def hold_out(
    labels: np.ndarray, why: str, where: str, names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Choose test images for data without any, and say so.

    Args:
        labels: integers (N,), in the order that decides which are chosen.
        why: what is missing, e.g. "no test folder".
        where: the file or folder, for the message.
        names: of the classes.

    Returns:
        bool (N,), and notes.

    Raises:
        DataError: no class has five images.
    """
    is_test = every_fifth(labels)
    if len(labels) and not is_test.any():
        most = int(np.unique(labels, return_counts=True)[1].max())
        raise DataError(
            f"{where}: no test images: {why}, and no class has {HOLD_OUT_EVERY} images, of which one would be held out "
            f"(the largest has {most}); add images, or a test set"
        )
    notes = [f"{why}: every {HOLD_OUT_EVERY}th image of each class is held out, {is_test.sum()} images"]
    present, counts = np.unique(labels, return_counts=True)
    if len(small := present[counts < HOLD_OUT_EVERY]) and is_test.any():
        shown = ", ".join(str(names[label] if names else label) for label in small[:5])
        classes = "1 class has" if len(small) == 1 else f"{len(small)} classes have"
        shown += ", ..." if len(small) > 5 else ""
        notes.append(f"{classes} fewer than {HOLD_OUT_EVERY} images, so no test image: {shown}")
    return is_test, notes
