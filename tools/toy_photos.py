"""Draw a folder of photographs as people have them, for docs/your-own-images.md: five classes, and what goes wrong.

python tools/toy_photos.py FOLDER NEW

FOLDER gets a subfolder for each class, NEW images that are in none. Every image is drawn from its number, so they are
the same everywhere. Among 200 images of FOLDER are one that is cut off, one that is in two classes, one in the wrong
class, one that lies on its side, and there are files that are no images.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

PER_CLASS = 40
"""Images of each class; at least 8, since some are told by their number."""

NEW_PER_CLASS = 4

CANVAS_PX = 480
"""Side in which an object is drawn, before it is turned and scaled."""

Color = tuple[int, int, int]


def cup(draw: ImageDraw.ImageDraw, color: Color, detail: Color) -> None:
    """A cup with a handle."""
    draw.ellipse((270, 180, 400, 330), outline=color, width=34)
    draw.polygon([(110, 140), (330, 140), (300, 370), (140, 370)], fill=color)
    draw.ellipse((110, 118, 330, 166), fill=detail)


def key(draw: ImageDraw.ImageDraw, color: Color, detail: Color) -> None:
    """A key with two teeth."""
    draw.rectangle((200, 222, 420, 258), fill=color)
    draw.rectangle((340, 258, 366, 310), fill=color)
    draw.rectangle((392, 258, 418, 326), fill=color)
    draw.ellipse((60, 150, 240, 330), fill=color)
    draw.ellipse((96, 206, 152, 262), fill=detail)


def leaf(draw: ImageDraw.ImageDraw, color: Color, detail: Color) -> None:
    """A leaf with its veins."""
    side = [(240 + 110 * math.sin(math.pi * t / 20), 60 + 17 * t) for t in range(21)]
    other = [(480 - x, y) for x, y in reversed(side)]
    draw.polygon([*side, *other], fill=color)
    draw.line((240, 80, 240, 450), fill=detail, width=10)
    for y in (170, 240, 310):
        draw.line([(180, y - 40), (240, y), (300, y - 40)], fill=detail, width=8)


def star(draw: ImageDraw.ImageDraw, color: Color, detail: Color) -> None:
    """A star with five points."""
    corners = []
    for number in range(10):
        radius, angle = (190, 80)[number % 2], math.pi * number / 5
        corners.append((240 + radius * math.sin(angle), 240 - radius * math.cos(angle)))
    draw.polygon(corners, fill=color, outline=detail, width=9)


def umbrella(draw: ImageDraw.ImageDraw, color: Color, detail: Color) -> None:
    """An open umbrella."""
    draw.line((240, 80, 240, 390), fill=detail, width=14)
    draw.arc((240, 350, 310, 430), 0, 180, fill=detail, width=14)
    draw.pieslice((60, 70, 420, 430), 180, 360, fill=color)
    for x in (60, 180, 300):
        draw.ellipse((x, 228, x + 120, 272), fill=detail)


CLASSES: dict[str, Callable[[ImageDraw.ImageDraw, Color, Color], None]] = {
    "cup": cup, "key": key, "leaf": leaf, "star": star, "umbrella": umbrella,
}  # fmt: skip


def photo(name: str, number: int) -> Image.Image:
    """Draw one image of a class: its colors, place, angle, size and background come from the number."""
    chance = random.Random(f"{name} {number}")

    def color() -> Color:
        return chance.randrange(30, 226), chance.randrange(30, 226), chance.randrange(30, 226)

    width, height = chance.choice([(640, 480), (480, 640), (600, 600), (800, 450)])
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image = Image.blend(image, Image.new("RGB", (width, height), color()), 0.75)
    draw = ImageDraw.Draw(image)
    for _ in range(9):  # what else lies around
        x, y, size = chance.randrange(width), chance.randrange(height), chance.randrange(20, 160)
        draw.ellipse((x, y, x + size, y + size * chance.uniform(0.3, 1)), fill=color())
    image = image.filter(ImageFilter.GaussianBlur(chance.uniform(2, 12)))
    thing = Image.new("RGBA", (CANVAS_PX, CANVAS_PX))
    CLASSES[name](ImageDraw.Draw(thing), color(), color())
    side = round(min(width, height) * chance.uniform(0.55, 0.95))
    thing = thing.rotate(chance.uniform(-40, 40), Image.Resampling.BICUBIC).resize((side, side))
    image.paste(thing, (chance.randrange(width - side + 1), chance.randrange(height - side + 1)), thing)
    noise = Image.frombytes("L", (width, height), chance.randbytes(width * height)).convert("RGB")
    return Image.blend(image, noise, 0.08)


def make(folder: Path, per_class: int = PER_CLASS) -> None:
    """Draw the folder of classes, and add what people's folders also hold."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            photo(name, number).save(folder / name / f"IMG_{1000 + number}.jpg", quality=88)
    whole = (folder / "key" / "IMG_1007.jpg").read_bytes()
    (folder / "key" / "IMG_1007.jpg").write_bytes(whole[: len(whole) // 2])  # a card that was pulled out
    (folder / "cup" / "copy of IMG_1003.jpg").write_bytes((folder / "star" / "IMG_1003.jpg").read_bytes())
    photo("star", per_class + 1).save(folder / "leaf" / "IMG_1004.jpg", quality=88)  # in the wrong folder
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn the image before showing it
    photo("umbrella", 5).rotate(90, expand=True).save(folder / "umbrella" / "IMG_1005.jpg", quality=88, exif=exif)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "cup" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "notes.txt").write_text("cups are from Sunday\n")


def make_new(folder: Path) -> None:
    """Draw images that are in no class folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, number) in enumerate((name, n) for n in range(NEW_PER_CLASS) for name in CLASSES):
        photo(name, 500 + number).save(folder / f"IMG_{2000 + place}.jpg", quality=88)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/toy_photos.py FOLDER NEW")
    make(Path(sys.argv[1]))
    make_new(Path(sys.argv[2]))
