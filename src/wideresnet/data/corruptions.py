"""Corrupted images: noise, blur, weather and digital artifacts at five severities, a pure function of the image.

Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261), Section 4.1; for 32 px, ImageNet-C/create_c/make_cifar_c.py of
hendrycks/robustness at ca36008, which made CIFAR-10-C. These are ten of its fifteen corruptions, with its definitions
and constants. They are not its files: random numbers are drawn per image, and libraries round differently. Left out
are glass blur, zoom blur, snow, frost (which needs photographs of frost) and elastic transform.

For images whose shorter side is above 32 px, the radii of blurs grow with it; smaller images get those of 32 px.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from wideresnet.base.errors import UsageError
from wideresnet.base.format import nearest
from wideresnet.base.seeding import seed_of
from wideresnet.machine.cpu import usable_cpus

SEVERITIES = (1, 2, 3, 4, 5)

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "motion_blur"),
    "weather": ("fog", "brightness"),
    "digital": ("contrast", "pixelate", "jpeg_compression"),
}
"""Group -> its corruptions. Source: the paper, Figure 1 and Section 4.1."""

CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)

PUBLISHED_GROUPS = {
    **{group: names for group, names in GROUPS.items() if group == "noise"},
    "blur": (*GROUPS["blur"], "glass_blur", "zoom_blur"),
    "weather": (*GROUPS["weather"], "snow", "frost"),
    "digital": (*GROUPS["digital"], "elastic_transform"),
}
"""Group -> the corruptions of CIFAR-10-C that count, fifteen in all."""

PUBLISHED = tuple(name for names in PUBLISHED_GROUPS.values() for name in names)

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Corruptions of CIFAR-10-C for validation, which do not count. Source: the paper, appendix B."""

STRENGTHS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, 1 is white
    "shot_noise": (500, 250, 100, 75, 50),  # photons per white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values that become black or white
    "defocus_blur": (
        (0.3, 0.4),
        (0.4, 0.5),
        (0.5, 0.6),
        (1, 0.2),
        (1.5, 0.1),
    ),  # radius of a disk, sigma of its edge, px
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius and sigma of half a Gaussian, px
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # thickness, decay of its detail per octave
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to HSV's value, 1 is white
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the difference from the image's mean color
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # factor of the size
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
}
"""Corruption -> its strength at severity 1 to 5. Source: make_cifar_c.py, see above."""

PUBLISHED_SIDE_PX = 32

NEGLIGIBLE = 1e-4
"""Weights of a blur below this are left out; together they change a pixel by less than a level. Own choice."""

PIECE = 1 << 18
"""Values that a thread works on at once: their floats stay in the processor's cache. This package's choice."""

Change = Callable[[np.ndarray, Any, Sequence[np.random.Generator]], np.ndarray]


def corrupt(images: np.ndarray, corruption: str, severity: int, index: Sequence[int] | None = None) -> np.ndarray:
    """Corrupt images. What happens to an image depends on (corruption, severity, index, image) alone.

    Args:
        images: uint8 (N, H, W, C), C is 1 or 3; any size.
        corruption: one of `CORRUPTIONS`.
        severity: 1 to 5.
        index: of each image in its set, which decides its random numbers; None for 0..N-1.

    Returns:
        uint8 (N, H, W, C), new.

    Raises:
        UsageError: there is no such corruption or severity, or these are no such images.
    """
    if corruption not in STRENGTHS:
        raise UsageError(f"corruption={corruption!r}: {nearest(corruption, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UsageError(f"severity={severity}: must be 1 to {SEVERITIES[-1]}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UsageError(
            f"images={images.dtype} {images.shape}: must be uint8 (N, H, W, C), gray or RGB, to be corrupted"
        )
    change, strength = _CHANGES[corruption], STRENGTHS[corruption][severity - 1]
    places = range(len(images)) if index is None else index
    corrupted = np.empty_like(images)

    def work(start: int) -> None:
        part = slice(start, start + step)
        generators = [generator_of(corruption, severity, int(place)) for place in places[part]]
        pixels = change(images[part], strength, generators)
        corrupted[part] = pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0, 255)  # cut off, as published

    step = max(1, PIECE // max(1, images[:1].size))
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for _ in pool.map(work, range(0, len(images), step)):
            pass
    return corrupted


def generator_of(corruption: str, severity: int, index: int) -> np.random.Generator:
    """Return the random numbers of an image, so that neither its batch nor the other images matter.

    Args:
        corruption, severity: as for `corrupt`.
        index: of the image in its set.
    """
    return np.random.default_rng((seed_of("corruption", corruption, severity), index))


def _gaussian_noise(images: np.ndarray, std: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    shape = images.shape[1:]
    return images + 255 * std * np.stack([each.standard_normal(shape, dtype=np.float32) for each in generators])


def _shot_noise(images: np.ndarray, photons: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    counts = [each.poisson(image * (photons / 255)) for each, image in zip(generators, images, strict=True)]
    return np.stack(counts) * 255 / photons


def _impulse_noise(images: np.ndarray, share: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    draws = np.stack([each.random(images.shape[1:], dtype=np.float32) for each in generators])
    return np.where(draws < share, np.where(draws < share / 2, np.uint8(0), np.uint8(255)), images)


def _defocus_blur(images: np.ndarray, disk: tuple[float, float], _: Any) -> np.ndarray:
    """Filter with a disk whose edge is smooth; images are reflected at their borders, without repeating the last pixel.

    Source: `disk` in make_cifar_c.py, `GaussianBlur` and `filter2D` of OpenCV with their defaults.
    """
    height, width = images.shape[1:3]
    scale = _scale(images)
    kernel = defocus_kernel(disk[0] * scale, disk[1] * scale, math.ceil(scale))
    reach = len(kernel) // 2
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect").astype(np.float32)
    total = np.zeros(images.shape, np.float32)
    for (top, left), weight in np.ndenumerate(kernel.astype(np.float32)):
        if weight > NEGLIGIBLE:
            total += weight * padded[:, top : top + height, left : left + width]
    return total


def defocus_kernel(radius: float, sigma: float, window: int = 1) -> np.ndarray:
    """Return a disk whose edge is smoothed by a Gaussian.

    Args:
        radius: px.
        sigma: of the Gaussian, px.
        window: the Gaussian is cut off beyond this distance, px.

    Returns:
        float64 (2 r + 1, 2 r + 1), sum 1.
    """
    reach = math.floor(radius) + window
    row, column = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (row**2 + column**2 <= radius**2).astype(float)
    gaussian = np.exp(-(np.arange(-window, window + 1) ** 2) / (2 * sigma**2))
    for _ in ("columns", "rows"):
        kernel = np.stack([np.convolve(line, gaussian, mode="same") for line in kernel.T])
    return kernel / kernel.sum()


def _motion_blur(
    images: np.ndarray, blur: tuple[float, float], generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Average each pixel with those on one side of it on a line, by half a Gaussian; border pixels are repeated.

    Source: `MotionBlurImage` in magick/effect.c of ImageMagick.
    """
    num, height, width, _ = images.shape
    scale = _scale(images)
    steps = np.arange(2 * math.ceil(blur[0] * scale) + 1)
    weights = np.exp(-(steps**2) / (2 * (blur[1] * scale) ** 2)).astype(np.float32)
    weights = weights[weights > NEGLIGIBLE * weights.sum()] / weights.sum()
    steps, reach = steps[: len(weights)], len(weights)
    padded = np.pad(images, ((0, 0), (reach, reach), (0, reach), (0, 0)), mode="edge").astype(np.float32)
    angles = np.deg2rad([each.uniform(-45, 45) for each in generators])  # from left to right, up or down
    downs = reach + np.ceil(steps * np.sin(angles)[:, None] - 0.5).astype(int)
    rights = np.ceil(steps * np.cos(angles)[:, None] - 0.5).astype(int)
    total = np.zeros(images.shape, np.float32)
    for i in range(num):
        for weight, down, right in zip(weights, downs[i], rights[i], strict=True):
            total[i] += weight * padded[i, down : down + height, right : right + width]
    return total


def _fog(images: np.ndarray, fog: tuple[float, float], generators: Sequence[np.random.Generator]) -> np.ndarray:
    (thickness, decay), (height, width) = fog, images.shape[1:3]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    clouds = _plasma(np.stack([each.uniform(-1, 1, (side, side)) for each in generators]), decay)
    highest = images.max(axis=(1, 2, 3), keepdims=True) / 255
    return (images + 255 * thickness * clouds[:, :height, :width, None]) * (highest / (highest + thickness))


def _plasma(draws: np.ndarray, decay: float) -> np.ndarray:
    """Make clouds by the diamond-square algorithm, whose borders meet.

    Args:
        draws: float64 (N, S, S) from -1 to 1, one for each point; S is a power of two.
        decay: factor between the steps of detail.

    Returns:
        float64 (N, S, S), each from 0 to 1.

    Source: `plasma_fractal` in make_cifar_c.py.
    """
    side = draws.shape[1]
    maps, step, wibble = np.zeros_like(draws), side, 100.0
    while step >= 2:
        half, change = step // 2, wibble**2 * draws
        corners = maps[:, ::step, ::step]
        across = corners + np.roll(corners, -1, axis=1)
        centers = (across + np.roll(across, -1, axis=2)) / 4 + change[:, half::step, half::step]
        maps[:, half::step, half::step] = centers
        for axis in (
            1,
            2,
        ):  # the middles of horizontal edges have centers above and below, those of vertical ones beside
            around = centers + np.roll(centers, 1, axis=axis) + corners + np.roll(corners, -1, axis=3 - axis)
            middle = np.s_[:, ::step, half::step] if axis == 1 else np.s_[:, half::step, ::step]
            maps[middle] = around / 4 + change[middle]
        step, wibble = half, wibble / decay
    maps -= maps.min(axis=(1, 2), keepdims=True)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def _brightness(images: np.ndarray, more: float, _: Any) -> np.ndarray:
    """Add to HSV's value; at the same hue and saturation, all channels grow by the same factor."""
    value = images.max(axis=3, keepdims=True).astype(np.float64)
    brighter = np.minimum(value + 255 * more, 255)
    return np.where(value > 0, images * (brighter / np.maximum(value, 1)), brighter)


def _contrast(images: np.ndarray, factor: float, _: Any) -> np.ndarray:
    mean = images.mean(axis=(1, 2), keepdims=True)
    return (images - mean) * factor + mean


def _pixelate(images: np.ndarray, factor: float, _: Any) -> np.ndarray:
    height, width = images.shape[1:3]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))

    def change(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _by_pillow(images, change)


def _jpeg_compression(images: np.ndarray, quality: int, _: Any) -> np.ndarray:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _by_pillow(images, change)


def _by_pillow(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    is_gray = images.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if is_gray else image))) for image in images]
    return np.stack(changed).reshape(images.shape)


def _scale(images: np.ndarray) -> float:
    """By how much more pixels a blur goes than for images of 32 px."""
    return max(1.0, min(images.shape[1:3]) / PUBLISHED_SIDE_PX)


_CHANGES: dict[str, Change] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""Corruption -> the function from (images, strength, a generator per image) to pixels, 0..255 after clipping."""
