"""Which feed a run has, and what it does to training and test images there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import UsageError
from wideresnet.base.progress import track
from wideresnet.data import Dataset, ImageSet
from wideresnet.data.feeds.lazy import LazyImages, lazy, stream_of
from wideresnet.data.feeds.resident import Feed
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.feeds.workers import chosen_workers
from wideresnet.data.preprocess import Preprocessing, level_counts, statistics_of
from wideresnet.distributed.world import World
from wideresnet.spec.recipe import Recipe

IMAGENET_MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(255 * value for value in (0.229, 0.224, 0.225))
"""Gray levels 0..255. Source: fb.resnet.torch, datasets/imagenet.lua, from a sample of ImageNet."""

MOST_COUNTED = 10_000
"""Images of a stream whose pixels decide mean and standard deviation. Source: fb.resnet.torch's were from as many."""

_COUNTED_AT_ONCE = 64
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class FeedKind:
    """A feed before it is made: its class, its images, and what it takes besides the arguments of `Feed`."""

    kind: type[Feed]
    images: Any
    arguments: dict[str, Any] = field(default_factory=dict)


def is_streamed(recipe: Recipe, images: np.ndarray) -> bool:
    """Tell whether a run streams its training images.

    Raises:
        UsageError: it must and may not, or it cannot because they are to be whitened.
    """
    asked = recipe.machine.feed
    if asked == "resident" and recipe.feed.streams:
        raise UsageError(
            "feed='resident': random_resized_crop, color_jitter, eval_size and eval_resize need images as they are on "
            "the disk; use feed='stream', or leave these out"
        )
    streams = asked == "stream" or recipe.feed.streams or lazy(images) is not None
    if streams and recipe.feed.preprocessing == "zca":
        raise UsageError(
            "preprocessing='zca': whitens the whole set in advance, which a stream has no memory for; use "
            "preprocessing='mean_std', or feed='resident'"
        )
    return streams


def feed_kind(recipe: Recipe, images: np.ndarray, device: str, world: World) -> FeedKind:
    """Choose the feed of a run."""
    if not is_streamed(recipe, images):
        return FeedKind(Feed, images)
    options = recipe.feed
    stream = stream_of(images)
    side = options.image_size
    if side and stream.size != (side, side):
        stream = stream.fitted((side, side), None, 0)
    workers = chosen_workers(recipe.machine.workers, device, world.size)
    arguments = {
        "random_resized_crop": options.random_resized_crop,
        "color_jitter": options.color_jitter,
        "workers": workers,
    }
    return FeedKind(StreamFeed, stream, arguments)


def for_evaluation(recipe: Recipe, images: ImageSet, feed: Feed) -> ImageSet:
    """Return validation or test images as a run evaluates them: of a stream scaled and cropped as the recipe says."""
    if not isinstance(feed, StreamFeed):
        return images
    options = recipe.feed
    side = options.eval_size or options.image_size
    size = (side, side) if side else None
    found: Any = stream_of(images.images).fitted(size, options.eval_resize, feed.workers)
    return ImageSet(found, images.labels)


def has_synsets(dataset: Dataset) -> bool:
    """Tell whether all classes are named as ImageNet's are, and in their order."""
    names = dataset.class_names
    return all(map(_SYNSET.fullmatch, names)) and list(names) == sorted(names)


def fit_preprocessing(recipe: Recipe, dataset: Dataset, images: np.ndarray) -> tuple[Preprocessing, list[str]]:
    """Fit the preprocessing to the training images, and say what it was fit to if that is not all of them.

    Raises:
        UsageError: see `is_streamed`.
    """
    is_streamed(recipe, images)
    kind, facts, stream = recipe.feed.preprocessing, dataset.facts, lazy(images)
    if facts is not None:
        return Preprocessing.fit(kind, images, facts.mean, facts.std), []
    if stream is None or kind == "scale":
        return Preprocessing.fit(kind, images), []
    if kind == "mean_std" and stream.channels == 3 and has_synsets(dataset):
        note = "the classes are ImageNet's synsets: its published mean and std are used"
        return Preprocessing.fit(kind, images, IMAGENET_MEAN, IMAGENET_STD), [note]
    chosen: LazyImages = stream
    notes = []
    if len(stream) > MOST_COUNTED:
        chosen = stream[np.array(spread(len(stream), MOST_COUNTED))]
        notes.append(f"mean and std are those of {MOST_COUNTED:,} of {len(stream):,} training images")
    chosen = chosen.fitted(None, None, chosen_workers(recipe.machine.workers, "cuda", 1))  # nothing else is computed
    batches = chosen.batches(_COUNTED_AT_ONCE, leave_out=chosen.skip_unreadable)
    counts = sum(level_counts(batch.numpy()) for batch in track(batches, "counting gray levels"))
    return Preprocessing.fit(kind, images, *statistics_of(np.asarray(counts))), notes
