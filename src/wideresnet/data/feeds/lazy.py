"""Images that stay encoded until they are used, with the look of an array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.data.depth import WHITE
from wideresnet.data.feeds.decoder import decode_array, fitted
from wideresnet.data.feeds.sources import Array, Source
from wideresnet.data.images import UnreadableError, silent_pillow
from wideresnet.data.limits import check_fits

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 2**22
"""Of decoded images in a task: a batch of 256 at 224x224 is ten of them. A container's shared memory is small."""


class LazyImages:
    """Images of one size, decoded when they are asked for: uint8 (N, H, W, C).

    An index gives an image, a slice or an array of indices gives `LazyImages`, `np.asarray` decodes all.

    Args:
        source: where the encoded images are.
        index: int64 (N,), which of them.
        size: (H, W), px.
        channels: 1 or 3.
        resize: see `decoder.fitted`.
        workers: processes that decode when all are needed in order; 0 for none.
        skip_unreadable: what `StreamFeed` does about an image that cannot be read.
        white: the value of 16-bit images that becomes 255.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        source: Source,
        index: np.ndarray,
        size: tuple[int, int],
        channels: int,
        *,
        resize: int | None = None,
        workers: int = 0,
        skip_unreadable: bool = False,
        white: int = WHITE,
    ) -> None:
        self.source, self.index, self.size, self.channels = source, index, size, channels
        self.resize, self.workers, self.skip_unreadable, self.white = resize, workers, skip_unreadable, white

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.index), *self.size, self.channels)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: Any) -> Any:
        if isinstance(part, int | np.integer):
            with silent_pillow():
                return self.decode(int(part))
        if isinstance(part, range):
            part = np.arange(part.start, part.stop, part.step)
        return self._with(index=self.index[part])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        check_fits(float(np.prod(self.shape, dtype=np.float64)), "all images at once", "use fewer, or feed='stream'")
        pixels = np.empty(self.shape, np.uint8)
        start = 0
        for batch in self.batches(max(1, CHUNK_BYTES // max(1, int(np.prod(self.shape[1:]))))):
            pixels[start : start + len(batch)] = batch.numpy()
            start += len(batch)
        return pixels if dtype is None else pixels.astype(dtype)

    def fitted(
        self, size: tuple[int, int] | None, resize: int | None, workers: int, channels: int | None = None
    ) -> LazyImages:
        """Return the same images at another size or with other channels, None for the same, decoded by workers."""
        return self._with(size=size or self.size, resize=resize, workers=workers, channels=channels or self.channels)

    def name(self, place: int) -> str:
        """Name an image in a message."""
        return self.source.name(int(self.index[place]))

    def digest(self) -> bytes:
        """Return a digest that tells these images apart from others, see `sources`."""
        return self.source.digest(self.index)

    def read(self, place: int) -> Any:
        """Return the content of an image.

        Raises:
            UnreadableError: it cannot be read.
        """
        return self.source.read(int(self.index[place]))

    def decode(self, place: int) -> np.ndarray:
        """Return an image, uint8 (H, W, C), inside `silent_pillow`.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return fitted(decode_array(self.read(place), self.channels, self.white), self.size, self.resize)
        except UnreadableError as error:
            raise unreadable(self.name(place), error) from error

    def batches(self, batch_size: int, *, leave_out: bool = False) -> Iterator[Tensor]:
        """Yield all images in order, uint8 (B, H, W, C); the last batch may be smaller.

        Args:
            batch_size: images per batch.
            leave_out: leave out images that cannot be read instead of raising.

        Raises:
            DataError: an image cannot be read.
        """
        from wideresnet.data.feeds.in_order import decoded_in_order  # PyTorch: not needed to show a picture

        return decoded_in_order(self, batch_size, leave_out=leave_out)

    def _with(self, **changes: Any) -> LazyImages:
        same = ("index", "size", "channels", "resize", "workers", "skip_unreadable", "white")
        return LazyImages(self.source, **{**{name: getattr(self, name) for name in same}, **changes})


def unreadable(name: str, reason: object) -> DataError:
    """Return the error about an image that can no longer be read, in the words of the readers."""
    return DataError(
        f"{name} cannot be read ({reason}). Repair or remove it, or use skip_unreadable=True to leave it out"
    )


def as_array(images: LazyImages) -> np.ndarray:
    """Pass lazy images where the images of an `ImageSet` are expected: what is used of an array there, they have."""
    return cast(np.ndarray, images)


def lazy(images: np.ndarray) -> LazyImages | None:
    """Return images as lazy ones; None if they are an array."""
    return images if isinstance(images, LazyImages) else None  # type: ignore[return-value]


def stream_of(images: np.ndarray) -> LazyImages:
    """Return images as lazy ones, also if they are an array."""
    found = lazy(images)
    if found is not None:
        return found
    return LazyImages(Array(images), np.arange(len(images)), (images.shape[1], images.shape[2]), images.shape[3])
