"""One image file to one uint8 array, for every format, bit depth and color mode. Pillow does the decoding."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from wideresnet.base.errors import DataError

# The formats that Pillow may try. Its other readers are not exposed to files of unknown origin.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

EXTENSIONS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)

# 8000 x 8000: more than cameras take, and 192 MB when decoded. Checked in the header, before anything is decoded.
MAX_PIXELS = 64_000_000

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.3, tag 0x0112: the operation that turns the stored image upright
_SIDEWAYS = frozenset({5, 6, 7, 8})


class UnreadableError(ValueError):
    """An image cannot be used; the message gives the reason without the image's name."""


class Header(NamedTuple):
    """The size of an image when upright, px, and whether it is grayscale."""

    height: int
    width: int
    is_gray: bool


def decode(source: bytes | Path, channels: int = 3) -> tuple[np.ndarray, frozenset[str]]:
    """Decode one image: upright, with eight bits, transparent pixels on white.

    Args:
        source: the path of a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM file, or its content.
        channels: 3 for RGB, 1 for luma.

    Returns:
        uint8 (H, W, channels), and the conversions that were made: "16-bit", "CMYK", "EXIF rotation", "alpha",
        "color", "first frame", "grayscale", "palette", or the name of another color space.

    Raises:
        DataError: the file is missing, empty, damaged, not an image or too large, or has floating-point pixels.
    """
    try:
        with silent_pillow():
            return decode_quietly(source, channels)
    except UnreadableError as error:
        raise DataError(f"{source if isinstance(source, Path) else 'image'}: {error}") from error


@contextmanager
def silent_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings (large image, odd metadata): what matters is checked here.

    Enter it in the main thread, around the threads that decode, because Python's warning filters are not per thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(source: bytes | Path) -> Header:
    """Read the size and color of an image without decoding it.

    Args:
        source: path or content.

    Raises:
        UnreadableError: the file is missing, empty, damaged, not an image or too large.
    """
    with _opened(source) as image:
        width, height = image.size
        # a square image is as wide when rotated; that spares a PNG, whose EXIF is only known after decoding
        if width != height and image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return Header(height, width, _is_gray(image))


def decode_quietly(source: bytes | Path, channels: int) -> tuple[np.ndarray, frozenset[str]]:
    """Do the work of `decode`, inside `silent_pillow`.

    Args:
        source, channels: as for `decode`.

    Returns:
        As for `decode`.

    Raises:
        UnreadableError: where `decode` raises DataError.
    """
    conversions: set[str] = set()
    with _opened(source) as image:
        if getattr(image, "is_animated", False):
            conversions.add("first frame")
        # Pillow reads 16-bit color as eight bits on its own and shows that only in the raw mode
        if ";16" in image.mode or ";16" in str(getattr(image, "tile", "")):
            conversions.add("16-bit")
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION)
        gray = _is_gray(image)
        flat = _to_eight_bits(image, conversions)
        if orientation in _UPRIGHT:
            conversions.add("EXIF rotation")
            flat = flat.transpose(_UPRIGHT[orientation])
        if channels == 3 and gray:
            conversions.add("grayscale")
        elif channels == 1 and not gray:
            conversions.add("color")
        pixels = np.asarray(flat.convert("RGB" if channels == 3 else "L"))
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels)), frozenset(conversions)


def fit_to_size(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize an image: scale it (antialiased, bilinear) until it just covers the new size, and crop the center.

    Args:
        image: uint8 (H, W, C), C is 1 or 3.
        size: (height, width), or the side of a square, px.

    Returns:
        uint8 (height, width, C); the image itself if it already has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    full_height, full_width, channels = image.shape
    if (full_height, full_width) == (height, width):
        return image
    scale = max(height / full_height, width / full_width)
    box_height, box_width = min(height / scale, full_height), min(width / scale, full_width)
    left, top = (full_width - box_width) / 2, (full_height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return np.ascontiguousarray(resized.reshape(height, width, channels))


@contextmanager
def _opened(source: bytes | Path) -> Iterator[Image.Image]:
    """Open an image; every error until it is closed becomes an UnreadableError."""
    try:
        if isinstance(source, Path):
            if not source.is_file():
                raise UnreadableError("not a file" if source.exists() else "no such file")
            size = source.stat().st_size
        else:
            size = len(source)
        if size == 0:
            raise UnreadableError("empty file")
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableError(f"{width} x {height} pixels, the limit is {MAX_PIXELS // 10**6} million")
            yield image
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"too many pixels, the limit is {MAX_PIXELS // 10**6} million") from error
    except UnidentifiedImageError as error:
        raise UnreadableError(f"not an image ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise almost every type of error for a damaged file
        raise UnreadableError(" ".join(f"damaged: {error or type(error).__name__}".split())) from error


def _is_gray(image: Image.Image) -> bool:
    return image.getbands()[0] in {"1", "L", "I", "F"}


def _to_eight_bits(image: Image.Image, conversions: set[str]) -> Image.Image:
    """Return the decoded image in mode L or RGB, and add what was done to `conversions`."""
    mode = image.mode
    if mode == "F":
        raise UnreadableError("floating-point pixels have no fixed range; save as 8 or 16 bits")
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableError(f"pixels from {values.min()} to {values.max()}, beyond 16 bits; save as 8 bits")
        conversions.add("16-bit")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))  # 257 = 65535 / 255
    if mode.startswith("P"):
        conversions.add("palette")
    if image.has_transparency_data:
        conversions.add("alpha")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if mode not in {"1", "L", "RGB", "P"}:
        conversions.add(mode)
    return image.convert("L" if mode in {"1", "L"} else "RGB")
