"""Fast decoding returns the readers' pixels, and evaluation scales and crops as torchvision does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from imagenet_like import encoded
from wideresnet.data.feeds import decoder
from wideresnet.data.feeds.decoder import decode_array, decode_tensor, fitted
from wideresnet.data.images import UnreadableError, decode_quietly, plain_jpeg, silent_pillow


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """As in every place that decodes; torchvision warns that its decoders will be moved to another package."""
    with silent_pillow():
        yield


@pytest.mark.parametrize("seed", range(24))
def test_every_image_has_the_readers_pixels(seed: int, tmp_path: Path) -> None:
    content = encoded(seed, kind="PNG" if seed % 7 == 6 else "JPEG")
    path = tmp_path / "image"
    path.write_bytes(content)
    expected = decode_quietly(content, 3)[0]
    np.testing.assert_array_equal(decode_array(content, 3), expected)
    np.testing.assert_array_equal(decode_array(path, 3), expected)
    np.testing.assert_array_equal(decode_tensor(content, 3).permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(decode_array(content, 1), decode_quietly(content, 1)[0])


def test_ordinary_jpegs_take_the_fast_way() -> None:
    assert decoder._same_decoder()
    assert plain_jpeg(encoded(1)) is not None
    assert plain_jpeg(encoded(10)) is None  # gray
    assert plain_jpeg(encoded(1, kind="PNG")) is None


def test_a_rotated_jpeg_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(path, exif=exif)
    assert plain_jpeg(path) is None
    assert decode_array(path, 3).shape == (16, 8, 3)


@pytest.mark.parametrize("length", [0, 100, 700])
def test_a_truncated_jpeg_is_refused(length: int) -> None:
    with pytest.raises(UnreadableError):
        decode_array(encoded(1)[:length], 3)


@pytest.mark.parametrize(("height", "width"), [(300, 401), (401, 300), (64, 64), (65, 399), (256, 256)])
def test_evaluation_scales_the_shorter_side_and_crops_the_center_as_torchvision(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = v2.Compose([v2.Resize(64), v2.CenterCrop(56)])(Image.fromarray(pixels))
    np.testing.assert_array_equal(fitted(pixels, (56, 56), 64), np.asarray(theirs))
    assert fitted(pixels[..., :1], (56, 56), 64).shape == (56, 56, 1)
