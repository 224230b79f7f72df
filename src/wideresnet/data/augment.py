"""Random crop, flip and cutout, for a whole batch at once, on the device that holds the images.

What happens to an image is a pure function of (seed, epoch, image). It is drawn for a whole epoch in advance, so that
any step can be repeated alone. The slow twin, image by image, is in `tests/data/test_augment.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.base.seeding import seed_of


@dataclass(frozen=True)
class EpochPlan:
    """The order of an epoch and what is done to each image.

    Attributes:
        order: int64 (N,), indices of images in the order of training.
        top, left: int64 (N,), where the crop of `order`'s i-th image starts in the padded image, px, 0..2*padding.
        flip: bool (N,), whether the i-th image is mirrored left-right after the crop.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor


def plan_epoch(
    seed: int,
    epoch: int,
    num_images: int,
    *,
    padding: int,
    flip: bool,
    repeats: int = 1,
    balance: Tensor | None = None,
    device: str = "cpu",
) -> EpochPlan:
    """Draw an epoch's order, crops and flips.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        num_images: N, the size of the training set.
        padding: px; crops start at 0..2*padding in each direction; 0 means no crop.
        flip: mirror an image with probability 1/2.
        repeats: times that an image follows itself; the order then has so many fewer different images.
        balance: int64 (N,) on the CPU, the class of each image, if all classes shall be in the order equally often.
        device: where the plan's tensors are.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    if balance is None:
        order = torch.randperm(num_images, generator=generator).repeat_interleave(repeats)[:num_images]
    else:
        order = balanced_order(balance, generator)
    top, left = torch.randint(0, 2 * padding + 1, (2, num_images), generator=generator)
    mirrored = torch.rand(num_images, generator=generator) < (0.5 if flip else 0.0)
    return EpochPlan(*(draw.to(device) for draw in (order, top, left, mirrored)))


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many images of each class as of any other, or one more.

    Args:
        labels: int64 (N,), at least one image each of the classes that count.
        generator: of the random numbers.

    Returns:
        int64 (N,), images in random order. A class with fewer images than its share is gone through several times, each
        time in another order; of a class with more, a different part is drawn in each epoch.
    """
    by_class = labels.argsort(stable=True).split(labels.bincount().tolist())
    classes = [images for images in by_class if len(images)]
    each, more = divmod(len(labels), len(classes))
    lucky = torch.randperm(len(classes), generator=generator)[:more].tolist()
    drawn = []
    for number, images in enumerate(classes):
        share = each + (number in lucky)
        rounds = [images[torch.randperm(len(images), generator=generator)] for _ in range(-(-share // len(images)))]
        drawn += [torch.cat(rounds)[:share]] if rounds else []
    return torch.cat(drawn)[torch.randperm(len(labels), generator=generator)]


def pad_images(images: Tensor, padding: int, mode: str) -> Tensor:
    """Pad images on all four sides.

    Args:
        images: (N, H, W, C), any dtype.
        padding: px on each side.
        mode: "reflection" (the edge pixel is not repeated) or "zero".

    Raises:
        UsageError: the images are not larger than the padding, which reflection needs.
    """
    if padding == 0:
        return images
    num, height, width, channels = images.shape
    if mode == "reflection" and padding >= min(height, width):
        raise UsageError(
            f"crop_padding={padding}: reflection needs a padding smaller than the image ({height}x{width}); "
            f"use crop_padding={min(height, width) - 1} or less, or padding_mode='zero'"
        )
    if mode == "zero":
        padded = images.new_zeros(num, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding : padding + height, padding : padding + width] = images
        return padded
    rows, columns = (_reflected(side, padding).to(images.device) for side in (height, width))
    padded = images.new_empty(num, len(rows), len(columns), channels)
    for start in range(0, num, 4096):  # in pieces, so that the set is never in memory twice
        padded[start : start + 4096] = images[start : start + 4096].index_select(1, rows).index_select(2, columns)
    return padded


def _reflected(size: int, padding: int) -> Tensor:
    """The row (or column) that each row of the padded image repeats: 2 1 | 0 1 2 | 1 0 for size 3, padding 2."""
    position = torch.arange(-padding, size + padding).abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def crop_and_flip(
    padded: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: tuple[int, int]
) -> Tensor:
    """Cut one crop from each of the chosen images and mirror some of the crops.

    A row of a crop is contiguous in memory, so the batch is one gather of B * H rows, not of B * H * W pixels.

    Args:
        padded: (N, H + 2p, W + 2p, C) contiguous, any dtype.
        index: int64 (B,), which images.
        top, left: int64 (B,), where each crop starts.
        flip: bool (B,), which crops are mirrored.
        size: (H, W) of the crops.

    Returns:
        (B, H, W, C), the dtype of `padded`.
    """
    height, width = size
    num, full_height, full_width, channels = padded.shape
    # every run of `width` pixels, wherever it starts: overlapping rows of one view, no copy
    num_rows = num * full_height * full_width - width + 1
    rows = padded.as_strided((num_rows, width * channels), (channels, 1))
    first = (index * full_height + top) * full_width + left
    starts = first[:, None] + torch.arange(height, device=padded.device) * full_width
    crops = rows.index_select(0, starts.flatten()).view(len(index), height, width, channels)
    return torch.where(flip[:, None, None, None], crops.flip(2), crops)


def draw_squares(seed: int, epoch: int, num_images: int, size: tuple[int, int], *, device: str = "cpu") -> Tensor:
    """Draw the places of an epoch's cutout, a pure function of seed and epoch.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        num_images: N, the size of the training set.
        size: (H, W) of the images.
        device: where the result is.

    Returns:
        int64 (2, N): row and column of each square's center, any pixel of the image.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "cutout", epoch))
    centers = [torch.randint(side, (num_images,), generator=generator) for side in size]
    return torch.stack(centers).to(device)


def cut_out(batch: Tensor, centers: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0, in place; what of it lies outside of the image is lost.

    Source: DeVries & Taylor 2017 (arXiv 1708.04552); util/cutout.py of their code, uoguelph-mlrg/Cutout.

    Args:
        batch: (B, C, H, W), preprocessed, so that 0 is the mean color.
        centers: int64 (2, B), row and column.
        side: of the square, px.
    """
    first = centers - side // 2
    inside = []
    for top, length in zip(first, batch.shape[-2:], strict=True):
        distance = torch.arange(length, device=batch.device) - top[:, None]
        inside.append((distance >= 0) & (distance < side))
    rows, columns = inside
    return batch.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def resize(batch: Tensor, scale: float) -> Tensor:
    """Scale images with an antialiased bilinear filter.

    Args:
        batch: float (B, C, H, W).
        scale: factor for height and width, which are rounded and at least 1 px; 1.0 returns the batch itself.

    Returns:
        The dtype of `batch`, (B, C, H * scale, W * scale).
    """
    if scale == 1.0:
        return batch
    height, width = (max(1, round(side * scale)) for side in batch.shape[-2:])
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)
