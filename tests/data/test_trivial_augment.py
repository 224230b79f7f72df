"""Every operation on a whole batch is that of torchvision's TrivialAugmentWide, image by image."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide

from wideresnet.data.trivial_augment import NAMES, NUM_LEVELS, SIGNED, Operations, draw_operations, trivial_augment

THEIR_NAMES = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "shift_x": "TranslateX", "shift_y": "TranslateY",
    "rotate": "Rotate", "brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip
MOVES = ("shear_x", "shear_y", "shift_x", "shift_y", "rotate")
BLENDS = ("brightness", "color", "contrast", "sharpness")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


def their_strengths(name: str) -> list[float]:
    """The magnitudes that torchvision may draw, 0 for an operation that has none."""
    levels, signed = TrivialAugmentWide._AUGMENTATION_SPACE[THEIR_NAMES[name]]
    values = levels(NUM_LEVELS, 32, 32)
    found = [0.0] if values is None else [float(value) for value in values]
    return [sign * value for value in found for sign in (1, -1)] if signed else found


def slow(image: Tensor, name: str, strength: float) -> Tensor:
    """One image (H, W, C), by torchvision."""
    changed: Any = TrivialAugmentWide()._apply_image_or_video_transform(
        image.permute(2, 0, 1).contiguous(), THEIR_NAMES[name], strength, InterpolationMode.NEAREST, {type(image): None}
    )
    return changed.permute(1, 2, 0)


def make_images(num: int, height: int, width: int, channels: int) -> Tensor:
    """Noise, smooth colors, few levels, and one constant image."""
    generator = torch.Generator().manual_seed(height * width + channels)
    noise = torch.randint(0, 256, (num, height, width, channels), generator=generator)
    smooth = torch.arange(height)[:, None, None] * 3 + torch.arange(width)[:, None] * 2 + 40
    images = torch.where(torch.arange(num)[:, None, None, None] % 2 == 0, noise, (smooth + noise // 32).clamp(max=255))
    images[2::5] = images[2::5] // 64 * 60 + 20
    images[-1] = 77
    return images.to(torch.uint8)


def is_tie(name: str, strength: float, height: int, width: int) -> Tensor:
    """The pixels that come from a point in the middle between two (H, W), by geometry in float64."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in (height, width)), indexing="ij")
    if name == "shear_x":
        x = x + strength * (y + 0.5)
    elif name == "shear_y":
        y = y + strength * (x + 0.5)
    elif name == "rotate":
        a, dx, dy = math.radians(strength), x - (width - 1) / 2, y - (height - 1) / 2
        x = math.cos(a) * dx - math.sin(a) * dy + (width - 1) / 2
        y = math.sin(a) * dx + math.cos(a) * dy + (height - 1) / 2
    return (((x - x.floor() - 0.5).abs() < 1e-4) | ((y - y.floor() - 0.5).abs() < 1e-4))[..., None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (8, 8, 1), (9, 14, 3), (2, 2, 3), (1, 5, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_at_each_strength_is_torchvisions(
    name: str, height: int, width: int, channels: int, device: str
) -> None:
    """Equal pixels, with two exceptions that rounding leaves open.

    Blending computes a * x + b * y in float32 and cuts the fraction off: with a fused multiply-add, which PyTorch takes
    or not depending on the memory layout, a result next to a whole number may fall to either side. One level then.
    Moving takes the nearest pixel: exactly in the middle between two, the last bit of the coordinates decides.
    """
    strengths = their_strengths(name)
    images = make_images(len(strengths), height, width, channels)
    operations = Operations(torch.full((len(images),), NAMES.index(name)), torch.tensor(strengths, dtype=torch.float64))
    if name in ("shift_x", "shift_y"):
        operations = Operations(operations.number, operations.strength.trunc())  # as torchvision's int()
    before = images.clone()
    found = trivial_augment(images.to(device), operations).cpu()
    assert torch.equal(images, before)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    for image, strength, result in zip(images, strengths, found, strict=True):
        expected = slow(image, name, strength)
        difference = (result.int() - expected.int()).abs()
        if name in MOVES:
            difference = difference * ~is_tie(name, strength, height, width)
        allowed = 1 if name in BLENDS else 0
        assert int(difference.max()) <= allowed, (strength, int(difference.max()))
        if name in BLENDS:
            assert float((difference > 0).float().mean()) < 0.15, strength


@pytest.mark.parametrize("name", NAMES)
def test_the_strengths_are_torchvisions(name: str) -> None:
    operations = draw_operations(0, 0, 100_000)
    drawn = set(operations.strength[operations.number == NAMES.index(name)].abs().tolist())
    expected = {abs(strength) for strength in their_strengths(name)}
    if name in ("shift_x", "shift_y"):
        expected = {float(int(strength)) for strength in expected}
    assert drawn == expected
    signed = TrivialAugmentWide._AUGMENTATION_SPACE[THEIR_NAMES[name]][1]
    assert (name in SIGNED) == signed


def test_the_space_is_torchvisions() -> None:
    assert [THEIR_NAMES[name] for name in NAMES] == list(TrivialAugmentWide._AUGMENTATION_SPACE)


def test_operations_strengths_and_signs_are_uniform() -> None:
    num = 140_000
    operations = draw_operations(3, 1, num)
    counts = operations.number.bincount(minlength=14)
    assert float(((counts - num / 14) ** 2 / (num / 14)).sum()) < 45  # chi-squared, 13 degrees of freedom: p < 1e-4
    rotations = operations.strength[operations.number == NAMES.index("rotate")]
    levels = (rotations.abs() / 4.5).round().long().bincount(minlength=31)
    expected = len(rotations) / 31
    assert float(((levels - expected) ** 2 / expected).sum()) < 70  # 30 degrees of freedom
    moved = rotations[rotations != 0]
    assert abs(int((moved < 0).sum()) - len(moved) / 2) < 4 * (len(moved) / 4) ** 0.5


def test_draws_are_a_function_of_seed_and_epoch_and_leave_the_callers_random_state() -> None:
    before = torch.get_rng_state()
    first, again = draw_operations(5, 2, 500), draw_operations(5, 2, 500)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.number, again.number)
    assert torch.equal(first.strength, again.strength)
    for other in (draw_operations(5, 3, 500), draw_operations(6, 2, 500)):
        assert not torch.equal(first.number, other.number)


def test_a_mixed_batch_is_image_by_image_and_does_not_depend_on_the_position_in_it() -> None:
    images, operations = make_images(64, 16, 12, 3), draw_operations(0, 0, 64)
    whole = trivial_augment(images, operations)
    for i in range(64):
        assert torch.equal(trivial_augment(images[i : i + 1], operations[i : i + 1])[0], whole[i])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = Operations(operations.number[order], operations.strength[order])
    assert torch.equal(trivial_augment(images[order], shuffled), whole[order])
    assert len(trivial_augment(images[:0], operations[0:0])) == 0
