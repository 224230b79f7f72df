"""Images on pages: small ones exactly, large ones as thumbnails."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from wideresnet.report.figures import image_to_png

MAX_EXACT_PX, THUMBNAIL_PX = 64, 160
"""Longer sides of images on a page: up to the first they are exact, larger ones are scaled down to the second, which
is sharp on a screen with two pixels per CSS pixel at the smallest size. This package's choice."""


def encode_small(image: np.ndarray) -> tuple[bytes, str, bool]:
    """Encode an image for a page, so that dozens of them stay below a megabyte.

    Args:
        image: uint8 (H, W, C), C is 1 or 3.

    Returns:
        The file, its type, and whether it holds the exact pixels: those of an image of at most `MAX_EXACT_PX`. A larger
        one is a JPEG file, scaled down to `THUMBNAIL_PX`.
    """
    if max(image.shape[:2]) <= MAX_EXACT_PX:
        return image_to_png(image), "image/png", True
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), "image/jpeg", False
