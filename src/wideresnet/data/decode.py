"""Many encoded images to one uint8 array: in threads, with progress, in bounded memory; the result is cached."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.progress import track
from wideresnet.data import cache
from wideresnet.data.depth import WHITE, white_of
from wideresnet.data.images import (
    Header,
    Source,
    UnreadableError,
    decode_quietly,
    fit_to_size,
    read_header,
    read_peak,
    silent_pillow,
)
from wideresnet.data.limits import check_fits
from wideresnet.machine.cpu import usable_cpus

T = TypeVar("T")
R = TypeVar("R")

# Images that all have one size up to this side stay as they are; others are resized to the default side. Both numbers
# are this package's choice: the paper's networks for 32 px cost (side / 32)^2 as much, 4 times at 64 px, 16 at 128.
MAX_NATIVE_SIDE_PX = 128
DEFAULT_SIDE_PX = 64

_IMAGES_PER_JOB = 64  # small images decode in 0.1 ms: one job per image would cost more than the work
_BYTES_PER_JOB = 4 * 2**20
_NUM_LISTED = 10


class Member(NamedTuple):
    """A part of a file, such as a member of a tar shard."""

    path: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Return its content.

        Raises:
            UnreadableError: the file ends before it, or cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error
        if len(content) < self.size:
            raise UnreadableError(f"the shard ends after {len(content):,} of {self.size:,} bytes")
        return content


class Encoded(NamedTuple):
    """One image to decode: its name in messages, and where it is; None if the source has no content for it."""

    where: str
    source: Source | None

    def place(self) -> Source:
        """Return where the image is.

        Raises:
            UnreadableError: it is nowhere.
        """
        if self.source is None:
            raise UnreadableError("no image bytes in this row")
        return self.source


@dataclass(frozen=True)
class Decoded:
    """The result of decoding a list of images.

    Attributes:
        images: uint8 (M, H, W, C), the images that could be read, in order.
        kept: bool (N,), which of all images those are.
        notes: what was done to them.
        white: the value of 16-bit images that became 255; None if there were none.
    """

    images: np.ndarray
    kept: np.ndarray
    notes: tuple[str, ...]
    white: int | None = None


class _Decoding(NamedTuple):
    pixels: np.ndarray | None
    conversions: frozenset[str]
    failure: str


def is_native(height: int, width: int) -> bool:
    """Tell whether images that all have this size are used as they are."""
    return max(height, width) <= MAX_NATIVE_SIDE_PX


def decode_all(
    read: Callable[[], Iterable[Encoded]],
    total: int,
    *,
    folder: Path,
    files: list[Path],
    image_size: int | None,
    skip_unreadable: bool,
    white: int | None = None,
) -> Decoded:
    """Decode all images, or read them from the cache if the files have not changed.

    Images that all have one size of at most 128 px stay as they are; others are resized to `image_size` (default 64).

    Args:
        read: yields all images in order; called twice, first for the sizes and then for the pixels.
        total: number of images that it yields.
        folder: the user's folder.
        files: the files that hold the images, in order; their names, sizes and times are the key of the cache.
        image_size: side, px, of images that do not stay as they are.
        skip_unreadable: leave out images that cannot be read, with a note, instead of raising.
        white: the value of 16-bit images that becomes 255; None for the used range of them all.

    Raises:
        DataError: images cannot be read (the message counts them all and lists the first ten), or they do not fit in
            memory.
    """
    key = cache.key_of(folder, files, image_size=image_size, skip_unreadable=skip_unreadable, white=white)
    entry, cache_notes = cache.load(key)
    if entry is None:
        decoded = _decode_now(read, total, image_size, skip_unreadable, white)
        entry = cache.Entry(decoded.images, decoded.kept, decoded.notes, str(folder), decoded.white)
        cache_notes += cache.store(key, entry)
    return Decoded(entry.images, entry.kept, entry.notes + cache_notes, entry.white)


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Resize images as `fit_to_size` does one image.

    Args:
        images: uint8 (N, H, W, C).
        size: side, px.

    Returns:
        uint8 (N, size, size, C).
    """
    resized = _allocate(len(images), size, size, images.shape[3])
    jobs = in_threads(lambda image: fit_to_size(image, size), images)
    for row, image in enumerate(track(jobs, "resizing images", len(images))):
        resized[row] = image
    return resized


def _decode_now(
    read: Callable[[], Iterable[Encoded]],
    total: int,
    image_size: int | None,
    skip_unreadable: bool,
    wanted_white: int | None,
) -> Decoded:
    with silent_pillow():
        found = track(in_threads(measure, read()), "reading image sizes", total)
        measured = [each for each in found if each is not None]
        headers, peaks = [header for header, _ in measured], [peak for _, peak in measured if peak is not None]
        white = wanted_white or white_of(peaks) or WHITE
        sizes = {(header.height, header.width) for header in headers}
        gray = bool(headers) and all(header.is_gray for header in headers)
        side = image_size or DEFAULT_SIDE_PX
        height, width = next(iter(sizes)) if len(sizes) == 1 and is_native(*next(iter(sizes))) else (side, side)
        images = _allocate(total, height, width, 1 if gray else 3)
        kept = np.zeros(total, dtype=bool)
        conversions: Counter[str] = Counter()
        failures: list[str] = []
        num_kept = num_failed = 0

        def decode_one(encoded: Encoded) -> _Decoding:
            try:
                pixels, done = decode_quietly(encoded.place(), images.shape[3], white)
                return _Decoding(fit_to_size(pixels, (height, width)), done, "")
            except UnreadableError as error:
                return _Decoding(None, frozenset(), f"{encoded.where} ({error})")

        for row, decoding in enumerate(track(in_threads(decode_one, read()), "decoding images", total)):
            if decoding.pixels is None:
                num_failed += 1
                failures += [decoding.failure] if num_failed <= _NUM_LISTED else []
                continue
            images[num_kept] = decoding.pixels
            kept[row] = True
            num_kept += 1
            conversions.update(decoding.conversions)

    notes = []
    if failures:
        listed = "; ".join(failures) + ("; ..." if num_failed > _NUM_LISTED else "")
        problem = f"{num_failed} of {total} images cannot be read: {listed}"
        if not skip_unreadable:
            raise DataError(f"{problem}. Repair or remove them, or use skip_unreadable=True to leave them out")
        notes.append(f"left out, {problem}")
    if gray:
        notes.append("all images are grayscale: 1 channel")
    if sizes and sizes != {(height, width)}:
        sides = [min(size) for size in sizes]
        spread = f"{min(sides)} to {max(sides)} px" if min(sides) != max(sides) else f"{sides[0]} px"
        notes.append(
            f"{num_kept} images of {len(sizes)} size{'s'[: len(sizes) > 1]} (shorter side {spread}) "
            f"resized to {side} x {side} px: shorter side scaled, center cropped"
        )
    notes += [_conversion_note(name, count) for name, count in sorted(conversions.items())]
    if peaks and (white < WHITE or wanted_white):
        notes.append(white_note(max(peaks), white, given=wanted_white is not None))
    return Decoded(images[:num_kept], kept, tuple(notes), white if peaks else None)


def white_note(peak: int, white: int, *, given: bool = False) -> str:
    """Say how 16-bit images are scaled."""
    bits = f" ({white.bit_length()} bits)" if (white + 1) & white == 0 else ""
    how = "as asked" if given else "white= chooses another value"
    return f"the 16-bit images hold values up to {peak:,}: {white:,}{bits} becomes white; {how}"


def measure(encoded: Encoded) -> tuple[Header, int | None] | None:
    """Header of an image, and of 16 bits the largest value; None if it cannot be read, since decoding says why."""
    try:
        header = read_header(encoded.place())
        return header, read_peak(encoded.place()) if header.is_deep else None
    except UnreadableError:
        return None


def _conversion_note(conversion: str, count: int) -> str:
    images = "1 image" if count == 1 else f"{count} images"
    text = {
        "16-bit": "scaled from 16 to 8 bits",
        "EXIF rotation": "rotated upright by EXIF",
        "alpha": "with transparency: placed on white",
        "first frame": "with several frames: the first one kept",
        "grayscale": "converted from grayscale to RGB",
    }.get(conversion, f"converted from {conversion}")
    return f"{images} {text}"


def _allocate(num_images: int, height: int, width: int, channels: int) -> np.ndarray:
    what, fix = f"{num_images:,} images of {width} x {height} px", "use a smaller image_size="
    check_fits(num_images * height * width * channels, what, fix)
    try:
        return np.empty((num_images, height, width, channels), dtype=np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than 2^63 bytes
        raise DataError(f"{what} do not fit in memory; {fix}") from error


def _jobs(items: Iterable[T]) -> Iterator[list[T]]:
    """Group items so that a job is worth its overhead and holds no more than a few MiB of encoded images."""
    job: list[T] = []
    num_bytes = 0
    for item in items:
        job.append(item)
        num_bytes += len(item.source) if isinstance(item, Encoded) and isinstance(item.source, bytes) else 0
        if len(job) == _IMAGES_PER_JOB or num_bytes >= _BYTES_PER_JOB:
            yield job
            job, num_bytes = [], 0
    if job:
        yield job


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map in order over threads; unlike Executor.map, it takes items only as needed, which bounds the memory."""
    workers = usable_cpus()
    pending: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for job in _jobs(items):
            pending.append(pool.submit(lambda job: [function(item) for item in job], job))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
