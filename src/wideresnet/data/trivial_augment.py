"""TrivialAugmentWide: one random operation of random strength per image, for a whole batch at once on its device.

Source: Mueller & Hutter 2021 (arXiv 2103.10158), Algorithm 1 with the "wide" space, as in torchvision's
`transforms.v2.TrivialAugmentWide` on uint8 tensors: nearest pixels, black where there is none. That is the slow twin,
image by image, in `tests/data/test_trivial_augment.py`. A shift is by up to 32 pixels whatever the size of the images.

A batch is grouped by operation. Draws and groups stay on the host, so that nothing waits for a GPU; about 80 small
kernels are queued per batch, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wideresnet.base.seeding import seed_of

NUM_LEVELS = 31
"""Strengths per operation. Source: README of automl/trivialaugment, set_augmentation_space('wide_standard', 31)."""

GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue. Source: torchvision, `rgb_to_grayscale`; ITU-R BT.601."""

LARGEST_SHIFT_PX = 32
"""Whatever the size of the images. Source: torchvision, as the rest of `SPACE`."""

SPACE: dict[str, tuple[float, float]] = {
    "identity": (0, 0),
    "shear_x": (0, 0.99), "shear_y": (0, 0.99),
    "shift_x": (0, LARGEST_SHIFT_PX), "shift_y": (0, LARGEST_SHIFT_PX),
    "rotate": (0, 135),
    "brightness": (0, 0.99), "color": (0, 0.99), "contrast": (0, 0.99), "sharpness": (0, 0.99),
    "posterize": (8, 2),
    "solarize": (1, 0),
    "autocontrast": (0, 0),
    "equalize": (0, 0),
}  # fmt: skip
"""Operation -> weakest and strongest: a slope, pixels, degrees, a change of a factor that is 1, bits that remain, the
share of white from which pixels are inverted. 0 to 0 if there is only one strength."""

SIGNED = ("shear_x", "shear_y", "shift_x", "shift_y", "rotate", "brightness", "color", "contrast", "sharpness")
"""The operations that go in both directions."""

NAMES = tuple(SPACE)


@dataclass(frozen=True)
class Operations:
    """What is done to each image of an epoch, on the CPU.

    Attributes:
        number: int64 (N,), index in `NAMES`.
        strength: float64 (N,), in the operation's unit, see `SPACE`.
    """

    number: Tensor
    strength: Tensor

    def __getitem__(self, part: slice | Tensor) -> Operations:
        """Return those of some of the images."""
        return Operations(self.number[part], self.strength[part])


def draw_operations(seed: int, epoch: int, num_images: int) -> Operations:
    """Draw the operations of an epoch, a pure function of the arguments.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        num_images: N, the size of the training set.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "trivial augment", epoch))
    number = torch.randint(len(NAMES), (num_images,), generator=generator)
    level = torch.randint(NUM_LEVELS, (num_images,), generator=generator)
    negative = torch.rand(num_images, generator=generator) < 0.5
    strength = _strengths()[number, level]
    is_signed = torch.tensor([name in SIGNED for name in NAMES])[number]
    return Operations(number, torch.where(is_signed & negative, -strength, strength))


def _strengths() -> Tensor:
    """Float64 (operations, NUM_LEVELS), each row from weakest to strongest; shifts and bits are whole."""
    table = torch.stack([torch.linspace(*ends, NUM_LEVELS) for ends in SPACE.values()]).double()
    whole = [NAMES.index(name) for name in ("shift_x", "shift_y")]
    table[whole] = table[whole].floor()
    bits = NAMES.index("posterize")
    table[bits] = table[bits].round()
    return table


def trivial_augment(images: Tensor, operations: Operations) -> Tensor:
    """Do to each image what was drawn for it.

    Args:
        images: uint8 (B, H, W, C), C is 1 or 3.
        operations: of these images, B.

    Returns:
        uint8 (B, H, W, C), new.
    """
    changed = images.clone()
    for names, change in _CHANGES:
        numbers = torch.tensor([NAMES.index(name) for name in names])
        chosen = torch.isin(operations.number, numbers).nonzero().flatten()
        if len(chosen):
            index = chosen.to(images.device)
            changed[index] = change(images[index], operations.number[chosen], operations.strength[chosen])
    return changed


def _move(images: Tensor, number: Tensor, strength: Tensor) -> Tensor:
    """Shear, shift or rotate: one gather of nearest pixels, whichever it is."""
    num, height, width, _ = images.shape
    # where the pixel at (x, y), counted from the center, comes from: rows (x, y, 1) -> x and -> y, float64
    matrix = torch.eye(2, 3, dtype=torch.float64).repeat(num, 1, 1)

    def of(name: str) -> tuple[Tensor, Tensor]:
        index = (number == NAMES.index(name)).nonzero().flatten()
        return index, strength[index]

    index, slope = of("shear_x")  # around the upper left corner, as AutoAugment's
    matrix[index, 0, 1], matrix[index, 0, 2] = slope, slope * height / 2
    index, slope = of("shear_y")
    matrix[index, 1, 0], matrix[index, 1, 2] = slope, slope * width / 2
    for axis, name in enumerate(("shift_x", "shift_y")):
        index, pixels = of(name)
        matrix[index, axis, 2] = -pixels
    index, degrees = of("rotate")
    cosine, sine = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    matrix[index, :, :2] = torch.stack((cosine, -sine, sine, cosine), 1).view(-1, 2, 2)

    x, y = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (width, height))
    target = torch.stack((*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, device=images.device)), 2)
    matrix /= torch.tensor([width / 2, height / 2]).view(2, 1)  # grid_sample counts from -1 to 1
    source = target.view(1, -1, 3) @ matrix.float().transpose(1, 2).to(images.device)
    pixels = images.permute(0, 3, 1, 2).float()
    moved = F.grid_sample(pixels, source.view(num, height, width, 2), mode="nearest", align_corners=False)
    return moved.permute(0, 2, 3, 1).to(torch.uint8)


def _brighten(images: Tensor, _: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, torch.zeros((), device=images.device), strength)


def _color(images: Tensor, _: Tensor, strength: Tensor) -> Tensor:
    return images if images.shape[3] == 1 else _blend(images, _gray(images), strength)


def _contrast(images: Tensor, _: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), strength)


def _sharpen(images: Tensor, _: Tensor, strength: Tensor) -> Tensor:
    if min(images.shape[1:3]) <= 2:
        return images
    pixels = images.float()
    inner = pixels[:, 1:-1, 1:-1]  # the border stays as it is
    smooth = 4 * inner  # weights 1/13 and, in the middle, 5/13
    for top in range(3):
        for left in range(3):
            smooth += pixels[:, top : top + inner.shape[1], left : left + inner.shape[2]]
    inner += (inner - (smooth / 13).round()) * _per_image(strength.float(), images)  # exact where nothing is to sharpen
    return pixels.clamp_(0, 255).to(torch.uint8)


def _posterize(images: Tensor, _: Tensor, strength: Tensor) -> Tensor:
    mask = torch.bitwise_left_shift(torch.tensor(255), 8 - strength.long()) & 255
    return images & _per_image(mask.to(torch.uint8), images)


def _solarize(images: Tensor, _: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images >= _per_image((255 * strength).float(), images), 255 - images, images)


def _autocontrast(images: Tensor, *_: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a constant one stays."""
    pixels = images.float()
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    stretched = (pixels - low) / ((high - low) * (1 / 255))
    return torch.where(high > low, stretched.clamp(0, 255), pixels).to(torch.uint8)


def _equalize(images: Tensor, *_: Tensor) -> Tensor:
    """Spread each channel's levels so that all are about equally frequent. Source: PIL, `ImageOps.equalize`."""
    num, height, width, channels = images.shape
    levels = images.permute(0, 3, 1, 2).reshape(num * channels, height * width).long()
    counts = levels.new_zeros(len(levels), 256).scatter_add_(1, levels, torch.ones_like(levels))
    step = (height * width - counts.gather(1, levels.amax(1, keepdim=True))) // 255  # without the highest level
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table[:, 0] = 0
    spread = torch.where(step > 0, table.gather(1, levels), levels).to(torch.uint8)
    return spread.view(num, channels, height, width).permute(0, 2, 3, 1)


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Go from `other` (strength -1) over the image (0) to beyond it."""
    own, rest = (_per_image(share.float(), images) for share in (1 + strength, -strength))
    return (images * own + other * rest).clamp_(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Whole levels, float32 (B, H, W, 1)."""
    if images.shape[3] == 1:
        return images.float()
    red, green, blue = (weight * images[..., i : i + 1] for i, weight in enumerate(GRAY))
    return (red + green + blue).floor_()


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device).view(-1, 1, 1, 1)


_CHANGES: tuple[tuple[tuple[str, ...], Callable[[Tensor, Tensor, Tensor], Tensor]], ...] = (
    (("shear_x", "shear_y", "shift_x", "shift_y", "rotate"), _move),
    (("brightness",), _brighten),
    (("color",), _color),
    (("contrast",), _contrast),
    (("sharpness",), _sharpen),
    (("posterize",), _posterize),
    (("solarize",), _solarize),
    (("autocontrast",), _autocontrast),
    (("equalize",), _equalize),
)
"""Operations -> the function from (images, numbers, strengths) to images; identity has none."""
