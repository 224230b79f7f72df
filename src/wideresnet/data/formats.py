"""What a file is by its first bytes, whatever its name says: formats that Pillow reads here, and what others are."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re

from PIL import features

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are read on every machine."""

ALWAYS_READ = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Their extensions."""

EXTENSIONS = ALWAYS_READ | {".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl"}
"""What image files are called, also those that may not be readable here: they are then named with the remedy."""

# Files of cameras that hold a small preview in a format that Pillow would read in place of the picture
RAW_EXTENSIONS = frozenset({".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"})

UNFINISHED_EXTENSIONS = frozenset({".part", ".partial", ".crdownload", ".download", ".opdownload", ".aria2", ".!ut"})

_NO_IMAGES = frozenset(
    {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".md", ".rst", ".pdf", ".doc", ".docx"}
    | {".db", ".ini", ".lnk", ".log", ".yaml", ".yml", ".toml", ".py", ".ipynb", ".sh", ".zip", ".gz", ".tar", ".7z"}
    | {".rar", ".npy", ".npz", ".mat", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".parquet", ".arrow", ".tmp", ".bak"}
    | {".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav", ".svg", ".psd", ".ai", ".eps", ".orig", ".old"}
)

START_BYTES = 64
"""How many bytes of a file tell what it is."""

_HEIF = rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"
_AVIF = rb".{4}ftypavi[fs]"
_JPEG_2000 = rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"

_READABLE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|BM|GIF8[79]a|II\*\x00|MM\x00\*|P[1-6]\s|"
    + b"|".join((_HEIF, _AVIF, _JPEG_2000)),
    re.DOTALL,
)

_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what)
    for pattern, what in (
        (_HEIF, "HEIC; pip install wideresnet[heic] reads it, or convert it to JPEG"),
        (_AVIF, "AVIF, which this Pillow does not read; update it, or convert the file to JPEG or PNG"),
        (_JPEG_2000, "JPEG 2000, which this Pillow does not read; convert it to JPEG or PNG"),
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL; convert it to JPEG or PNG"),
        (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|!--|head|body)",
         "an HTML page, probably of a failed download; download it again"),
        (rb"(\xef\xbb\xbf)?\s*(<\?xml|<svg)", "XML or SVG; convert it to PNG"),
        (rb"\s*[{\[]\s*[\"{\[]", "JSON, perhaps the message of a failed download; download it again"),
        (rb"\x1f\x8b", "compressed with gzip; unpack it first"),
        (rb"PK\x03\x04", "a zip archive; unpack it first"),
        (rb"BZh|\xfd7zXZ\x00|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "compressed; unpack it first"),
        (rb"%PDF", "a PDF; convert it to PNG"),
        (rb"8BPS", "a Photoshop file; export it as PNG"),
        (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video; extract its frames"),
        (rb"version https://git-lfs", "a pointer of Git LFS; download the file itself"),
        (rb"\x00\x05\x16\x07", "macOS's data about another file; remove it"),
        (rb"\x00{64}", "nothing but zeros, an unfinished download; download it again"),
    )
)  # fmt: skip


@functools.cache
def pillow_formats() -> tuple[str, ...]:
    """Return the formats that Pillow may try; its other readers are not exposed to files of unknown origin."""
    formats = [*FORMATS]
    formats += ["AVIF"] * bool(features.check("avif")) + ["JPEG2000"] * bool(features.check("jpg_2000"))
    if importlib.util.find_spec("pillow_heif") is not None:  # the extra `heic`
        importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False)
        formats.append("HEIF")
    return tuple(formats)


def may_be_image(start: bytes) -> bool:
    """Tell from its first bytes whether a file without a known extension is an image."""
    return _READABLE.match(start) is not None


def is_worth_a_look(suffix: str) -> bool:
    """Tell whether a file with this extension may be an image: it is neither an image's nor known as another one's."""
    suffix = suffix.lower()
    return suffix not in EXTENSIONS | RAW_EXTENSIONS | UNFINISHED_EXTENSIONS | _NO_IMAGES and not suffix.endswith("~")


def describe(start: bytes) -> str:
    """Say what a file is that Pillow does not read, by its first bytes."""
    for pattern, what in _OTHERS:
        if pattern.match(start):
            return f"not an image of a known format but {what}"
    return f"not an image ({', '.join(FORMATS)})"
