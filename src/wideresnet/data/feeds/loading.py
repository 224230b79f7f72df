"""Encoded images to what a data set holds: decoded arrays if they fit comfortably into memory, else lazy images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.format import counted, human_bytes
from wideresnet.base.progress import track
from wideresnet.data import cache
from wideresnet.data.dataset import Dataset, ImageSet
from wideresnet.data.decode import (
    DEFAULT_SIDE_PX,
    MAX_NATIVE_SIDE_PX,
    Decoded,
    Encoded,
    decode_all,
    in_threads,
    is_native,
    measure,
    white_note,
)
from wideresnet.data.depth import WHITE, white_of
from wideresnet.data.feeds.lazy import LazyImages, as_array, lazy
from wideresnet.data.feeds.sources import Files
from wideresnet.data.images import UnreadableError, decode_quietly, read_header, read_peak, silent_pillow
from wideresnet.machine.host_memory import available_host_memory_bytes

COMFORTABLE = 4
"""Decoded images stay in memory if it has at least this many times as much left. Own choice."""

_NUM_LISTED = 10
_FIELDS = 4  # height, width, whether it is gray, and of 16 bits the largest value, else -1

Read = Callable[[], Iterable[Encoded]]


@dataclass(frozen=True)
class Decoding:
    """How images are decoded: at once or when they are needed; the place of `decode_all` in a catalog.

    Attributes:
        feed: "resident", "stream" or "auto", see `spec.options.MachineOptions`.
    """

    feed: str = "auto"

    def __call__(
        self,
        read: Read,
        total: int,
        *,
        folder: Path,
        files: list[Path],
        image_size: int | None,
        skip_unreadable: bool,
        white: int | None = None,
    ) -> Decoded:
        """Return the images of a catalog; arguments and errors are those of `decode_all`."""
        how: dict[str, Any] = {
            "folder": folder, "files": files, "image_size": image_size, "skip_unreadable": skip_unreadable,
            "white": white,
        }  # fmt: skip
        if self.feed == "resident" or (self.feed == "auto" and fits_comfortably(read, total, image_size)):
            return decode_all(read, total, **how)
        return stream_all(read, total, **how)


def fits_comfortably(read: Read, total: int, image_size: int | None) -> bool:
    """Tell whether decoded images would take at most a quarter of the free memory, by the size of the first one."""
    available = available_host_memory_bytes()
    largest = max(image_size or DEFAULT_SIDE_PX, MAX_NATIVE_SIDE_PX)
    if total * largest**2 * 3 * COMFORTABLE <= available:  # without a look
        return True
    found = next((found for image in read() if (found := measure(image))), None)
    if not available or found is None:  # the system does not say; or nothing can be read, which decoding reports
        return True
    header, _ = found
    sides = (header.height, header.width)
    height, width = sides if is_native(*sides) else (image_size or DEFAULT_SIDE_PX,) * 2
    return total * height * width * (1 if header.is_gray else 3) * COMFORTABLE <= available


def stream_all(
    read: Read,
    total: int,
    *,
    folder: Path,
    files: list[Path],
    image_size: int | None,
    skip_unreadable: bool,
    white: int | None = None,
) -> Decoded:
    """Return lazy images with the sizes, channels and white that `decode_all` would give them.

    Only headers are read, and images of 16 bits for their largest value, once: that is cached.

    Args and Raises: as for `decode_all`; an image that is damaged after its header is found when it is used.
    """
    encoded = list(read())
    key = cache.key_of(folder, files, measured=[e.where for e in encoded] if len(files) != total else total)
    entry, cache_notes = cache.load(key)
    if entry is None:
        headers = np.zeros((total, _FIELDS), np.int32)
        with silent_pillow():
            for row, found in enumerate(track(in_threads(measure, encoded), "reading image sizes", total)):
                if found is not None:
                    (height, width, is_gray, *_), peak = found
                    headers[row] = height, width, is_gray, -1 if peak is None else peak
        content = headers.view(np.uint8).reshape(total, 1, 1, 4 * _FIELDS)
        cache_notes += cache.store(key, cache.Entry(content, headers[:, 0] > 0, (), source=f"sizes in {folder}"))
    else:
        headers = np.ascontiguousarray(entry.images).reshape(total, 4 * _FIELDS).view(np.int32)
    kept = headers[:, 0] > 0
    notes = [*_left_out([encoded[i] for i in np.flatnonzero(~kept)], total, skip_unreadable), *cache_notes]
    sizes = {(int(height), int(width)) for height, width in np.unique(headers[kept, :2], axis=0)}
    gray = bool(kept.any() and headers[kept, 2].all())
    side = image_size or DEFAULT_SIDE_PX
    size = next(iter(sizes)) if len(sizes) == 1 and is_native(*next(iter(sizes))) else (side, side)
    num_bytes = total * size[0] * size[1] * (1 if gray else 3)
    notes.append(
        f"{counted(int(kept.sum()), 'image')} stay on the disk and are decoded when they are needed (decoded: "
        f"{human_bytes(num_bytes)})"
    )
    if gray:
        notes.append("all images are grayscale: 1 channel")
    peaks = headers[kept & (headers[:, 3] >= 0), 3].tolist()
    used = white or white_of(peaks) or WHITE
    if peaks and (used < WHITE or white):
        notes.append(white_note(max(peaks), used, given=white is not None))
    images = LazyImages(
        Files(encoded), np.flatnonzero(kept), size, 1 if gray else 3, skip_unreadable=skip_unreadable, white=used
    )
    return Decoded(as_array(images), kept, tuple(notes), used if peaks else None)


def check_test_images(dataset: Dataset, *, skip_unreadable: bool) -> Dataset:
    """Decode every test image of a stream once, so that an evaluation cannot end in the middle; cached.

    Raises:
        DataError: some cannot be read; the message counts them and lists the first ten.
    """
    images = lazy(dataset.test.images)
    if images is None:
        return dataset
    key = cache.key_of(Path("/"), [], checked=images.digest().hex(), white=images.white)
    entry, _ = cache.load(key)
    if entry is None:
        with silent_pillow():
            places = range(len(images))
            reasons = list(track(in_threads(lambda place: _why_not(images, place), places), "checking test images"))
        kept = np.array([reason is None for reason in reasons])
        failed = [f"{images.name(i)} ({reason})" for i, reason in enumerate(reasons) if reason is not None]
        if not failed:
            cache.store(key, cache.Entry(np.zeros((0, 1, 1, 1), np.uint8), kept, (), source="a check of test images"))
    else:
        return dataset
    notes = _refused(failed, len(images), "test images", skip_unreadable)
    if not kept.any():
        raise DataError(f"{dataset.source}: none of the {len(images)} test images can be read; repair them")
    test = ImageSet(images[kept], dataset.test.labels[kept])
    return replace(dataset, test=test, notes=(*dataset.notes, *notes)) if failed else dataset


def _why_not(images: LazyImages, place: int) -> UnreadableError | None:
    try:
        decode_quietly(images.read(place), images.channels, images.white)
    except UnreadableError as error:
        return error
    return None


def _left_out(encoded: list[Encoded], total: int, skip_unreadable: bool) -> Iterator[str]:
    """Yield the note about images that cannot be measured, or raise."""
    reasons = []
    for image in encoded:
        try:
            if read_header(image.place()).is_deep:
                read_peak(image.place())
        except UnreadableError as error:
            reasons.append(f"{image.where} ({error})")
    yield from _refused(reasons, total, "images", skip_unreadable)


def _refused(failed: list[str], total: int, what: str, skip_unreadable: bool) -> list[str]:
    if not failed:
        return []
    listed = "; ".join(failed[:_NUM_LISTED]) + ("; ..." if len(failed) > _NUM_LISTED else "")
    problem = f"{len(failed)} of {total} {what} cannot be read: {listed}"
    if not skip_unreadable:
        raise DataError(f"{problem}. Repair or remove them, or use skip_unreadable=True to leave them out")
    return [f"left out, {problem}"]
