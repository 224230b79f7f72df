"""A contact sheet: classified images as a page of thumbnails, each with its class, probability and file."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wideresnet.base.arithmetic import ceil_div
from wideresnet.report.figures import LIGHT, one_line

COLUMNS, ROWS = 8, 8
"""Of a page; more images go on further pages."""

SIDE_PX = 176
"""Longer side of a thumbnail."""

_GAP_PX, _LINE_PX, _TITLE_PX = 12, 20, 44
_CELL_PX = (SIDE_PX + _GAP_PX, SIDE_PX + 2 * _LINE_PX + 2 * _GAP_PX)  # width, height


@dataclass(frozen=True)
class Thumbnail:
    """An image on a sheet.

    Attributes:
        pixels: uint8 (H, W, C), C is 1 or 3, of any size; None for a file that cannot be read.
        line: in bold, such as its class and probability.
        name: of its file.
    """

    pixels: np.ndarray | None
    line: str
    name: str


def draw_sheet(thumbnails: Sequence[Thumbnail], title: str) -> bytes:
    """Draw one page.

    Every text is drawn in one line, shortened to fit, without characters that no font has a picture of.

    Args:
        thumbnails: 1 to `COLUMNS * ROWS`.
        title: above.

    Returns:
        A PNG file.
    """
    columns = min(COLUMNS, len(thumbnails))
    width = max(columns, 4) * _CELL_PX[0] + _GAP_PX
    height = ceil_div(len(thumbnails), columns) * _CELL_PX[1] + _GAP_PX + _TITLE_PX
    sheet = Image.new("RGB", (width, height), LIGHT.background)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, _GAP_PX), _fitting(title, _font(18), width - 2 * _GAP_PX), LIGHT.ink, font=_font(18))
    for place, thumbnail in enumerate(thumbnails):
        row, column = divmod(place, columns)
        x, y = column * _CELL_PX[0] + _GAP_PX, row * _CELL_PX[1] + _GAP_PX + _TITLE_PX
        if thumbnail.pixels is None:
            draw.rectangle((x, y, x + SIDE_PX - 1, y + SIDE_PX - 1), outline=LIGHT.muted)
        else:
            small = shrink(thumbnail.pixels)
            sheet.paste(small, (x + (SIDE_PX - small.width) // 2, y + SIDE_PX - small.height))
        for number, (text, font, color) in enumerate(
            ((thumbnail.line, _font(14, bold=True), LIGHT.ink), (thumbnail.name, _font(12), LIGHT.muted))
        ):
            at = (x, y + SIDE_PX + 6 + number * _LINE_PX)
            draw.text(at, _fitting(text, font, SIDE_PX, keep_end=number == 1), color, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def shrink(pixels: np.ndarray) -> Image.Image:
    """Scale an image, uint8 (H, W, C), so that it fits into a thumbnail: a small one up, its pixels as squares."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    if (factor := SIDE_PX // max(picture.size)) > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return picture


@functools.cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: it has more letters than Pillow's own."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # no shaping of letters by another library, which not every build of Pillow has
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size, layout_engine=ImageFont.Layout.BASIC
    )


def _fitting(text: str, font: ImageFont.FreeTypeFont, width_px: int, *, keep_end: bool = False) -> str:
    """Shorten a text to a width; of a file the end of the name, which tells it from its neighbors, stays."""
    text = one_line(text)
    text = text[-300:] if keep_end else text[:300]
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"…{text}") > width_px:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"
