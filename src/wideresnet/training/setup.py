"""From a recipe to everything that the loop needs: data on the device, network, optimiser, schedule."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes
from wideresnet.base.seeding import seed_of
from wideresnet.data import Dataset, ImageSet
from wideresnet.data.feeds.resident import Feed, hold_out
from wideresnet.data.load import load_for
from wideresnet.data.preprocess import Preprocessing
from wideresnet.distributed.sync_norm import synchronise_norms
from wideresnet.distributed.world import World
from wideresnet.machine.device import make_deterministic, pick_device
from wideresnet.machine.memory import available_memory_bytes
from wideresnet.networks import Network, create
from wideresnet.networks.blocks import draw_depth_from
from wideresnet.networks.cost import cost
from wideresnet.spec.names import is_ambiguous, parse
from wideresnet.spec.recipe import NETWORK_OPTIONS, Recipe
from wideresnet.spec.recipes import resolve
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.preflight.autotune import arrange, settle
from wideresnet.training.schedules import Schedule, make_schedule

SMALLEST_IMAGENET_PX = 112
"""Below it a name that reads both ways means the network for 32x32 images: ImageNet's networks reduce a side 32-fold,
and fewer than 4 positions a side would be left to pool."""


@dataclass(frozen=True)
class Job:
    """A run made ready.

    Attributes:
        recipe: with family and precision resolved.
        feed: the training set on the device.
        validation: what is evaluated after each epoch: the held-out images, or else the test set.
        test: what the result is measured on, after the last epoch.
        data_digest: tells whether a resumed run sees the same data.
        notes: what was decided for the user, one line each.
        world: the processes that train together.
    """

    recipe: Recipe
    device: str
    network: Network
    optimizer: torch.optim.SGD
    schedule: Schedule
    feed: Feed
    preprocessing: Preprocessing
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    dataset_name: str
    data_digest: str
    notes: tuple[str, ...]
    world: World


def resolve_for_data(
    recipe: str, network: str, data: str, overrides: dict[str, Any] | None = None
) -> tuple[Recipe, Recipe, Dataset]:
    """The recipe as it will run, as it would be without overrides, and the data they are for.

    The data is loaded first, because a recipe may depend on what a folder turns out to be: a folder that holds CIFAR-10
    is trained as CIFAR-10.

    Args:
        recipe, network, data, overrides: as for `recipes.resolve`.
    """
    overrides = overrides or {}
    if not is_ambiguous(network):  # what is wrong already is told before the data is read
        parse(network, overrides.get("family"))
    first = resolve(recipe, network, data, overrides)
    pick_device(first.device)
    dataset = load_for(first)
    num_train = max(1, min(len(dataset.train), first.limit or len(dataset.train)) - first.holdout)
    know = {"known_as": dataset.name, "num_train": num_train}
    return resolve(recipe, network, data, overrides, **know), resolve(recipe, network, data, **know), dataset


def prepare(recipe: Recipe, dataset: Dataset, world: World | None = None) -> Job:
    """Put the data on the device and build the network with its first weights.

    Args:
        world: the processes that train together; None: this one alone.

    Raises:
        UsageError: recipe and data do not fit (batch, holdout, limit, padding, ambiguous name).
    """
    world = world or World.single()
    device = pick_device(recipe.device)
    world.use(device)
    if device == "cuda":
        make_deterministic(recipe.deterministic)
    train, validation, notes = _split(recipe, dataset)
    size = (train.images.shape[1], train.images.shape[2])
    family = recipe.family
    if family is None and is_ambiguous(recipe.network):  # the data decides
        family = "cifar" if max(size) < SMALLEST_IMAGENET_PX else "imagenet"
    name = parse(recipe.network, family)
    recipe = dataclasses.replace(recipe, network=str(name), family=name.family)
    scaled = world.scaled(recipe)
    if name.family == "imagenet" and max(size) < SMALLEST_IMAGENET_PX:
        notes.append(f"{name} is made for images of 224x224; these are {size[0]}x{size[1]}")
    notes += _settings_without_effect(recipe, world, device)
    facts = dataset.facts
    if facts and recipe.flip and not facts.mirror:
        notes.append(f"flip is on, but mirrored images of {facts.title} are other images or none: use --no-flip")
    preprocessing = Preprocessing.fit(
        recipe.preprocessing, train.images, facts.mean if facts else None, facts.std if facts else None
    )
    _check_room(recipe, train, device)
    feed = Feed(
        train.images,
        train.labels,
        preprocessing,
        batch_size=scaled.batch_size,
        drop_last=recipe.drop_last,
        padding=recipe.crop_padding,
        padding_mode=recipe.padding_mode,
        flip=recipe.flip,
        seed=recipe.seed,
        device=device,
        rank=world.rank,
        num_ranks=world.size,
    )
    with warnings.catch_warnings(record=True) as caught:  # a network's options without effect are told with the rest
        warnings.simplefilter("always")
        network = build_network(recipe, len(dataset.class_names), train.images.shape[3])
    notes += [str(warning.message) for warning in caught]
    if recipe.accumulate > 1:
        notes.append(
            f"accumulate {recipe.accumulate}: a batch of {recipe.batch_size} is computed in parts of at most "
            f"{-(-recipe.batch_size // recipe.accumulate)} images"
            + ("; batch normalisation's statistics are those of a part" if recipe.norm == "batch" else "")
        )
    _check_smallest_batch(scaled, network, len(train), size, world.size)
    recipe, chosen = _settle_together(recipe, network, device, size, len(train), world)
    notes += chosen
    network = arrange(network.to(device), recipe)
    if world.size > 1:
        notes += _notes_on_processes(recipe)
        draw_depth_from(network, world.depth)
        if recipe.sync_bn:
            synchronise_norms(network)
    return Job(
        recipe=recipe,
        device=device,
        network=network,
        optimizer=make_optimizer(network, recipe),
        schedule=make_schedule(scaled, feed.num_batches),
        feed=feed,
        preprocessing=preprocessing,
        validation=validation,
        test=dataset.test,
        class_names=dataset.class_names,
        dataset_name=dataset.name,
        data_digest=_digest(train, dataset.test),
        notes=(*dataset.notes, *notes),
        world=world,
    )


def build_network(recipe: Recipe, num_classes: int, in_channels: int) -> Network:
    """The recipe's network, its first weights a function of the recipe's seed."""
    options = {name: getattr(recipe, name) for name in NETWORK_OPTIONS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(recipe.seed, "weights"))
        return create(recipe.network, num_classes, family=recipe.family, in_channels=in_channels, **options)


def _split(recipe: Recipe, dataset: Dataset) -> tuple[ImageSet, ImageSet, list[str]]:
    """Training and validation images after --limit and --holdout."""
    train, notes = dataset.train, []
    if recipe.limit is not None and recipe.limit < len(train):
        _, chosen = hold_out(len(train), recipe.limit, recipe.seed)
        train = _take(train, chosen)
        notes.append(f"trained on {len(chosen):,} of {len(dataset.train):,} images (limit)")
    if recipe.holdout == 0:
        return train, dataset.test, notes
    kept, held = hold_out(len(train), recipe.holdout, recipe.seed)
    notes.append(f"{len(held):,} training images are held out for validation; the test set is used once, at the end")
    return _take(train, kept), _take(train, held), notes


def _check_smallest_batch(
    recipe: Recipe, network: Network, num_images: int, size: tuple[int, int], num_processes: int
) -> None:
    """Batch normalisation needs two values a channel: refuse a batch of one image where maps shrink to one position.

    Refuse, too, a last batch with fewer images than processes.
    """
    last = num_images % recipe.batch_size
    smallest = recipe.batch_size if recipe.drop_last or last == 0 else last
    if smallest < num_processes:
        raise UsageError(
            f"batch_size {recipe.batch_size} of {num_images} images leaves a last batch of {smallest}, fewer than the "
            f"{num_processes} processes that share it; use --drop-last or another --batch-size"
        )
    if num_processes > 1 and recipe.sync_bn and recipe.accumulate > smallest // num_processes:  # they go in step
        raise UsageError(
            f"accumulate {recipe.accumulate}: more parts than the {smallest // num_processes} images of a process in "
            f"a batch of {smallest}; use --accumulate {smallest // num_processes} or less"
        )
    if not recipe.sync_bn:
        smallest //= num_processes
    smallest = smallest // min(smallest, recipe.accumulate)
    if smallest > 1 or recipe.norm != "batch":
        return
    *_, height, width = next(
        stage.shape for stage in reversed(cost(network, size, batch_size=2).stages) if len(stage.shape) == 3
    )
    if height * width == 1:
        kind, fix = ("batch", "batch-size") if recipe.accumulate == 1 else ("part", "accumulate")
        raise UsageError(
            f"batch_size {recipe.batch_size} of {num_images} images leaves a {kind} of one, whose last maps are 1x1: "
            f"batch normalisation has nothing to average; use another --{fix}, --drop-last or --norm group"
        )


def _check_room(recipe: Recipe, train: ImageSet, device: str) -> None:
    """Refuse a training set that does not fit beside what is held, before it is put on the device."""
    num, height, width, channels = train.images.shape
    pixels = (height + 2 * recipe.crop_padding) * (width + 2 * recipe.crop_padding)
    if device == "cuda" or recipe.preprocessing == "zca":  # the set without padding is held too, while it is padded
        pixels += height * width if recipe.crop_padding else 0
    needed = num * pixels * channels * (4 if recipe.preprocessing == "zca" else 1)
    available = available_memory_bytes(device)
    if available and needed > available:
        raise UsageError(
            f"{recipe.data}: {num:,} training images of {height}x{width} need {human_bytes(needed)} of memory on "
            f"{device}, {human_bytes(available)} is available; use --limit {int(num * available / needed)} or less"
        )


def _take(images: ImageSet, index: np.ndarray) -> ImageSet:
    return ImageSet(np.ascontiguousarray(images.images[index]), images.labels[index])


def _digest(train: ImageSet, test: ImageSet) -> str:
    """A digest of all labels and of a sample of the pixels."""
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(part.labels.tobytes())
        digest.update(np.ascontiguousarray(part.images[:: max(1, len(part) // 1000)]).tobytes())
    return digest.hexdigest()[:16]


def _settle_together(
    recipe: Recipe, network: Network, device: str, size: tuple[int, int], num_images: int, world: World
) -> tuple[Recipe, list[str]]:
    """`settle`, measured by the first of several processes for all."""
    if world.size == 1:
        return settle(recipe, network, device, size, num_images)
    if recipe.sync_bn:
        if recipe.kernels == "winograd":
            raise UsageError("kernels winograd: they do not know --sync-bn; use --kernels pytorch")
        recipe = dataclasses.replace(recipe, kernels="pytorch")
    recipe = dataclasses.replace(recipe, threads=recipe.threads or torch.get_num_threads())
    settled, notes = recipe, []
    if world.is_first:  # with a share of a batch, which is what each process will have to do
        share = -(-world.scaled(recipe).batch_size // world.size)
        own = dataclasses.replace(recipe, batch_size=share, accumulate=min(recipe.accumulate, share))
        settled, notes = settle(own, network, device, size, num_images)
        settled = dataclasses.replace(settled, batch_size=recipe.batch_size, accumulate=recipe.accumulate)
    values, notes = world.agree((settled.to_json(), notes))
    return Recipe.from_json(values), notes


def _notes_on_processes(recipe: Recipe) -> list[str]:
    """What several processes do otherwise than one."""
    notes = []
    if recipe.norm == "batch" and not recipe.sync_bn:
        notes.append(
            "each process normalises by its own share of a batch, and the running statistics are the first process's; "
            "--sync-bn normalises by the whole batch, as one process does"
        )
    if recipe.dropout:
        notes.append("each process draws its own dropout masks: other ones than a single process would draw")
    return notes


def _settings_without_effect(recipe: Recipe, world: World, device: str) -> list[str]:
    """A line for every setting that differs from its default and changes nothing in this recipe."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    idle: dict[str, tuple[str, ...]] = {}
    if recipe.schedule == "steps":
        idle["with schedule steps"] = ("warmup_fraction",)
    else:
        idle["with schedule one_cycle"] = ("lr_drop_epochs", "lr_drop_factor", "lr_drop_at")
    if world.size == 1:
        idle["in a single process"] = ("batch_rule", "sync_bn")
    elif recipe.norm != "batch":
        idle["without batch normalisation"] = ("sync_bn",)
    if recipe.crop_padding == 0:
        idle["without a crop"] = ("padding_mode",)
    if device == "cpu":
        idle["on a CPU, whose bits are always the same"] = ("deterministic",)
    if recipe.weight_decay == 0:
        idle["without weight decay"] = ("weight_decay_on",)
    notes = [
        f"no drop of lr at epoch {epoch}: the run has {recipe.epochs} epochs"
        for epoch in recipe.lr_drop_epochs
        if recipe.schedule == "steps" and epoch > recipe.epochs
    ]
    return notes + [
        f"{name} {getattr(recipe, name)} has no effect {why}"
        for why, names in idle.items()
        for name in names
        if getattr(recipe, name) != defaults[name]
    ]
