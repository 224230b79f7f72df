"""Batches for training from images that stay encoded: decoded and augmented by workers, finished on the device.

Order and augmentation are pure functions of (seed, epoch, place in the epoch's order), so neither the number of workers
nor where a run was stopped changes a bit. Without a random resized crop and color jitter the batches are those of the
resident feed. With a random resized crop TrivialAugment is torchvision's own, which draws other operations.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as Work

from wideresnet.base.errors import DataError
from wideresnet.base.seeding import seed_of
from wideresnet.data.augment import crop_and_flip, pad_images
from wideresnet.data.feeds.decoder import decode_array, decode_tensor, fitted
from wideresnet.data.feeds.lazy import CHUNK_BYTES, LazyImages, as_array, unreadable
from wideresnet.data.feeds.resident import Batch, Feed
from wideresnet.data.feeds.workers import FedByWorkers, InOrder
from wideresnet.data.images import UnreadableError
from wideresnet.data.trivial_augment import Operations, trivial_augment

ASPECT = (3 / 4, 4 / 3)
"""Of a random resized crop. Source: fb.resnet.torch, RandomSizedCrop; torchvision's `RandomResizedCrop`."""

MAX_TRIED = 1000
"""Images that may follow each other unreadable, before the folder itself must be damaged. Own choice."""

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """What a worker does at once.

    Attributes:
        epoch: counted from 0.
        places: int64 (B,), in the epoch's order.
        images: int64 (B,).
        top, left, flip: see `augment.EpochPlan`.
        operations: of TrivialAugment, if it is used.
    """

    epoch: int
    places: Tensor
    images: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    operations: Operations | None


class Done(NamedTuple):
    """A task's result.

    Attributes:
        crops: uint8 (B, H, W, C).
        images: int64 (B,), those that they are from; another than asked for, where that cannot be read.
        failures: image and reason, of those that cannot be read.
    """

    crops: Tensor
    images: Tensor
    failures: list[tuple[int, str]]


class StreamFeed(FedByWorkers, Feed):
    """A training set that stays on the disk, and its epochs.

    Args:
        images: the set; decoded at its own size, or from `random_resized_crop` at that.
        random_resized_crop: least share of the area; 0 for none.
        color_jitter: largest change; 0 for none.
        workers: processes that decode; 0 for none.
        how: the arguments of `Feed`.

    Attributes:
        waited_s: how long steps waited for images.
        unreadable: name -> reason of the images that could not be read; the next readable one takes their place.
    """

    def __init__(
        self,
        images: LazyImages,
        labels: np.ndarray,
        preprocessing: Any,
        *,
        random_resized_crop: float = 0.0,
        color_jitter: float = 0.0,
        workers: int = 0,
        padding_mode: str = "reflection",
        **how: Any,
    ) -> None:
        self.images, self.workers = images, workers
        self.random_resized_crop, self.color_jitter = random_resized_crop, color_jitter
        self.waited_s, self.unreadable = 0.0, dict[str, str]()
        self.results: InOrder | None = None
        self.next_batch = (-1, -1)  # of `results`
        super().__init__(as_array(images), labels, preprocessing, padding_mode=padding_mode, **how)

    def hold(self, images: np.ndarray, padding_mode: str) -> None:
        """Check that the images can be padded, and hold nothing."""
        self.padding_mode = padding_mode
        pad_images(torch.zeros(1, *images.shape[1:], dtype=torch.uint8), self.padding, padding_mode)

    def epoch(self, epoch: int, *, start: int = 0, scale: float = 1.0) -> Iterator[Batch]:
        """Yield the batches of an epoch, as `Feed.epoch` does.

        Raises:
            DataError: an image cannot be read, unless those are left out.
            WRNError: a worker was killed.
        """
        if self.results is None or self.next_batch != (epoch, start):
            self.close()
            self.results = InOrder(_Augmenting(self), self._tasks(epoch, start), self.workers)
        finish = self.finishing(epoch, scale)
        for batch in range(start, self.num_batches):
            part = self.part(batch)
            crops, index = self._received(self.results, len(self._places(part)))
            self.next_batch = (epoch, batch + 1) if batch + 1 < self.num_batches else (epoch + 1, 0)
            yield finish(batch, part, crops, self.labels[index.to(self.labels.device)])

    def first(self, num_images: int, *, scale: float = 1.0) -> Batch:
        """Return the first images of the run, decoded in this process, see `Feed.first`."""
        feed = StreamFeed.__new__(StreamFeed)
        feed.__dict__.update(self.__dict__, batch_size=num_images, rank=0, num_ranks=1, workers=0, results=None)
        feed.unreadable = {}
        try:
            return next(feed.epoch(0, scale=scale))
        finally:
            feed.close()

    def _places(self, part: slice | Tensor) -> Tensor:
        return torch.arange(part.start, part.stop) if isinstance(part, slice) else part

    def _tasks(self, epoch: int, start: int) -> Iterator[Task]:
        """Yield the tasks of an epoch from a batch on, and of those after it without end."""
        image_bytes = int(np.prod(self.images.shape[1:]))
        most = max(1, CHUNK_BYTES // max(1, image_bytes))
        for number in itertools.count(epoch):
            plan, operations = self.plan(number, "cpu")
            for batch in range(start if number == epoch else 0, self.num_batches):
                for places in self._places(self.part(batch)).split(most):
                    chosen = operations[places] if operations is not None else None
                    yield Task(
                        number,
                        places,
                        plan.order[places],
                        plan.top[places],
                        plan.left[places],
                        plan.flip[places],
                        chosen,
                    )

    def _received(self, results: InOrder, num_images: int) -> tuple[Tensor, Tensor]:
        """Return the crops of a batch on the device, and the images that they are from; count the time waited."""
        is_gpu = self.device == "cuda"
        done = torch.cuda.Event() if is_gpu else None
        if done:
            done.record()
        crops = torch.empty(num_images, *self.images.shape[1:], dtype=torch.uint8, pin_memory=is_gpu)
        index, filled = [], 0
        while filled < num_images:
            started = time.perf_counter()
            result: Done = next(results)
            if done is None or done.query():  # else the GPU was still busy with earlier steps
                self.waited_s += time.perf_counter() - started
            self._tell(result.failures)
            crops[filled : filled + len(result.crops)] = result.crops
            filled += len(result.crops)
            index.append(result.images)
        return crops.to(self.device, non_blocking=True), torch.cat(index)

    def _tell(self, failures: list[tuple[int, str]]) -> None:
        for image, reason in failures:
            name = self.images.name(image)
            if not self.images.skip_unreadable:
                raise unreadable(name, reason)
            if name not in self.unreadable:
                self.unreadable[name] = reason
                log.warning(f"{name} cannot be read ({reason}): the next image takes its place")


@dataclass
class _Augmenting(Work[Done]):
    """Decodes and augments the images of a task; in a worker."""

    feed: StreamFeed

    def __post_init__(self) -> None:
        feed = self.feed
        self.images, self.size, self.channels = feed.images, feed.size, feed.images.channels
        self.padding, self.padding_mode, self.seed = feed.padding, feed.padding_mode, feed.seed
        self.crop, self.jitter = feed.random_resized_crop, feed.color_jitter
        self.transforms: Any = None
        del self.feed  # its tensors may be on a GPU, of which a worker must not know

    def __getitem__(self, task: Task) -> Done:
        pixels, index, failures = [], [], []
        for place, image in zip(task.places.tolist(), task.images.tolist(), strict=True):
            found, taken = self._readable(image, failures)
            index.append(taken)
            pixels.append(self._changed(found, task.epoch, place))
        batch = torch.stack(pixels)
        if self.padding or task.flip.any():
            padded = pad_images(batch, self.padding, self.padding_mode).contiguous()
            batch = crop_and_flip(padded, torch.arange(len(batch)), task.top, task.left, task.flip, self.size)
        if task.operations is not None:
            batch = self._operated(batch, task) if self.crop else trivial_augment(batch, task.operations)
        return Done(batch.contiguous(), torch.tensor(index), failures)

    def _readable(self, image: int, failures: list[tuple[int, str]]) -> tuple[np.ndarray | Tensor, int]:
        """Return the pixels of an image, or of the next one that can be read."""
        for taken in itertools.islice(itertools.cycle(range(len(self.images))), image, image + MAX_TRIED):
            try:
                content = self.images.read(taken)
                if self.crop or self.jitter:
                    return decode_tensor(content, self.channels, self.images.white), taken
                return fitted(decode_array(content, self.channels, self.images.white), self.size, None), taken
            except UnreadableError as error:
                failures.append((taken, str(error)))
                if not self.images.skip_unreadable:  # the feed stops at the first one
                    return np.zeros((*self.size, self.channels), np.uint8), image
        raise DataError(f"{self.images.name(image)} and the {MAX_TRIED} images after it cannot be read")

    def _changed(self, pixels: np.ndarray | Tensor, epoch: int, place: int) -> Tensor:
        """Cut, scale and jitter an image; uint8 (H, W, C)."""
        if isinstance(pixels, np.ndarray):
            return torch.from_numpy(pixels)
        transforms, _ = self._made()
        if not self.crop:
            whole = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
            pixels = torch.from_numpy(fitted(whole, self.size, None)).permute(2, 0, 1).contiguous()
        torch.default_generator.manual_seed(seed_of(self.seed, "image", epoch, place))
        return transforms(pixels).permute(1, 2, 0)

    def _operated(self, batch: Tensor, task: Task) -> Tensor:
        """Apply torchvision's TrivialAugmentWide by Pillow: at 224x224 in a quarter of the time of a batch at once."""
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

        _, operate = self._made()
        changed = torch.empty_like(batch)
        for row, place in enumerate(task.places.tolist()):
            torch.default_generator.manual_seed(seed_of(self.seed, "operation", task.epoch, place))
            picture = operate(to_pil_image(batch[row].permute(2, 0, 1)))
            changed[row] = pil_to_tensor(picture).permute(1, 2, 0)
        return changed

    def _made(self) -> tuple[Any, Any]:
        """Return torchvision's transforms: before the flip, and after it; made once, in the worker."""
        if self.transforms is not None:
            return self.transforms
        from torchvision.transforms import v2

        steps: list[Any] = []
        if self.crop:
            steps.append(v2.RandomResizedCrop(self.size, scale=(self.crop, 1.0), ratio=ASPECT, antialias=True))
        if self.jitter:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        self.transforms = (v2.Compose(steps), v2.TrivialAugmentWide())
        return self.transforms
