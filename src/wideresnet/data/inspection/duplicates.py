"""Images that are there twice: with equal pixels, or after recompressing, resizing or a small change of brightness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from wideresnet.base import progress
from wideresnet.base.format import counted
from wideresnet.data.inspection.survey import HASH_BITS, THUMB_PX, Survey

# All numbers are this package's choice. Of pairs whose hashes differ in few bits, those count whose reduced images have
# a correlation of at least 0.98: then copies saved as JPEG of quality 50, at half the size, brighter or with less
# contrast are found, and of CIFAR-10's different images hardly any.
MAX_BITS = 12
MAX_DISTANCE = 0.2
"""Root mean square difference of two images of mean 0 and standard deviation 1: 0.2^2 = 2 (1 - 0.98)."""
MAX_LEVELS_OF_BRIGHTNESS = 40.0
MIN_RATIO_OF_CONTRASTS = 0.6
BLANK_LEVELS = 2.0
"""Standard deviation of gray levels below which an image is blank; blank ones are counted and not compared."""

MAX_COMPARED = 200_000
"""Beyond, comparing all pairs would take minutes."""

_ROWS_AT_ONCE = 1024
_MAX_PAIRS = 1_000_000


class Group(NamedTuple):
    """Images that are the same.

    Attributes:
        is_exact: their pixels are equal.
        members: their indices, in order.
        across_splits: some are training and some test images.
        across_classes: they have several labels.
    """

    is_exact: bool
    members: tuple[int, ...]
    across_splits: bool
    across_classes: bool


class Duplicates(NamedTuple):
    """Groups, those across splits and classes first; images of one color; and notes on what was not compared."""

    groups: list[Group]
    blank: list[int]
    notes: list[str]


def find_duplicates(seen: Survey) -> Duplicates:
    """Find groups of images with equal pixels, and groups of images that look the same."""
    by_digest: dict[bytes, list[int]] = {}
    for row, digest in enumerate(seen.digests):
        if digest:
            by_digest.setdefault(digest, []).append(row)
    contrast = seen.thumbs.reshape(len(seen.thumbs), THUMB_PX**2).std(axis=1)
    firsts = np.array([rows[0] for rows in by_digest.values()], dtype=np.int64)
    is_blank = np.zeros(len(seen.names), dtype=bool)
    is_blank[firsts] = contrast[firsts] < BLANK_LEVELS
    is_small = seen.sizes.min(axis=1) < THUMB_PX
    compared, notes = firsts[~is_blank[firsts] & ~is_small[firsts]], list[str]()
    if is_small[firsts].any():
        few = counted(int(is_small[firsts].sum()), "image")
        notes.append(f"{few} below {THUMB_PX} px: too small to search for near duplicates")
    copies = {rows[0]: rows for rows in by_digest.values()}
    groups = [_group(seen, rows, is_exact=True) for rows in by_digest.values() if len(rows) > 1]
    if len(compared) > MAX_COMPARED:
        notes.append(f"near duplicates are searched among up to {MAX_COMPARED:,} images, not {len(compared):,}")
    else:
        for alike in _connected(_near_pairs(seen, compared)):
            groups.append(_group(seen, sorted(row for first in alike for row in copies[first]), is_exact=False))
    groups.sort(
        key=lambda group: (not group.across_splits, not group.across_classes, not group.is_exact, group.members)
    )
    blank = [row for first in firsts[is_blank[firsts]].tolist() for row in copies[first]]
    return Duplicates(groups, sorted(blank), notes)


def _group(seen: Survey, rows: list[int], *, is_exact: bool) -> Group:
    across_splits = len(set(seen.is_test[rows].tolist())) > 1
    return Group(is_exact, tuple(rows), across_splits, len(set(seen.labels[rows].tolist())) > 1)


def _near_pairs(seen: Survey, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that look the same.

    The number of different bits is a matrix product: of vectors of +1 and -1 it is (bits - product) / 2.
    """
    signs = 2 * seen.hashes[rows].astype(np.float32) - 1
    thumbs = seen.thumbs[rows].reshape(len(rows), THUMB_PX**2).astype(np.float32)
    brightness = thumbs.mean(axis=1, keepdims=True)
    thumbs -= brightness
    contrast = thumbs.std(axis=1, keepdims=True)
    thumbs /= contrast
    num_pairs = 0
    starts = range(0, len(rows), _ROWS_AT_ONCE)
    for start in progress.track(starts, "comparing images", len(starts)):
        products = signs[start : start + _ROWS_AT_ONCE] @ signs[start:].T
        first, second = np.nonzero(products >= HASH_BITS - 2 * MAX_BITS)
        first, second = (index[first < second] + start for index in (first, second))
        for part in np.array_split(np.arange(len(first)), 1 + len(first) // 100_000):
            a, b = first[part], second[part]
            distance = np.sqrt(np.square(thumbs[a] - thumbs[b]).mean(axis=1))
            is_near = distance <= MAX_DISTANCE
            ratio = contrast[a, 0] / contrast[b, 0]
            is_near &= (ratio >= MIN_RATIO_OF_CONTRASTS) & (ratio <= 1 / MIN_RATIO_OF_CONTRASTS)
            is_near &= np.abs(brightness[a] - brightness[b])[:, 0] <= MAX_LEVELS_OF_BRIGHTNESS
            for i, j in zip(rows[a[is_near]].tolist(), rows[b[is_near]].tolist(), strict=True):
                num_pairs += 1
                if num_pairs > _MAX_PAIRS:
                    return
                yield i, j


def _connected(pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Join pairs that share an image into groups."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in pairs:
        parent[root(one)] = root(other)
    groups: dict[int, list[int]] = {}
    for row in parent:
        groups.setdefault(root(row), []).append(row)
    return [sorted(group) for group in groups.values()]
