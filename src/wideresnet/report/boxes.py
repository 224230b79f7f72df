"""Boxes with classes and scores, drawn into images by Pillow."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wideresnet.base.format import printable
from wideresnet.report import html
from wideresnet.report.figures import SERIES_COLORS

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

MAX_LABEL = 24
"""Characters of a class name in a picture."""


@dataclass(frozen=True)
class Box:
    """What is drawn.

    Attributes:
        bbox: left, top, width, height, px.
        name: of the class.
        score: 0..1; None draws none.
        color: "#rrggbb"; "" for one that belongs to the name.
    """

    bbox: tuple[float, ...]
    name: str
    score: float | None = None
    color: str = ""


def draw_boxes(image: np.ndarray, boxes: Sequence[Box], *, max_side: int = 800, width: int | None = None) -> np.ndarray:
    """Draw boxes into a copy of an image, the last one first, so that the first is on top.

    Args:
        image: uint8 (H, W, 3).
        boxes: in px of that image.
        max_side: a larger image is scaled down to this, px.
        width: of the lines, px; None for one that suits the picture.

    Returns:
        uint8 (H', W', 3).
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = min(1.0, max_side / max(picture.size))
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    width = width or max(1, round(max(picture.size) / 320))
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 48)))
    draw = ImageDraw.Draw(picture)
    for box in reversed(boxes):
        left, top, wide, high = (value * scale for value in box.bbox)
        right, bottom = min(left + wide, picture.width - 1), min(top + high, picture.height - 1)
        left, top = max(left, 0.0), max(top, 0.0)
        if right < left or bottom < top:
            continue
        color = box.color or color_of(box.name)
        draw.rectangle((left, top, right, bottom), outline=color, width=width)
        text = printable(box.name)[:MAX_LABEL] + ("" if box.score is None else f" {box.score:.2f}")
        if text:
            _label(draw, text, (left, top), color, font)
    return np.asarray(picture)


def color_of(name: str) -> str:
    """Return the color of a class: the same in every picture."""
    return SERIES_COLORS[zlib.crc32(name.encode("utf-8", "surrogateescape")) % len(SERIES_COLORS)]


def _label(
    draw: ImageDraw.ImageDraw, text: str, place: tuple[float, float], color: str, font: Font
) -> None:  # fmt: skip
    """Write white text on the color of its box, above the box if there is room."""
    text = text.encode("ascii", "replace").decode() if not isinstance(font, ImageFont.FreeTypeFont) else text
    _, _, wide, high = draw.textbbox((0, 0), text, font=font)
    left, top = place
    top = top - high - 2 if top >= high + 2 else top
    draw.rectangle((left, top, left + wide + 4, top + high + 2), fill=color)
    draw.text((left + 2, top), text, fill="#ffffff", font=font)


def image_to_jpeg(image: np.ndarray) -> bytes:
    """Convert a photograph, uint8 (H, W, 3), to a JPEG file of the same size, which is much smaller than PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def wide_pictures(pictures: Iterable[tuple[np.ndarray, str, str]]) -> str:
    """Write large images side by side, as JPEG, each with a line in bold and small text below.

    Args:
        pictures: uint8 (H, W, 3), the line, and the text.
    """
    figures = (
        f'<figure><img alt="{html.escape(line)}, {html.escape(text)}" '
        f'src="{html.data_uri(image_to_jpeg(image), "image/jpeg")}">'
        f"<figcaption><b>{html.escape(line)}</b><br><small>{html.escape(text)}</small></figcaption></figure>"
        for image, line, text in pictures
    )
    return f'<div class="pictures">{"".join(figures)}</div>'
