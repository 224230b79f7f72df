"""All lazy images in order, decoded by workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as Work

from wideresnet.base.errors import DataError
from wideresnet.data.feeds.lazy import CHUNK_BYTES, LazyImages
from wideresnet.data.feeds.workers import InOrder


def decoded_in_order(images: LazyImages, batch_size: int, *, leave_out: bool) -> Iterator[Tensor]:
    """Do the work of `LazyImages.batches`."""
    most = max(1, CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    num = len(images)
    parts = [
        range(start, min(start + most, first + batch_size, num))
        for first in range(0, num, batch_size)
        for start in range(first, min(first + batch_size, num), most)
    ]
    results = InOrder(_Decoding(images, leave_out), parts, images.workers if len(parts) > 1 else 0)
    try:
        held: list[Tensor] = []
        for part in parts:
            pixels = next(results)
            if isinstance(pixels, str):
                raise DataError(pixels)
            held.append(pixels)
            if part.stop % batch_size == 0 or part.stop == num:
                yield torch.cat(held) if len(held) > 1 else held[0]
                held = []
    finally:
        results.close()


class _Decoding(Work[Any]):
    """Decodes a range of images; returns the message if one of them cannot be read."""

    def __init__(self, images: LazyImages, leave_out: bool) -> None:
        self.images, self.leave_out = images, leave_out

    def __getitem__(self, places: range) -> Tensor | str:
        pixels, row = torch.empty(len(places), *self.images.shape[1:], dtype=torch.uint8), 0
        for place in places:
            try:
                pixels[row] = torch.from_numpy(self.images.decode(place))
                row += 1
            except DataError as error:
                if not self.leave_out:
                    return str(error)
        return pixels[:row]
