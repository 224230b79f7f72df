"""One image of a stream to pixels: as the readers decode it, faster if it is an ordinary JPEG.

Measured on JPEGs of 66 kB, ms of CPU time per image: Pillow 0.96, the readers' `decode_quietly` 1.26, torchvision
0.83; with a random resized crop to 224x224 2.00, 1.88 and 1.21.
"""

from __future__ import annotations

import functools
import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wideresnet.data.depth import WHITE
from wideresnet.data.images import (
    BYTES_PER_PIXEL,
    LARGE_BYTES,
    UnreadableError,
    decode_quietly,
    fit_to_size,
    plain_jpeg,
    read_header,
)

if TYPE_CHECKING:
    from torch import Tensor

_large: AbstractContextManager[Any] = nullcontext()


def decode_array(source: bytes | Path | np.ndarray, channels: int, white: int = WHITE) -> np.ndarray:
    """Decode an image.

    Args:
        source: content or path; or pixels, which are returned.
        channels: 3 for RGB, 1 for luma.
        white: the value of 16-bit images that becomes 255.

    Returns:
        uint8 (H, W, channels), the pixels that `images.decode_quietly` returns.

    Raises:
        UnreadableError: it cannot be used.
    """
    if isinstance(source, np.ndarray):
        return source
    if (fast := _decode_fast(source, channels)) is not None:
        return fast.permute(1, 2, 0).numpy()
    header = read_header(source)
    with _large if header.height * header.width * BYTES_PER_PIXEL > LARGE_BYTES else nullcontext():
        return decode_quietly(source, channels, white)[0]


def one_large_image_at_a_time(lock: AbstractContextManager[Any]) -> None:
    """Let this process wait for a lock before it decodes a large image, so that those of several do not add up."""
    global _large
    _large = lock


def decode_tensor(source: bytes | Path | np.ndarray, channels: int, white: int = WHITE) -> Tensor:
    """Decode an image to a contiguous uint8 (channels, H, W); otherwise as `decode_array`."""
    if not isinstance(source, np.ndarray) and (fast := _decode_fast(source, channels)) is not None:
        return fast
    import torch

    return torch.from_numpy(np.ascontiguousarray(decode_array(source, channels, white).transpose(2, 0, 1)))


def fitted(pixels: np.ndarray, size: tuple[int, int], resize: int | None) -> np.ndarray:
    """Scale and crop an image.

    Args:
        pixels: uint8 (H, W, C).
        size: (height, width) of the result, px.
        resize: the shorter side is scaled to this, then the center is cropped, as fb.resnet.torch and torchvision do in
            evaluation; None: until it just covers the result, as the readers do.

    Returns:
        uint8 (height, width, C).
    """
    if resize is None:
        return np.ascontiguousarray(fit_to_size(pixels, size))
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = (resize, int(resize * long / short))  # as torchvision rounds
    new_height, new_width = scaled if height <= width else scaled[::-1]
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    left, top = (round((whole - part) / 2) for whole, part in ((new_width, size[1]), (new_height, size[0])))
    resized = picture.resize((new_width, new_height), Image.Resampling.BILINEAR)
    cropped = resized.crop((left, top, left + size[1], top + size[0]))
    return np.ascontiguousarray(np.asarray(cropped).reshape(*size, pixels.shape[2]))


def _decode_fast(source: bytes | Path, channels: int) -> Tensor | None:
    """Decode an ordinary JPEG by torchvision; None for what the readers have to look at."""
    if channels != 3 or not _same_decoder() or (content := plain_jpeg(source)) is None:
        return None
    try:
        return _decode_jpeg(content)
    except RuntimeError:  # damaged: the readers say how
        return None


def _decode_jpeg(content: bytes) -> Tensor:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    decoded = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    assert not isinstance(decoded, list)  # as it is for a list of contents
    return decoded


@functools.cache
def _same_decoder() -> bool:
    """Whether torchvision's libjpeg returns Pillow's pixels: a build may have another one, and a later version none."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((83, 61), Image.Resampling.BICUBIC)
    try:
        for subsampling in (0, 1, 2):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=85, subsampling=subsampling)
            theirs = _decode_jpeg(file.getvalue())
            if not np.array_equal(theirs.permute(1, 2, 0).numpy(), decode_quietly(file.getvalue(), 3)[0]):
                return False
    except (ImportError, AttributeError, RuntimeError, UnreadableError):
        return False
    return True
