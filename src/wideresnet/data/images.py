"""One image file to one uint8 array, for every format, bit depth and color mode. Pillow does the decoding."""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from wideresnet.base.errors import DataError
from wideresnet.base.format import human_bytes
from wideresnet.data import depth, formats
from wideresnet.data.depth import WHITE, UnreadableError
from wideresnet.data.limits import ByteBudget
from wideresnet.machine.host_memory import available_host_memory_bytes

# 8000 x 8000: more than cameras take, and 192 MB when decoded. Checked in the header, before anything is decoded.
MAX_PIXELS = 64_000_000
MAX_SIDE_PX = 32_768  # beyond any panorama; Pillow keeps two pointers a row, which weigh 16 times as much as a pixel
MAX_ENCODED_BYTES = 512 * 2**20  # 64 megapixels of 16-bit RGBA, uncompressed

# Pillow decodes these in Python, up to a microsecond a value
_SLOW_DECODERS = frozenset({"ppm", "ppm_plain", "bmp_rle"})
_MAX_SLOW_PIXELS = 8_000_000

_MAX_HEADER_READS = 40_000  # the largest color profile in GIF's or JPEG's small blocks takes 10,000
_MAX_SCANNED_PIXELS = 2_000_000_000  # of a progressive JPEG: 30 scans of the largest image; common are 10 scans
_MAX_REASON = 300  # some of Pillow's messages quote the file
_PIXELS_PER_STRIP = 2**20
LARGE_BYTES = 2**28  # of memory while decoding, from which on an image waits for the budget that all share
BYTES_PER_PIXEL = 16  # while decoding: 4 in Pillow's image, 3 in the result, up to 12 in WebP's decoder

_EXIF_ORIENTATION = 0x0112
_UPRIGHT: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}  # EXIF 2.3, tag 0x0112: the operation that turns the stored image upright
_SIDEWAYS = frozenset({5, 6, 7, 8})

_NO_HANDLER = logging.NullHandler()


Source = bytes | Path | Any
"""Where an image is: its content, its path, or a member of an archive with `read_bytes()`."""


class Header(NamedTuple):
    """The size of an image when upright, px, whether it is grayscale, its format, mode, and whether it has 16 bits."""

    height: int
    width: int
    is_gray: bool
    format: str = ""
    mode: str = ""
    is_deep: bool = False


def decode(source: Source, channels: int = 3) -> tuple[np.ndarray, frozenset[str]]:
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
    """Suppress what Pillow warns of and logs (large image, odd metadata), and what libtiff writes to stderr.

    Enter it in the main thread, around the threads that decode, because Python's warning filters are not per thread.
    """
    logging.getLogger("PIL").addHandler(_NO_HANDLER)  # else Python writes errors that are logged to stderr
    setters = _libtiff_setters()
    before = [set_handler(None) for set_handler in setters]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for set_handler, handler in zip(setters, before, strict=True):
            set_handler(handler)


@functools.cache
def _libtiff_setters() -> tuple[Callable[[int | None], int | None], ...]:
    """Return the functions that set what each loaded libtiff does with its messages; none where they cannot be found.

    libtiff writes to stderr by itself, and Pillow neither offers a way to stop that nor tells which library it loaded.
    """
    setters = []
    try:
        maps = Path("/proc/self/maps").read_text()
        for library in sorted(set(re.findall(r"/.*/libtiff[^/]*\.so[^/\s]*$", maps, re.MULTILINE))):
            set_handler = ctypes.CDLL(library).TIFFSetErrorHandler
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            setters.append(set_handler)
    except (OSError, AttributeError):  # macOS and Windows, or a library under another name
        pass
    return tuple(setters)


def read_header(source: Source) -> Header:
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
        return Header(height, width, _is_gray(image), image.format or "", image.mode, depth.is_deep(image))


def plain_jpeg(source: Source) -> bytes | None:
    """Return the content of an ordinary image: an upright JPEG in color, with few scans; None for any other.

    Every decoder of JPEG returns its pixels without further rules.

    Raises:
        UnreadableError: the file is missing, empty, damaged, not an image or too large.
    """
    with _opened(source) as image:
        if image.format != "JPEG" or image.mode != "RGB" or image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            return None
        _check_scans(image)
        if image.width * image.height * BYTES_PER_PIXEL > LARGE_BYTES:
            return None
        return _content(source)


def decode_quietly(source: Source, channels: int, white: int = WHITE) -> tuple[np.ndarray, frozenset[str]]:
    """Do the work of `decode`, inside `silent_pillow`. Threads that do it at once share a budget of memory.

    Args:
        source, channels: as for `decode`.
        white: the value of 16-bit images that becomes 255.

    Returns:
        As for `decode`.

    Raises:
        UnreadableError: where `decode` raises DataError.
    """
    conversions: set[str] = set()
    with _opened(source) as image:
        width, height = image.size
        with _decoding_budget().hold(width * height * BYTES_PER_PIXEL):
            if getattr(image, "is_animated", False):
                conversions.add("first frame")
            lossy, image_format = depth.loses_bits(image), image.format or ""
            if lossy or (";16" in depth.raw_modes(image) and image_format != "BMP"):
                conversions.add("16-bit")
            _check_scans(image)
            image.load()
            orientation = image.getexif().get(_EXIF_ORIENTATION)
            gray = _is_gray(image)
            if lossy and white < WHITE:
                image = depth.stretch(_content(source), image_format, white, conversions)
            pixels = _to_array(image, channels, conversions, white)
            if turn := _UPRIGHT.get(orientation or 1):
                conversions.add("EXIF rotation")
                pixels = np.ascontiguousarray(turn(pixels))
    if channels == 3 and gray:
        conversions.add("grayscale")
    elif channels == 1 and not gray:
        conversions.add("color")
    return pixels, frozenset(conversions)


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
    box_height, box_width = kept_size(image.shape, (height, width))
    left, top = (full_width - box_width) / 2, (full_height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return np.ascontiguousarray(resized.reshape(height, width, channels))


def kept_size(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[float, float]:
    """Return (height, width) of the center of an image that `fit_to_size` keeps, px.

    Args:
        shape: (H, W, ...) of the image.
        size: (height, width) of the result.
    """
    scale = max(size[0] / shape[0], size[1] / shape[1])
    return min(size[0] / scale, shape[0]), min(size[1] / scale, shape[1])


class _Metered:
    """A file that ends the reading of a header without end: comments, chunks or tags that Pillow reads in tiny steps.

    Attributes:
        reads_left: how many more times it may be read.
    """

    reads_left = _MAX_HEADER_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise UnreadableError("damaged: a header or a comment without end")
        return super().read(size)  # type: ignore[misc]


class _MeteredBytes(_Metered, io.BytesIO):
    pass


class _MeteredFile(_Metered, io.BufferedReader):
    pass


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Open an image; every error until it is closed becomes an UnreadableError."""
    try:
        if isinstance(source, Path):
            if not source.is_file():
                raise UnreadableError("not a file" if source.exists() else "no such file")
            if source.suffix.lower() in formats.RAW_EXTENSIONS:
                raise UnreadableError("a camera's raw format, whose preview is not the picture; export it as JPEG")
            size = source.stat().st_size
        else:
            source = _content(source)
            size = len(source)
        if size == 0:
            raise UnreadableError("empty file")
        if size > MAX_ENCODED_BYTES:
            raise UnreadableError(f"a file of {human_bytes(size)}, the limit is {human_bytes(MAX_ENCODED_BYTES)}")
        with (
            _MeteredFile(io.FileIO(source)) if isinstance(source, Path) else _MeteredBytes(source) as file,
            Image.open(file, formats=formats.pillow_formats()) as image,
        ):
            _check_size(image)
            file.reads_left = _MAX_HEADER_READS + min(image.width * image.height, _MAX_SLOW_PIXELS)
            yield image
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"too many pixels, the limit is {MAX_PIXELS // 10**6} million") from error
    except UnidentifiedImageError as error:
        raise UnreadableError(_what_it_is(source)) from error
    except Exception as error:  # Pillow's readers raise almost every type of error for a damaged file
        reason = f"damaged: {error or type(error).__name__}"[:_MAX_REASON]
        raise UnreadableError(" ".join(reason.split())) from error


def _content(source: Source) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _what_it_is(source: bytes | Path) -> str:
    """Say what a file is that is none of the formats, by its first bytes."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        return formats.describe(file.read(formats.START_BYTES))


def read_peak(source: Source) -> int:
    """Return the largest value of a 16-bit image.

    Raises:
        UnreadableError: as for `read_header`, or it is damaged or has other values.
    """
    with _opened(source) as image, _decoding_budget().hold(image.width * image.height * BYTES_PER_PIXEL):
        lossy = depth.loses_bits(image)  # loading forgets it
        image.load()
        if lossy:
            return depth.peak_of_color(image, _content(source))
        return int(_of_sixteen_bits(image).max())


def _check_size(image: Image.Image) -> None:
    """Refuse an image that would take too much memory or time, on its header."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width} x {height} pixels, the limit is {MAX_PIXELS // 10**6} million")
    if max(width, height) > MAX_SIDE_PX:
        raise UnreadableError(f"{width} x {height} pixels, a side may have {MAX_SIDE_PX:,}")
    slow = {str(tile[0]) for tile in getattr(image, "tile", ())} & _SLOW_DECODERS
    if slow and width * height > _MAX_SLOW_PIXELS:
        raise UnreadableError(
            f"{width} x {height} pixels of {image.format} in a slow encoding, the limit is "
            f"{_MAX_SLOW_PIXELS // 10**6} million; save as PNG"
        )


def _check_scans(image: Image.Image) -> None:
    """Refuse a progressive JPEG with too many scans: each one passes over all pixels, even if it is empty."""
    file = getattr(image, "fp", None)
    if file is None or not image.info.get("progressive"):
        return
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    if scans * image.width * image.height > _MAX_SCANNED_PIXELS:
        raise UnreadableError(f"{image.width} x {image.height} pixels in {scans:,} scans; save as PNG")


@functools.cache
def _decoding_budget() -> ByteBudget:
    """What all threads together may use for decoding: an eighth of the memory that is available, at least 1 GiB."""
    return ByteBudget(max(2**30, available_host_memory_bytes() // 8))


def _is_gray(image: Image.Image) -> bool:
    return image.getbands()[0] in {"1", "L", "I", "F"}


def _to_array(image: Image.Image, channels: int, conversions: set[str], white: int = WHITE) -> np.ndarray:
    """Convert a decoded image to uint8 (H, W, channels), and add what was done to `conversions`.

    It goes by strips of rows, so that a large image is not held again in every step of the conversion.
    """
    width, height = image.size
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    rows = max(1, _PIXELS_PER_STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        flat = _to_eight_bits(strip, conversions, white).convert("RGB" if channels == 3 else "L")
        pixels[top : top + rows] = np.asarray(flat).reshape(-1, width, channels)
    return pixels


def _to_eight_bits(image: Image.Image, conversions: set[str], white: int) -> Image.Image:
    """Return a decoded image in mode L or RGB, and add what was done to `conversions`."""
    mode = image.mode
    if mode == "F":
        raise UnreadableError("floating-point pixels have no fixed range; save as 8 or 16 bits")
    if mode.startswith("I"):
        conversions.add("16-bit")
        return Image.fromarray(depth.to_eight_bits(_of_sixteen_bits(image), white))
    if mode.startswith("P"):
        conversions.add("palette")
    if image.has_transparency_data:
        conversions.add("alpha")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    if mode not in {"1", "L", "RGB", "P"}:
        conversions.add(mode)
    return image.convert("L" if mode in {"1", "L"} else "RGB")


def _of_sixteen_bits(image: Image.Image) -> np.ndarray:
    """Return the values of a decoded image of one channel, which may be stored in more than 16 bits."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > depth.WHITE:
        raise UnreadableError(f"pixels from {values.min()} to {values.max()}, beyond 16 bits; save as 8 bits")
    return values
