"""Corrupted images: each corruption is the published one, computed slowly for one image, and a pure function of it."""

from __future__ import annotations

import colorsys
import math
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import gaussian_blur, resize

from wideresnet.base.errors import UsageError
from wideresnet.data.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, STRENGTHS, corrupt, generator_of

PUBLISHED = {
    "gaussian_noise": [0.04, 0.06, .08, .09, .10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [.01, .02, .03, .05, .07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "fog": [(.2, 3), (.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [.05, .1, .15, .2, .3],
    "contrast": [.75, .5, .4, .3, 0.15],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
}  # fmt: skip
"""The lines `c = [...]` of make_cifar_c.py, hendrycks/robustness at ca36008."""


def make_images(num: int, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth colors with edges and some noise, as photographs have them; the last is black."""
    random = np.random.default_rng(height * width + channels)
    y, x = np.mgrid[0:height, 0:width]
    phases = random.uniform(0, 6, (2, num, 1, 1, channels))
    waves = np.sin(x[..., None] / 5 + phases[0]) + np.cos(y[..., None] / 4 + phases[1])
    right, down = random.integers(0, 12, (2, num, 1, 1, 1))
    waves += 0.8 * (((x[..., None] + right) // 6 + (y[..., None] + down) // 6) % 2) + random.normal(
        0, 0.1, (num, height, width, channels)
    )
    images = np.clip(50 * waves + 110, 0, 255).astype(np.uint8)
    images[-1] = 0
    return images


# The slow twins: one image, float64 (H, W, C) from 0 to 1, by a kept library or by loops over pixels.


def slow_gaussian_noise(x: np.ndarray, c: float, random: np.random.Generator) -> np.ndarray:
    return x + c * random.standard_normal(x.shape, dtype=np.float32)


def slow_shot_noise(x: np.ndarray, c: float, random: np.random.Generator) -> np.ndarray:
    return random.poisson(x * c) / c


def slow_impulse_noise(x: np.ndarray, c: float, random: np.random.Generator) -> np.ndarray:
    draws, changed = random.random(x.shape, dtype=np.float32), x.copy()
    changed[draws < c] = 1
    changed[draws < c / 2] = 0
    return changed


def slow_defocus_blur(x: np.ndarray, c: tuple[float, float], _: object) -> np.ndarray:
    row, column = np.mgrid[-8:9, -8:9]
    disk = (row**2 + column**2 <= c[0] ** 2).astype(float)
    kernel = gaussian_blur(torch.from_numpy(disk / disk.sum())[None], [3, 3], [c[1], c[1]])[0].numpy()
    return np.stack([ndimage.correlate(x[..., i], kernel, mode="mirror") for i in range(x.shape[2])], axis=2)


def slow_motion_blur(x: np.ndarray, c: tuple[int, float], random: np.random.Generator) -> np.ndarray:
    angle = math.radians(random.uniform(-45, 45))
    weights = [math.exp(-(step**2) / (2 * c[1] ** 2)) for step in range(2 * c[0] + 1)]
    (height, width), blurred = x.shape[:2], np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            for step, weight in enumerate(weights):
                down, right = math.ceil(step * math.sin(angle) - 0.5), math.ceil(step * math.cos(angle) - 0.5)
                pixel = x[min(max(row + down, 0), height - 1), min(column + right, width - 1)]
                blurred[row, column] += weight / sum(weights) * pixel
    return blurred


def slow_fog(x: np.ndarray, c: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    side: int = 2
    while side < max(x.shape):
        side *= 2
    draws, clouds = random.uniform(-1, 1, (side, side)), np.zeros((side, side))
    step: int = side
    wibble = 100.0

    def fill(points: Iterable[tuple[int, int]], neighbors: list[tuple[int, int]]) -> None:
        for row, column in points:
            around = [clouds[(row + down) % side, (column + right) % side] for down, right in neighbors]
            clouds[row, column] = sum(around) / 4 + wibble * wibble * draws[row, column]

    while step >= 2:
        half = step // 2
        ends, middles = range(0, side, step), range(half, side, step)
        straight = [(half, 0), (-half, 0), (0, half), (0, -half)]
        fill(
            ((row, column) for row in middles for column in middles),
            [(a, b) for a in (-half, half) for b in (-half, half)],
        )
        fill(((row, column) for row in ends for column in middles), straight)
        fill(((row, column) for row in middles for column in ends), straight)
        step, wibble = half, wibble / c[1]
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    return (x + c[0] * clouds[: x.shape[0], : x.shape[1], None]) * x.max() / (x.max() + c[0])


def slow_brightness(x: np.ndarray, c: float, _: object) -> np.ndarray:
    def brighter(pixel: np.ndarray) -> list[float]:
        if len(pixel) == 1:
            return [min(pixel[0] + c, 1)]
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return list(colorsys.hsv_to_rgb(hue, saturation, min(value + c, 1)))

    return np.array([[brighter(pixel) for pixel in row] for row in x])


def slow_contrast(x: np.ndarray, c: float, _: object) -> np.ndarray:
    return np.stack([(plane - plane.mean()) * c + plane.mean() for plane in np.moveaxis(x, 2, 0)], axis=2)


def pillow_image(x: np.ndarray) -> Image.Image:
    pixels = (255 * x).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if x.shape[2] == 1 else pixels)


def slow_pixelate(x: np.ndarray, c: float, _: object) -> np.ndarray:
    height, width, _ = x.shape
    image: Any = pillow_image(x)
    small = resize(image, [int(height * c), int(width * c)], v2.InterpolationMode.BOX)
    return np.asarray(resize(small, [height, width], v2.InterpolationMode.BOX)).reshape(x.shape) / 255


def slow_jpeg_compression(x: np.ndarray, c: int, _: object) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        pillow_image(x).save(f"{folder}/image.jpg", quality=c)
        with Image.open(f"{folder}/image.jpg") as image:
            return np.asarray(image).reshape(x.shape) / 255


SLOW: dict[str, Callable[..., np.ndarray]] = {name: globals()[f"slow_{name}"] for name in CORRUPTIONS}


@pytest.mark.parametrize("shape", [(32, 32, 3), (17, 30, 1)], ids=["32x32x3", "17x30x1"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_is_the_published_one(name: str, shape: tuple[int, int, int]) -> None:
    """Up to a level, since numbers next to a whole one may be cut off to either side."""
    images = make_images(4, *shape)
    for severity, strength in zip(SEVERITIES, PUBLISHED[name], strict=True):
        found = corrupt(images, name, severity)
        for place, image in enumerate(images):
            slow = SLOW[name](image / 255, strength, generator_of(name, severity, place))
            difference = np.abs(found[place].astype(int) - np.floor(255 * np.clip(slow, 0, 1) + 1e-6))
            assert difference.max() <= 1, (severity, place)


def test_the_constants_are_the_published_ones_of_all_four_groups() -> None:
    assert {name: list(strengths) for name, strengths in STRENGTHS.items()} == PUBLISHED
    assert list(GROUPS) == ["noise", "blur", "weather", "digital"]
    assert list(CORRUPTIONS) == [name for names in GROUPS.values() for name in names] == list(PUBLISHED)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (64, 48, 3)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_pixels_more(name: str, shape: tuple[int, int, int]) -> None:
    """Except motion blur at 3 and 4, which differ in a radius that their sigma leaves without effect."""
    images = make_images(40, *shape)
    distances = [np.abs(corrupt(images, name, s).astype(int) - images).mean() for s in SEVERITIES]
    if name == "motion_blur":
        assert distances.pop(3) == pytest.approx(distances[2], rel=0.1)
    assert distances == sorted(distances)
    assert distances[0] > 0.1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_whatever_its_batch(name: str) -> None:
    images = make_images(200, 20, 24, 3)  # two pieces of work
    whole = corrupt(images, name, 3)
    assert np.array_equal(whole, corrupt(images, name, 3))
    assert np.array_equal(whole[150:160], corrupt(images[150:160], name, 3, range(150, 160)))
    order = [199, 3, 77]
    assert np.array_equal(whole[order], corrupt(images[order], name, 3, order))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"])
def test_images_corruptions_and_severities_have_random_numbers_of_their_own(name: str) -> None:
    image = make_images(3, 16, 16, 3)[:1].repeat(2, axis=0)
    first, second = corrupt(image, name, 1)
    assert not np.array_equal(first, second)
    draws = [tuple(generator_of(*key).random(3)) for key in ((name, 1, 0), (name, 2, 0), (name, 1, 1), ("frost", 1, 0))]
    assert len(set(draws)) == 4


def test_nothing_else_changes() -> None:
    images, state = make_images(3, 9, 9, 3), np.random.get_state(legacy=True)
    before = images.copy()
    for name in CORRUPTIONS:
        corrupt(images, name, 5)
    assert np.array_equal(images, before)
    assert str(np.random.get_state(legacy=True)) == str(state)


SHAPES = [(2, 8, 8, 1), (3, 1, 1, 3), (2, 1, 7, 1), (2, 5, 3, 3), (1, 33, 70, 3), (0, 8, 8, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_gray_or_color_stays_what_it_is(name: str, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity)
        assert (corrupted.dtype, corrupted.shape) == (np.uint8, shape)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_and_white_do_not_wrap_around(name: str) -> None:
    for value in (0, 255):
        images = np.full((2, 32, 32, 3), value, np.uint8)
        change = np.abs(corrupt(images, name, 1).astype(int) - value)
        assert np.median(change) < 40, value


def test_noise_has_the_spread_that_it_should_have() -> None:
    gray = np.full((50, 32, 32, 3), 128, np.uint8)
    values = corrupt(gray, "gaussian_noise", 3) / 255
    assert values.std() == pytest.approx(0.08, rel=0.01)
    values = corrupt(gray, "shot_noise", 5) / 255
    assert values.std() == pytest.approx(math.sqrt(128 / 255 / 50), rel=0.01)
    values = corrupt(gray, "impulse_noise", 5)
    assert (values == 0).mean() == pytest.approx(0.035, rel=0.05)
    assert (values == 255).mean() == pytest.approx(0.035, rel=0.05)


@pytest.mark.parametrize("name", GROUPS["blur"])
def test_the_radii_of_blurs_grow_with_images_above_32_px(name: str) -> None:
    """A point becomes as many times wider as the image is."""

    def width(side: int) -> float:
        images = np.zeros((60, side, side, 1), np.uint8)
        images[:, side // 2, side // 2] = 255
        mean = corrupt(images, name, 5).astype(float).mean(axis=(0, 3))
        share, at = mean.sum(axis=0) / mean.sum(), np.arange(side)
        return math.sqrt((share * at**2).sum() - (share * at).sum() ** 2)

    assert width(16) == pytest.approx(width(32), rel=0.1)
    assert width(128) == pytest.approx(4 * width(32), rel=0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gausian_noise", 1), r"^corruption='gausian_noise': did you mean gaussian_noise\? \(one of "),
        (("fog", 0), r"^severity=0: must be 1 to 5$"),
        (("fog", 6), r"^severity=6: must be 1 to 5$"),
    ],
)
def test_a_mistake_gets_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        corrupt(np.zeros((1, 8, 8, 3), np.uint8), *arguments)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3))]
)
def test_images_of_another_kind_are_refused(images: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"must be uint8 \(N, H, W, C\), gray or RGB"):
        corrupt(images, "fog", 1)
