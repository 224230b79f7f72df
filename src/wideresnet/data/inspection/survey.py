"""One look at every image of a data set: sizes, formats, what cannot be read, and hashes that find it again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from wideresnet.base.progress import track
from wideresnet.data.catalog import Catalog
from wideresnet.data.dataset import Dataset, legible
from wideresnet.data.decode import Encoded, in_threads
from wideresnet.data.depth import UnreadableError
from wideresnet.data.images import Header, decode_quietly, fit_to_size, read_header, read_peak, silent_pillow

THUMB_PX = 16
HASH_BITS = 128

Opened = Catalog | Dataset
"""A data set that `open_data` has opened."""


@dataclass(frozen=True)
class Survey:
    """What was seen of N images, training images first if they are arrays, else in the order of the catalog.

    Attributes:
        names: of the files or rows.
        labels: int64 (N,).
        is_test: bool (N,).
        digests: of the pixels; empty if an image cannot be read.
        hashes: bool (N, 128), see `perceptual_hash`.
        thumbs: uint8 (N, 16, 16), gray.
        sizes: int (N, 2), height and width, px; 0 if an image cannot be read.
        formats, modes: number of images by file format and by color mode.
        peaks: the largest value of each 16-bit image.
        failures: index of an image -> why it cannot be read.
    """

    names: list[str]
    labels: np.ndarray
    is_test: np.ndarray
    digests: list[bytes]
    hashes: np.ndarray
    thumbs: np.ndarray
    sizes: np.ndarray
    formats: Counter[str]
    modes: Counter[str]
    peaks: list[int]
    failures: dict[int, str]


class _Look(NamedTuple):
    name: str
    digest: bytes = b""
    bits: np.ndarray | None = None
    thumb: np.ndarray | None = None
    header: Header | None = None
    peak: int | None = None
    failure: str = ""


def survey(opened: Opened) -> Survey:
    """Look at every image once, in threads, with progress; no more than a few are in memory at a time."""
    labels, is_test = all_labels(opened)
    total = len(labels)
    hashes = np.zeros((total, HASH_BITS), dtype=bool)
    thumbs = np.zeros((total, THUMB_PX, THUMB_PX), dtype=np.uint8)
    sizes = np.zeros((total, 2), dtype=np.int64)
    names, digests, peaks = list[str](), list[bytes](), list[int]()
    formats, modes = Counter[str](), Counter[str]()
    failures: dict[int, str] = {}
    with silent_pillow():
        looks = in_threads(_look_at, opened.read()) if isinstance(opened, Catalog) else in_threads(_look, _rows(opened))
        for row, look in enumerate(track(looks, "looking at images", total)):
            names.append(legible(look.name))
            digests.append(look.digest)
            if look.header is None or look.bits is None or look.thumb is None:
                failures[row] = legible(look.failure)
                continue
            hashes[row], thumbs[row], sizes[row] = look.bits, look.thumb, (look.header.height, look.header.width)
            formats[look.header.format] += 1
            modes[look.header.mode] += 1
            peaks += [] if look.peak is None else [look.peak]
    return Survey(names, labels, is_test, digests, hashes, thumbs, sizes, formats, modes, peaks, failures)


def all_labels(opened: Opened) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of every image, int64 (N,), and whether it is a test image, bool (N,)."""
    if isinstance(opened, Catalog):
        return opened.labels, opened.is_test
    labels = np.concatenate([opened.train.labels, opened.test.labels])
    return labels, np.arange(len(labels)) >= len(opened.train)


def fetch_pictures(opened: Opened, wanted: Iterable[int], side: int) -> dict[int, np.ndarray]:
    """Decode some images again, to show them.

    Args:
        opened: the data.
        wanted: their indices, as in a `Survey`.
        side: the longer side, px, to which larger ones are reduced.

    Returns:
        Index -> uint8 (H, W, 3|1); without those that cannot be read.
    """
    chosen, pictures = set(wanted), {}
    if not chosen:
        return {}
    if isinstance(opened, Dataset):
        train = len(opened.train)
        for row in chosen:
            pictures[row] = opened.train.images[row] if row < train else opened.test.images[row - train]
    else:
        with silent_pillow():
            for row, encoded in enumerate(opened.read()):
                if row in chosen and encoded.source is not None:
                    try:
                        pictures[row] = decode_quietly(encoded.source, 3)[0]
                    except UnreadableError:
                        continue
                if row >= max(chosen):
                    break
    return {row: _reduced(picture, side) for row, picture in pictures.items()}


def _reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    return pixels if scale >= 1 else fit_to_size(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))


def perceptual_hash(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce an image to what recompressing, resizing and small changes of brightness leave alone.

    The hash (dHash, Krawetz 2013) tells of 8 x 8 places whether it gets brighter to the right, and to the bottom.

    Args:
        pixels: uint8 (H, W, C), C is 1 or 3.

    Returns:
        bool (128,), and the image in gray, uint8 (16, 16).
    """
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("L")
    small = np.asarray(picture.resize((9, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(small[:8, 1:] > small[:8, :-1]).ravel(), (small[1:, :8] > small[:-1, :8]).ravel()])
    return bits, np.asarray(picture.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX))


def _look_at(encoded: Encoded) -> _Look:
    try:
        if encoded.source is None:
            raise UnreadableError("no image bytes in this row")
        header = read_header(encoded.source)
        pixels, _ = decode_quietly(encoded.source, 1 if header.is_gray and not header.is_deep else 3)
        peak = read_peak(encoded.source) if header.is_deep else None
    except UnreadableError as error:
        return _Look(encoded.where, failure=str(error))
    content = b""
    if header.is_deep:  # eight bits of them would be equal more often
        content = encoded.source if isinstance(encoded.source, bytes) else encoded.source.read_bytes()
    bits, thumb = perceptual_hash(pixels)
    return _Look(encoded.where, _digest(pixels, content), bits, thumb, header, peak)


def _look(row: tuple[str, np.ndarray]) -> _Look:
    name, pixels = row
    bits, thumb = perceptual_hash(pixels)
    height, width, channels = pixels.shape
    header = Header(height, width, channels == 1, "array", "L" if channels == 1 else "RGB")
    return _Look(name, _digest(pixels), bits, thumb, header)


def _digest(pixels: np.ndarray, content: bytes = b"") -> bytes:
    if pixels.shape[2] == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., :1]  # gray, stored as color
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(content or np.ascontiguousarray(pixels).data)
    return digest.digest()


def _rows(dataset: Dataset) -> Iterable[tuple[str, np.ndarray]]:
    parts: Sequence[tuple[str, np.ndarray]] = (("train", dataset.train.images), ("test", dataset.test.images))
    return ((f"{split} row {row}", image) for split, images in parts for row, image in enumerate(images))
