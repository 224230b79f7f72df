from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wideresnet.base.errors import DataError
from wideresnet.data.images import MAX_PIXELS, decode, fit_to_size, read_header


def _saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_lossless_color_image_decodes_to_its_own_pixels(
    image_format: str, pixels: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    original = pixels(5, 7)
    options = {"lossless": True} if image_format == "WEBP" else {}
    decoded, conversions = decode(encoded(original, image_format, **options))
    np.testing.assert_array_equal(decoded, original)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert conversions == frozenset()


def test_a_path_decodes_as_its_bytes(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels(16, 16)).save(path)
    np.testing.assert_array_equal(decode(path)[0], decode(path.read_bytes())[0])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(image_format: str) -> None:
    values = np.array([[0, 128, 257], [1000, 32768, 65535]], dtype=np.uint16)
    decoded, conversions = decode(_saved(Image.fromarray(values), image_format), channels=1)
    np.testing.assert_array_equal(decoded[..., 0], np.rint(values / 257))
    assert conversions == {"16-bit"}


def test_sixteen_bit_color_is_reported_and_scaled() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 257 * 7, 65535, 65535, 0, 257 * 200) for _ in range(2))
    body = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in body
    )
    decoded, conversions = decode(content)
    np.testing.assert_array_equal(decoded[0], [[0, 7, 255], [255, 0, 200]])
    assert conversions == {"16-bit"}


def test_integers_beyond_sixteen_bits_are_refused_with_their_range() -> None:
    wide = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(DataError, match="pixels from 0 to 70000"):
        decode(_saved(wide, "TIFF"))


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="floating-point"):
        decode(_saved(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"))


def test_grayscale_becomes_three_equal_channels(pixels: Callable[..., np.ndarray]) -> None:
    gray = pixels(4, 5, 1)
    decoded, conversions = decode(_saved(Image.fromarray(gray[..., 0])))
    np.testing.assert_array_equal(decoded, np.repeat(gray, 3, axis=2))
    assert conversions == {"grayscale"}


def test_one_channel_gives_gray_as_it_is_and_color_as_luma(pixels: Callable[..., np.ndarray]) -> None:
    gray, color = pixels(4, 5, 1), pixels(4, 5)
    kept, nothing = decode(_saved(Image.fromarray(gray[..., 0])), channels=1)
    np.testing.assert_array_equal(kept, gray)
    assert nothing == frozenset()
    luma, conversions = decode(_saved(Image.fromarray(color)), channels=1)
    assert luma.shape == (4, 5, 1)
    np.testing.assert_allclose(luma[..., 0], color @ [0.299, 0.587, 0.114], atol=1)
    assert conversions == {"color"}


def test_cmyk_becomes_rgb() -> None:
    decoded, conversions = decode(_saved(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"))
    np.testing.assert_array_equal(decoded, np.broadcast_to([255, 0, 0], (2, 3, 3)))
    assert conversions == {"CMYK"}


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_palette_is_looked_up(image_format: str) -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    decoded, conversions = decode(_saved(image, image_format))
    np.testing.assert_array_equal(decoded, np.broadcast_to([10, 20, 30], (2, 3, 3)))
    assert conversions == {"palette"}


@pytest.mark.parametrize(("mode", "clear"), [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0))])
def test_transparent_pixels_turn_white(mode: str, clear: tuple[int, ...]) -> None:
    decoded, conversions = decode(_saved(Image.new(mode, (3, 2), clear)))
    assert (decoded == 255).all()
    assert "alpha" in conversions


def test_a_transparent_palette_color_turns_white() -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    decoded, conversions = decode(_saved(image, transparency=1))
    assert (decoded == 255).all()
    assert conversions == {"alpha", "palette"}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_turns_the_image_upright(
    image_format: str, orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _saved(Image.fromarray(stored), image_format, exif=exif)
    decoded, conversions = decode(content)
    np.testing.assert_allclose(decoded, upright(stored), atol=8)
    assert conversions == ({"EXIF rotation"} if orientation > 1 else set())
    header = read_header(content)
    assert (header.height, header.width) == decoded.shape[:2]


def test_only_the_first_frame_of_several_is_kept() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    decoded, conversions = decode(_saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (decoded == 0).all()
    assert "first frame" in conversions


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zero.png", b"", "empty file"),
        ("text.png", b"these are not pixels", "not an image"),
        ("pdf.png", b"%PDF-1.4 ...", "but a PDF; convert it"),
        ("phone.jpg", b"\x00\x00\x00\x18ftypheic....", "but HEIC; pip install wideresnet"),
        ("page.jpg", b"\n<!DOCTYPE html><html>", "but an HTML page, probably of a failed download"),
        ("packed.jpg", b"\x1f\x8b\x08\x00", "but compressed with gzip; unpack it first"),
    ],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        decode(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_truncated_image_is_named_and_refused(
    tmp_path: Path, image_format: str, pixels: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    content = encoded(pixels(64, 64), image_format)
    path = tmp_path / "cut"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=re.escape(str(path))):
        decode(path)


@pytest.mark.parametrize("side", [8001, 9600, 60_000])  # Pillow itself warns from 9460 and refuses from 13378
def test_a_decompression_bomb_is_refused_on_its_header(bomb: Callable[[int, int], bytes], side: int) -> None:
    with pytest.raises(DataError, match="pixels, the limit is 64 million"):
        decode(bomb(side, side))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(DataError, match="not a file"):
        decode(tmp_path)


def test_an_image_of_exactly_the_limit_passes_the_header_check(bomb: Callable[[int, int], bytes]) -> None:
    assert MAX_PIXELS == 64_000_000
    assert read_header(bomb(8000, 8000)).width == 8000


@settings(max_examples=60, deadline=None)
@given(
    position=st.integers(0, 10_000),
    value=st.integers(0, 255),
    image_format=st.sampled_from(["PNG", "JPEG", "GIF"]),
)
def test_a_damaged_byte_gives_pixels_or_one_line(position: int, value: int, image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    content = bytearray(_saved(Image.fromarray(noise), image_format))
    content[position % len(content)] = value
    try:
        decoded, _ = decode(bytes(content))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert decoded.ndim == 3


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    size=st.one_of(st.integers(1, 30), st.tuples(st.integers(1, 30), st.integers(1, 30))),
)
def test_fitting_gives_the_size_asked_for_and_keeps_a_flat_image_flat(
    height: int, width: int, channels: int, size: int | tuple[int, int]
) -> None:
    fitted = fit_to_size(np.full((height, width, channels), 77, dtype=np.uint8), size)
    assert fitted.shape == (*((size, size) if isinstance(size, int) else size), channels)
    assert (fitted == 77).all()


def test_fitting_crops_the_center_and_averages_when_shrinking() -> None:
    image = np.zeros((4, 12, 1), dtype=np.uint8)
    image[:, 4:8] = 200  # the center square
    image[:, 5::2] += 40
    np.testing.assert_array_equal(fit_to_size(image, 4), image[:, 4:8])
    stripes = np.tile(np.array([0, 255], dtype=np.uint8)[None, :, None], (64, 32, 1))
    assert np.ptp(fit_to_size(stripes, 8)[:, 1:-1].astype(int)) <= 2  # without antialiasing: 0 or 255
