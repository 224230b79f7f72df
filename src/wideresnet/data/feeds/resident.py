"""Batches for training, cut from a set that stays on the device as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.base.seeding import seed_of
from wideresnet.data.augment import (
    EpochPlan,
    crop_and_flip,
    cut_out,
    draw_squares,
    pad_images,
    plan_epoch,
    resize,
)
from wideresnet.data.feeds.later import Later
from wideresnet.data.feeds.lazy import lazy
from wideresnet.data.preprocess import Preprocessing
from wideresnet.data.trivial_augment import Operations, draw_operations, trivial_augment

Batch = tuple[Tensor, Tensor]


class Feed:
    """The training set, resident on a device, and its epochs.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        preprocessing: applied to each batch (ZCA: once, here).
        batch_size: images per step, of all ranks together.
        drop_last: leave out an epoch's last, smaller batch.
        padding, padding_mode, flip: the augmentation, see `data.augment`.
        auto_augment: "none" or "trivial", see `data.trivial_augment`.
        cutout: side of the square that is set to 0, px; 0 for none.
        later: what is done to whole batches at the end.
        repeats: times that an image is in a batch.
        balanced: each epoch has as many images of each class, see `augment.balanced_order`.
        seed: decides order and augmentation.
        device: where the set stays.
        rank, num_ranks: which share of each batch is made, see `share_of`; the shares of all ranks are the whole batch.

    Raises:
        UsageError: the batch is larger than the set, or the augmentation is not for such images.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        drop_last: bool = True,
        padding: int = 0,
        padding_mode: str = "reflection",
        flip: bool = False,
        auto_augment: str = "none",
        cutout: int = 0,
        later: Later = Later(),  # noqa: B008  # frozen
        repeats: int = 1,
        balanced: bool = False,
        seed: int = 0,
        device: str = "cpu",
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if batch_size > len(images):
            raise UsageError(
                f"batch_size={batch_size}: larger than the {len(images)} training images; "
                f"use batch_size={len(images)} or less"
            )
        if auto_augment != "none" and images.shape[3] not in (1, 3):
            raise UsageError(
                f"auto_augment={auto_augment!r}: is for gray and RGB images, these have {images.shape[3]} channels; "
                "use auto_augment='none'"
            )
        self.size = (images.shape[1], images.shape[2])
        later.check(images.shape[3])
        if cutout > min(self.size):
            raise UsageError(
                f"cutout={cutout}: larger than the images ({self.size[0]}x{self.size[1]}); use cutout={min(self.size)} "
                "or less"
            )
        self.auto_augment, self.cutout, self.later, self.repeats = auto_augment, cutout, later, repeats
        self.num_images = len(images)
        self.batch_size = batch_size
        self.rank, self.num_ranks = rank, num_ranks
        self.preprocessing = preprocessing
        self.padding, self.flip, self.seed, self.device = padding, flip, seed, device
        self.num_batches = len(images) // batch_size if drop_last else ceil_div(len(images), batch_size)
        self.labels = torch.from_numpy(labels).to(device)
        self.balance = torch.from_numpy(labels) if balanced else None
        self.hold(images, padding_mode)

    def hold(self, images: np.ndarray, padding_mode: str) -> None:
        """Put the images where batches are cut from."""
        padded = pad_images(self.preprocessing.resident(images).to(self.device), self.padding, padding_mode)
        self.padded = padded.contiguous()

    def images_in(self, batch: int) -> int:
        """Return the number of images in one of an epoch's batches, the shares of all ranks together.

        Args:
            batch: counted from 0.
        """
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0, scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch, a pure function of (seed, epoch).

        In this order: crop, flip, auto-augmentation of the uint8 pixels, lighting, preprocessing, cutout, erasing,
        resizing, mixing.

        Args:
            epoch: counted from 0.
            start: the first batch to make; those before it cost nothing.
            scale: images are resized by this factor at the end, so that shifts and squares are in pixels of full size.

        Yields:
            float32 (B, C, H, W), channels last in memory, and int64 (B,); or float32 (B, classes), if labels are mixed.
        """
        plan, operations = self.plan(epoch, self.device)
        finish = self.finishing(epoch, scale)
        for batch in range(start, self.num_batches):
            part = self.part(batch)
            index = plan.order[part]
            crops = crop_and_flip(self.padded, index, plan.top[part], plan.left[part], plan.flip[part], self.size)
            if operations is not None:
                crops = trivial_augment(crops, operations[part])
            yield finish(batch, part, crops, self.labels[index])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take steps in the block; what was started for them has ended after it."""
        yield

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; `restore` is the inverse."""
        return {}

    def restore(self, values: dict[str, Any]) -> None:
        """Continue from what `progress` returned."""

    def first(self, num_images: int, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the first images of the run as a batch of their own, for trying steps."""
        feed = copy.copy(self)
        feed.batch_size, feed.rank, feed.num_ranks = num_images, 0, 1
        return next(feed.epoch(0, scale=scale))

    def plan(self, epoch: int, device: str) -> tuple[EpochPlan, Operations | None]:
        """Draw an epoch's order, crops, flips and operations."""
        seed, num = self.seed, self.num_images
        plan = plan_epoch(
            seed, epoch, num, padding=self.padding, flip=self.flip, repeats=self.repeats, balance=self.balance,
            device=device,
        )  # fmt: skip
        return plan, draw_operations(seed, epoch, num) if self.auto_augment == "trivial" else None

    def part(self, batch: int) -> slice | Tensor:
        """Return the places in an epoch's order of this rank's share of a batch, after the one that it is mixed with.

        A batch is mixed with itself, shifted by one, so that a share needs one image more, which is left out again.
        """
        share = share_of(self.images_in(batch), self.rank, self.num_ranks)
        first = batch * self.batch_size
        if not self.later.mixes:
            return slice(first + share.start, first + share.stop)
        partner = (share.start - 1) % self.images_in(batch)
        return torch.tensor([first + partner, *range(first + share.start, first + share.stop)])

    def finishing(self, epoch: int, scale: float) -> Callable[[int, slice | Tensor, Tensor, Tensor], Batch]:
        """Return what turns crops (B, H, W, C), at places of an epoch's order, into what a step takes."""
        seed, num = self.seed, self.num_images
        squares = draw_squares(seed, epoch, num, self.size, device=self.device) if self.cutout else None
        later = self.later.drawn(seed, epoch, num)

        def finish(batch: int, part: slice | Tensor, crops: Tensor, labels: Tensor) -> Batch:
            pictures = self.preprocessing(later.light(crops, part))
            if squares is not None:
                pictures = cut_out(pictures, squares[:, part], self.cutout)
            return later.mix(batch, resize(later.erase(pictures, part), scale), labels)

        return finish


def share_of(num: int, rank: int, num_ranks: int) -> slice:
    """Return a rank's share of 0..num-1: contiguous, in the order of ranks, sizes differing by at most one.

    Args:
        num: number of items, e.g. the images of a batch.
        rank: from 0 to num_ranks - 1.
        num_ranks: number of shares.
    """
    each, more = divmod(num, num_ranks)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def evaluation_batches(
    images: np.ndarray, preprocessing: Preprocessing, *, batch_size: int = 500, device: str = "cpu"
) -> Iterator[Tensor]:
    """Yield every image once, in order; the last batch may be smaller.

    Args:
        images: uint8 (N, H, W, C).
        preprocessing: applied to each batch.
        batch_size: images per batch.
        device: where the batches are.

    Yields:
        float32 (B, C, H, W), channels last in memory.
    """
    if (stream := lazy(images)) is not None:
        for batch in stream.batches(batch_size):
            yield preprocessing(batch.to(device))
        return
    for start in range(0, len(images), batch_size):
        yield preprocessing(preprocessing.resident(images[start : start + batch_size]).to(device))


def hold_out(num_images: int, num_held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split 0..num_images-1 at random into kept and held indices.

    Args:
        num_images: how many there are.
        num_held: how many are held out.
        seed: decides which.

    Returns:
        int64, sorted: the kept and the held ones.

    Raises:
        UsageError: no image would be left to train on.
    """
    if num_held >= num_images:
        raise UsageError(
            f"holdout={num_held}: none of the {num_images} training images would be left to train on; "
            f"use holdout={max(0, num_images - 1)} or less"
        )
    generator = torch.Generator().manual_seed(seed_of(seed, "holdout"))
    order = torch.randperm(num_images, generator=generator).numpy()
    return np.sort(order[num_held:]), np.sort(order[:num_held])


def split_rows(num_images: int, limit: int | None, num_held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of a training set a run trains on, and which it holds out; int64.

    Args:
        num_images: of the whole training set.
        limit: how many of them are used, drawn at random; None for all.
        num_held: how many of those are held out for validation.
        seed: of the run.

    Raises:
        UsageError: no image would be left to train on.
    """
    rows = np.arange(num_images)
    if limit is not None and limit < num_images:
        rows = hold_out(num_images, limit, seed)[1]
    if num_held == 0:
        return rows, rows[:0]
    kept, held = hold_out(len(rows), num_held, seed)
    return rows[kept], rows[held]
