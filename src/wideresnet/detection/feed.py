"""The training images of a detector, decoded by workers; steps see a pure function of (seed, epoch, place)."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as Work

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.seeding import seed_of
from wideresnet.data.feeds.decoder import decode_array
from wideresnet.data.feeds.resident import share_of
from wideresnet.data.feeds.workers import FedByWorkers, InOrder
from wideresnet.data.images import UnreadableError, silent_pillow
from wideresnet.detection.coco import CocoImage, CocoSet
from wideresnet.detection.model import scaled_size, to_input

MAX_TRIED = 1000
"""Images that are tried in the place of one that cannot be read."""

Target = dict[str, Tensor]

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """An image with its objects, as a worker returns it.

    Attributes:
        pixels: uint8 (3, H, W), scaled.
        boxes: float32 (n, 4): left, top, right, bottom, px of the scaled image.
        labels: int64 (n,), from 1.
        failures: (place in the set, reason) of images that could not be read.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    failures: list[tuple[int, str]]


class DetectionFeed(FedByWorkers):
    """The training images, and the batches of an epoch.

    Args:
        images: checked.
        batch_size: images per step, of all processes together.
        min_size, max_size, flip, scale_jitter, aspect_groups, skip_unreadable: as in `DetectionRecipe`.
        seed: decides order and augmentation.
        device: where the batches go.
        workers: processes that decode; 0 for none.
        rank, num_ranks: which share of each batch is made.

    Attributes:
        num_images, num_batches: of an epoch; fewer images than a batch are left over for no step.
        waited_s: how long steps waited for images.
        unreadable: name -> reason of images that could not be read; the next readable ones took their places.

    Raises:
        UsageError: there are fewer images than a batch has.
    """

    def __init__(
        self,
        images: CocoSet,
        *,
        batch_size: int,
        min_size: int,
        max_size: int,
        flip: bool,
        scale_jitter: float,
        aspect_groups: int,
        seed: int,
        device: str,
        workers: int,
        skip_unreadable: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.set, self.index = images, images.trained_on()
        self.num_images, self.batch_size = len(self.index), batch_size
        if self.num_images < batch_size:
            raise UsageError(
                f"batch_size={batch_size}: larger than the {self.num_images} training images with objects; use "
                f"batch_size={max(1, self.num_images)} or less"
            )
        self.num_batches = self.num_images // batch_size
        self.min_size, self.max_size, self.flip, self.scale_jitter = min_size, max_size, flip, scale_jitter
        self.seed, self.device, self.workers, self.skip_unreadable = seed, device, workers, skip_unreadable
        self.rank, self.num_ranks = rank, num_ranks
        shapes = np.array([(images.images[i].height, images.images[i].width) for i in self.index], dtype=np.float64)
        # bins of the logarithm of the aspect ratio; torchvision's references put everything beyond 2 in one bin as well
        self.groups = np.zeros(self.num_images, dtype=np.int64)
        if aspect_groups:
            ratios = np.log2(shapes[:, 1] / shapes[:, 0])
            self.groups = np.digitize(ratios, np.linspace(-1, 1, 2 * aspect_groups + 1))
        self.waited_s, self.unreadable = 0.0, dict[str, str]()
        self.results: InOrder | None = None
        self.next_batch = (-1, -1)

    def order(self, epoch: int) -> np.ndarray:
        """Return the images of an epoch's batches, int64 (num_batches, batch_size), a pure function of (seed, epoch).

        Batches hold images of one group of aspect ratios as far as they come out even.
        """
        random = np.random.default_rng(seed_of(self.seed, "order", epoch))
        shuffled = random.permutation(self.num_images)
        batches, left = [], []
        for group in np.unique(self.groups):
            members = shuffled[self.groups[shuffled] == group]
            whole = len(members) // self.batch_size * self.batch_size
            batches += list(members[:whole].reshape(-1, self.batch_size))
            left.append(members[whole:])
        rest = np.concatenate(left)
        rest = rest[: len(rest) // self.batch_size * self.batch_size]
        every = np.stack([*batches, *rest.reshape(-1, self.batch_size)])
        return self.index[every[random.permutation(len(every))]]

    def images_in(self, batch: int) -> int:
        """Return the number of images in a batch, the shares of all processes together."""
        del batch
        return self.batch_size

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[list[Tensor], list[Target]]]:
        """Yield this process's share of the batches of an epoch.

        Args:
            epoch: counted from 0.
            start: the first batch to make.

        Yields:
            Images, float32 (3, H, W) in 0..1 each, and for each its `boxes` and `labels`.

        Raises:
            DataError: an image cannot be read, unless those are left out.
            WRNError: a worker was killed.
        """
        if self.results is None or self.next_batch != (epoch, start):
            self.close()
            work = Augment(
                self.set, self.min_size, self.max_size, self.flip, self.scale_jitter, self.seed, self.skip_unreadable
            )
            self.results = InOrder(work, self._tasks(epoch, start), self.workers)
        share = share_of(self.batch_size, self.rank, self.num_ranks)
        for batch in range(start, self.num_batches):
            samples = [self._received(self.results) for _ in range(share.start, share.stop)]
            self.next_batch = (epoch, batch + 1) if batch + 1 < self.num_batches else (epoch + 1, 0)
            targets = [{"boxes": s.boxes.to(self.device), "labels": s.labels.to(self.device)} for s in samples]
            yield [to_input(sample.pixels, self.device) for sample in samples], targets

    def first(self, num_images: int) -> tuple[list[Tensor], list[Target]]:
        """Return the first images of the run, decoded in this process, at their full size."""
        work = self._augment(0.0)
        with silent_pillow():
            places = enumerate(self.order(0).reshape(-1)[:num_images])
            samples = [work[(0, place, int(image))] for place, image in places]
        for sample in samples:
            self._tell(sample.failures)
        targets = [{"boxes": s.boxes.to(self.device), "labels": s.labels.to(self.device)} for s in samples]
        return [to_input(sample.pixels, self.device) for sample in samples], targets

    def _augment(self, scale_jitter: float) -> Augment:
        return Augment(self.set, self.min_size, self.max_size, self.flip, scale_jitter, self.seed, self.skip_unreadable)

    def _tasks(self, epoch: int, start: int) -> Iterator[tuple[int, int, int]]:
        """Yield (epoch, place in it, image) from a batch on, without end."""
        share = share_of(self.batch_size, self.rank, self.num_ranks)
        for number in itertools.count(epoch):
            order = self.order(number)
            for batch in range(start if number == epoch else 0, self.num_batches):
                for place in range(share.start, share.stop):
                    yield number, batch * self.batch_size + place, int(order[batch, place])

    def _received(self, results: InOrder) -> Sample:
        started = time.perf_counter()
        sample: Sample = next(results)
        self.waited_s += time.perf_counter() - started
        self._tell(sample.failures)
        return sample

    def _tell(self, failures: list[tuple[int, str]]) -> None:
        for place, reason in failures:
            name = str(self.set.images[place].file)
            if not self.skip_unreadable:
                raise unreadable(name, reason)
            if name not in self.unreadable:
                self.unreadable[name] = reason
                log.warning(f"{name} cannot be read ({reason}): the next image takes its place")


class Augment(Work[Sample]):
    """Decodes, scales and mirrors an image, in a worker."""

    def __init__(
        self, images: CocoSet, min_size: int, max_size: int, flip: bool, scale_jitter: float, seed: int, skip: bool
    ) -> None:
        self.set, self.trained_on = images, images.trained_on()
        self.min_size, self.max_size = min_size, max_size
        self.flip, self.scale_jitter, self.seed, self.skip = flip, scale_jitter, seed, skip

    def __getitem__(self, task: tuple[int, int, int]) -> Sample:
        epoch, place, image = task
        random = np.random.default_rng(seed_of(self.seed, "augment", epoch, place))
        side = self.min_size * (1 - self.scale_jitter * random.random())
        mirrored = self.flip and random.random() < 0.5
        failures: list[tuple[int, str]] = []
        start = int(np.searchsorted(self.trained_on, image))
        for taken in itertools.islice(
            itertools.cycle(np.roll(self.trained_on, -start)), min(MAX_TRIED, len(self.trained_on))
        ):
            try:
                pixels, scale = read_scaled(self.set.images[taken], side, self.max_size)
            except UnreadableError as error:
                failures.append((int(taken), str(error)))
                if not self.skip:  # the feed stops at the first one
                    return Sample(torch.empty(0), torch.empty(0), torch.empty(0), failures)
                continue
            boxes, labels = torch.from_numpy(self.set.boxes[taken] * scale), self.set.labels[taken] + 1
            if mirrored:
                pixels, width = np.ascontiguousarray(pixels[:, ::-1]), pixels.shape[1]
                boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
            return Sample(_channels_first(pixels), boxes, torch.from_numpy(labels), failures)
        raise DataError(f"{self.set.images[image].file} and the {MAX_TRIED} images after it cannot be read")


def read_scaled(image: CocoImage, min_size: float, max_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and scale it as `model.scaled_size` says.

    Returns:
        uint8 (H, W, 3), and the factors of a box's left, top, right and bottom, float32 (4,).

    Raises:
        UnreadableError: it cannot be read, or has another size than the JSON says.
    """
    pixels = decode_array(image.file, 3)
    height, width = pixels.shape[:2]
    if (height, width) != (image.height, image.width):
        raise UnreadableError(
            f"{width} x {height} px, but {image.width} x {image.height} in the JSON, for which its boxes are"
        )
    return scaled(pixels, min_size, max_size)


def scaled(pixels: np.ndarray, min_size: float, max_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image, antialiased and bilinear; see `read_scaled`."""
    height, width = pixels.shape[:2]
    new_height, new_width = scaled_size(height, width, min_size, max_size)
    factors = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    if (new_height, new_width) != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR))
    return pixels, factors


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def unreadable(name: str, reason: str) -> DataError:
    """Return the error for an image that cannot be read."""
    return DataError(
        f"{name}: cannot be read ({reason}); repair or remove it, or use skip_unreadable=True to leave it out"
    )


class Scaled(Work[Any]):
    """Decodes and scales the images of a set for evaluation, in a worker; returns a text if one cannot be read."""

    def __init__(self, images: CocoSet, min_size: int, max_size: int) -> None:
        self.set, self.min_size, self.max_size = images, min_size, max_size

    def __getitem__(self, place: int) -> tuple[Tensor, np.ndarray] | str:
        try:
            pixels, factors = read_scaled(self.set.images[place], self.min_size, self.max_size)
        except UnreadableError as error:
            return str(error)
        return _channels_first(pixels), factors
