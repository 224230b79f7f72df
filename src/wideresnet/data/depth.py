"""Images of 16 bits: cameras and microscopes store 10, 12 or 14 bits in them, so the used range is found over a set."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

WHITE = 65_535
"""The largest value of 16 bits."""

_STRETCHED_FORMATS = ("PNG", "TIFF")  # PPM and JPEG 2000 say how many bits they use, and Pillow obeys


class UnreadableError(ValueError):
    """An image cannot be used; the message gives the reason without the image's name."""


def is_deep(image: Image.Image) -> bool:
    """Tell whether an opened image has 16 bits a channel, whose used range the file does not tell."""
    return image.format in _STRETCHED_FORMATS and (image.mode.startswith("I") or ";16" in raw_modes(image))


def raw_modes(image: Image.Image) -> str:
    """Return how the pixels of an opened image are stored, as text; it contains ";16" for 16 bits."""
    return str(getattr(image, "tile", ""))


def loses_bits(image: Image.Image) -> bool:
    """Tell whether Pillow keeps only the upper eight bits of an opened image: 16 bits in color, or with transparency.

    Pillow shows that only in the raw mode of its tiles.
    """
    return is_deep(image) and not image.mode.startswith("I")


def white_of(peaks: Iterable[int]) -> int | None:
    """Return the value that becomes 255: the largest of 8, 9... or 16 bits, whichever suffices for a set.

    Args:
        peaks: the largest value of each 16-bit image.

    Returns:
        255, 511... 65535; None without any image, 65535 if all are black.
    """
    peak = max(peaks, default=None)
    return None if peak is None else 2 ** max(8, int(peak).bit_length()) - 1 if peak else WHITE


def to_eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Scale values 0..white to uint8 0..255; larger ones become 255."""
    return np.rint(np.minimum(values, white) * (255 / white)).astype(np.uint8)


def peak_of_color(image: Image.Image, content: bytes) -> int:
    """Return the largest value of a 16-bit color image.

    Args:
        image: as Pillow has decoded it, with the upper eight bits.
        content: its file.
    """
    if image.format == "PNG":
        pixels = _decode_png(content)
        return int((pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels).max())
    upper = max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band != "A")
    return 256 * upper + 255


def stretch(content: bytes, image_format: str, white: int, conversions: set[str]) -> Image.Image:
    """Decode a 16-bit color image whose values end at `white`, as 8 bits in mode L or RGB.

    Raises:
        UnreadableError: it is a TIFF, of which Pillow keeps only the upper bits.
    """
    if image_format != "PNG":
        raise UnreadableError(
            f"16-bit color of which only 0..{white} is used, and the lower bits are lost in {image_format}; "
            "save as PNG or as 8 bits"
        )
    pixels = _decode_png(content)
    flat = to_eight_bits(pixels, white)
    if pixels.shape[2] in (2, 4):
        conversions.add("alpha")
        alpha = pixels[..., -1:].astype(np.float32) / WHITE
        flat = np.rint(255 + alpha * (flat[..., :-1].astype(np.float32) - 255)).astype(np.uint8)
    return Image.fromarray(flat[..., 0] if flat.shape[2] == 1 else flat)


def _decode_png(content: bytes) -> np.ndarray:
    """Decode a PNG of 16 bits completely, uint16 (H, W, C), which Pillow cannot."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    with io.BytesIO(content) as file, Image.open(file, formats=("PNG",)) as image:
        image.verify()  # checksums of all chunks
    coded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_png(coded, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
