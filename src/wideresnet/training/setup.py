"""What a run consists of before its first step: images on the device, the network, and notes about decisions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes
from wideresnet.base.seeding import seed_of
from wideresnet.data import Dataset, ImageSet
from wideresnet.data.dataset import digest
from wideresnet.data.feeds.later import Later
from wideresnet.data.feeds.lazy import lazy
from wideresnet.data.feeds.resident import Feed, split_rows
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.data.trivial_augment import LARGEST_SHIFT_PX
from wideresnet.distributed.world import World
from wideresnet.machine.cpu import describe_quota
from wideresnet.machine.memory import available_memory_bytes
from wideresnet.networks import Network, create
from wideresnet.networks.cost import cost
from wideresnet.spec.execution import Execution
from wideresnet.spec.fields import show_value
from wideresnet.spec.names import parse
from wideresnet.spec.recipe import Recipe
from wideresnet.training.balance import class_counts, class_weights
from wideresnet.training.choose_feed import feed_kind, fit_preprocessing, for_evaluation
from wideresnet.training.optimizer import lr_scales, muon_kernels
from wideresnet.training.resolve import SMALLEST_IMAGENET_PX
from wideresnet.training.schedules import Schedule, shared_batch
from wideresnet.weights.hub import Weights


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Attributes:
        feed: the training set on the device.
        preprocessing: from pixels to what the network takes.
        validation: evaluated after each epoch: the held-out images, or else the test set.
        test: what the result is measured on, after the last epoch.
        class_names: in the order of the network's outputs.
        name: of the data set.
        digest: tells whether a resumed run sees the same data.
        notes: what was decided for the user, one line each.
    """

    feed: Feed
    preprocessing: Preprocessing
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    name: str
    digest: str
    notes: tuple[str, ...]

    def weights(self, network: Network) -> Weights:
        """Return a network with what it needs to read images as the test images are read."""
        test = lazy(self.test.images)
        size = self.feed.size if test is None else test.size
        return Weights(
            network, self.preprocessing, self.class_names, size, resize=None if test is None else test.resize
        )


@dataclass(frozen=True)
class Job:
    """A run made ready.

    Attributes:
        recipe: what was asked for, final.
        execution: what the machine decided.
        network: in the execution's layout, on its device.
        forward: computes the network's forward pass in training.
        notes: what was decided for the user, one line each.
        world: the processes that train together.
    """

    recipe: Recipe
    execution: Execution
    data: TrainingData
    network: Network
    forward: nn.Module
    optimizer: torch.optim.SGD
    schedule: Schedule
    notes: tuple[str, ...]
    world: World

    @property
    def class_weights(self) -> Tensor | None:
        """How much an image of each class counts in the loss, float32 (classes,); None if all count alike."""
        is_weighted = self.recipe.feed.balance == "weights"
        return class_weights(self.data.feed, len(self.data.class_names)) if is_weighted else None


def build_feed(
    recipe: Recipe, dataset: Dataset, device: str, world: World, preprocessing: Preprocessing | None = None
) -> TrainingData:
    """Put the training set on the device and split off the validation images.

    Args:
        preprocessing: None to fit the recipe's to the training images.

    Raises:
        UsageError: recipe and data do not fit each other (batch, holdout, limit, padding), or the set does not fit
            into memory.
    """
    train, validation, notes = _split(recipe, dataset)
    facts, feed = dataset.facts, recipe.feed
    if facts and feed.flip and not facts.mirror:
        notes.append(f"flip is on, but mirrored images of {facts.title} are other images or none: use flip=False")
    height, width = train.images.shape[1:3]
    if feed.auto_augment == "trivial" and min(height, width) < LARGEST_SHIFT_PX:
        notes.append(
            f"auto_augment trivial shifts images by up to {LARGEST_SHIFT_PX} pixels, which leaves nothing of some of "
            f"these {height}x{width}"
        )
    if preprocessing is None:
        preprocessing, told = fit_preprocessing(recipe, dataset, train.images)
        notes += told
    preprocessing = replace(preprocessing, white=dataset.white)
    batch_size, _ = shared_batch(recipe.schedule, world.size)
    later = Later(feed.pca_lighting, feed.random_erasing, feed.mixup, feed.cutmix, len(dataset.class_names))
    how = feed_kind(recipe, train.images, device, world)
    if not issubclass(how.kind, StreamFeed):
        _check_room(recipe, train, device)
    made = how.kind(
        how.images,
        train.labels,
        preprocessing,
        batch_size=batch_size,
        drop_last=feed.drop_last,
        padding=feed.crop_padding,
        padding_mode=feed.padding_mode,
        flip=feed.flip,
        auto_augment=feed.auto_augment,
        cutout=feed.cutout,
        later=later,
        repeats=feed.repeated_augmentation,
        balanced=feed.balance == "sampling",
        seed=recipe.seed,
        device=device,
        rank=world.rank,
        num_ranks=world.size,
        **how.arguments,
    )
    _check_smallest_batch(recipe, batch_size, len(train), world.size)
    return TrainingData(
        feed=made,
        preprocessing=preprocessing,
        validation=for_evaluation(recipe, validation, made),
        test=for_evaluation(recipe, dataset.test, made),
        class_names=dataset.class_names,
        name=dataset.name,
        digest=digest(train, dataset.test),
        notes=(*dataset.notes, *notes),
    )


def build_network(recipe: Recipe, num_classes: int, in_channels: int) -> tuple[Network, list[str]]:
    """Return the recipe's network, its initial weights a function of the recipe's seed, and notes on its options."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(seed_of(recipe.seed, "weights"))
        network = create(
            recipe.network,
            num_classes,
            family=recipe.family,
            in_channels=in_channels,
            **recipe.network_options.to_json(),
        )
    if recipe.optimizer.freeze != "none":
        network.freeze(recipe.optimizer.freeze)
    return network, [str(warning.message) for warning in caught]


def check_smallest_part(recipe: Recipe, data: TrainingData, network: Network, num_processes: int) -> None:
    """Refuse a batch or part of one image if the last maps shrink to one position.

    Batch normalization needs two values per channel.

    Raises:
        UsageError: naming the batch and the fix.
    """
    schedule, feed = recipe.schedule, data.feed
    smallest = _smallest_batch(recipe, feed.batch_size, feed.num_images)
    if not schedule.sync_bn:
        smallest //= num_processes
    smallest = smallest // min(smallest, schedule.accumulate)
    if smallest > 1 or recipe.network_options.norm != "batch":
        return
    stages = reversed(cost(network, feed.size, batch_size=2).stages)
    *_, height, width = next(stage.shape for stage in stages if len(stage.shape) == 3)
    if height * width == 1:
        kind, fix = ("batch", "batch_size") if schedule.accumulate == 1 else ("part", "accumulate")
        raise UsageError(
            f"batch_size={feed.batch_size}: of {feed.num_images} images it leaves a {kind} of one, whose last maps are "
            f"1x1: batch normalization has nothing to average; use another {fix}=, drop_last=True or norm='group'"
        )


def notes_on(recipe: Recipe, network: Network, data: TrainingData, execution: Execution, world: World) -> list[str]:
    """Say what is unusual about a run: one line each."""
    notes = []
    name, (height, width), schedule = parse(recipe.network, recipe.family), data.feed.size, recipe.schedule
    if name.family == "imagenet" and max(height, width) < SMALLEST_IMAGENET_PX:
        notes.append(f"{name} is made for images of 224x224; these are {height}x{width}")
    notes += _settings_without_effect(recipe, world, execution.device)
    if execution.device == "cuda" and execution.precision == "fp32" and _has_tf32():
        notes.append(
            "fp32: this GPU's convolutions round their inputs to TF32 (10 bits of mantissa), PyTorch's default"
        )
    if schedule.accumulate > 1:
        notes.append(
            f"accumulate {schedule.accumulate}: a batch of {schedule.batch_size} is computed in parts of at most "
            f"{ceil_div(schedule.batch_size, schedule.accumulate)} images"
            + ("; batch normalization uses the statistics of each part" if network.options["norm"] == "batch" else "")
        )
    if world.size > 1:
        notes += _notes_on_processes(recipe)
    notes += notes_on_learning(recipe, network, data)
    if quota := describe_quota(torch.get_num_threads()):
        notes.append(quota)
    return notes


def notes_on_learning(recipe: Recipe, network: Network, data: TrainingData) -> list[str]:
    """Say what does not learn, what learns slower, and how much an image counts."""
    notes, options, balance = [], recipe.optimizer, recipe.feed.balance
    if network.frozen:
        every = list(network.parameters())
        num = sum(parameter.numel() for parameter in every if not parameter.requires_grad)
        stages = network.frozen[0] if len(network.frozen) == 1 else f"{network.frozen[0]} to {network.frozen[-1]}"
        notes.append(
            f"frozen: {stages}, {num:,} of {sum(p.numel() for p in every):,} parameters, which keep their bits"
        )
    if options.muon_lr:
        num = sum(kernel.numel() for kernel in muon_kernels(network))
        notes.append(
            f"Muon updates {num:,} of {sum(p.numel() for p in network.parameters()):,} parameters, SGD the others"
        )
    if options.layer_lr_decay != 1:
        learning = [name for name in network.stage_modules() if name not in ("pooled", *network.frozen)]
        scales = lr_scales(network, options.layer_lr_decay)
        notes.append(f"lr times {', '.join(f'{scales[name]:.3g} in {name}' for name in learning)}")
    if balance != "none":
        counts = class_counts(data.feed, len(data.class_names))
        counts = counts[counts > 0]
        size = f"classes have {int(counts.min()):,} to {int(counts.max()):,} training images"
        how = f"an epoch has {len(data.feed.labels) / len(counts):,.0f} of each, drawn from them"
        if balance == "weights":
            ratio = float(counts.max()) / float(counts.min())
            how = f"one of the smallest counts as much as {ratio:.3g} of the largest, also in train_loss"
        notes.append(f"balance {balance}: {size}; {how}")
    return notes


def _has_tf32() -> bool:
    """Whether convolutions in fp32 use the matrix units of GPUs since Ampere."""
    return torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability() >= (8, 0)


def _split(recipe: Recipe, dataset: Dataset) -> tuple[ImageSet, ImageSet, list[str]]:
    """Return training and validation images after `limit` and `holdout`, and notes."""
    train, notes = dataset.train, []
    kept, held = split_rows(len(train), recipe.feed.limit, recipe.feed.holdout, recipe.seed)
    if (num := len(kept) + len(held)) < len(train):
        notes.append(f"trained on {num:,} of {len(train):,} images (limit)")
    if len(held):
        notes.append(
            f"{len(held):,} training images are held out for validation; the test set is used once, at the end"
        )
    is_whole = len(kept) == len(train)
    return train if is_whole else _take(train, kept), _take(train, held) if len(held) else dataset.test, notes


def _smallest_batch(recipe: Recipe, batch_size: int, num_images: int) -> int:
    """Return the size of an epoch's smallest batch, all processes together."""
    last = num_images % batch_size
    return batch_size if recipe.feed.drop_last or last == 0 else last


def _check_smallest_batch(recipe: Recipe, batch_size: int, num_images: int, num_processes: int) -> None:
    """Refuse a last batch with fewer images than processes, or than parts if all must compute them in step."""
    smallest = _smallest_batch(recipe, batch_size, num_images)
    if smallest < num_processes:
        raise UsageError(
            f"batch_size={batch_size}: of {num_images} images it leaves a last batch of {smallest}, fewer than the "
            f"{num_processes} processes that share it; use drop_last=True or another batch_size="
        )
    schedule, share = recipe.schedule, smallest // num_processes
    if num_processes > 1 and schedule.sync_bn and schedule.accumulate > share:
        raise UsageError(
            f"accumulate={schedule.accumulate}: more parts than the {share} images of a process in a batch of "
            f"{smallest}; use accumulate={share} or less"
        )


def _check_room(recipe: Recipe, train: ImageSet, device: str) -> None:
    """Refuse a training set that does not fit into the memory that is left, before it is put on the device."""
    num, height, width, channels = train.images.shape
    padding, is_zca = recipe.feed.crop_padding, recipe.feed.preprocessing == "zca"
    pixels = (height + 2 * padding) * (width + 2 * padding)
    if device == "cuda" or is_zca:  # while it is padded, the set without padding is in memory too
        pixels += height * width if padding else 0
    needed = num * pixels * channels * (4 if is_zca else 1)
    available = available_memory_bytes(device)
    if available and needed > available:
        raise UsageError(
            f"{recipe.data}: {num:,} training images of {height}x{width} need {human_bytes(needed)} of memory on "
            f"{device}, {human_bytes(available)} is available; use limit={int(num * available / needed)} or less"
        )


def _take(images: ImageSet, index: np.ndarray) -> ImageSet:
    taken = images.images[index]
    return ImageSet(taken if lazy(taken) is not None else np.ascontiguousarray(taken), images.labels[index])


def _notes_on_processes(recipe: Recipe) -> list[str]:
    """Say what several processes do differently from one."""
    notes = []
    if recipe.network_options.norm == "batch" and not recipe.schedule.sync_bn:
        notes.append(
            "each process normalizes by its own share of a batch, and the running statistics are the first process's; "
            "sync_bn=True normalizes by the whole batch, as one process does"
        )
    if recipe.network_options.dropout:
        notes.append("each process draws its own dropout masks, not those that a single process would draw")
    if recipe.optimizer.sam_rho:
        notes.append("each process perturbs the weights by the gradient of its own share of a batch (sam_rho)")
    return notes


def _settings_without_effect(recipe: Recipe, world: World, device: str) -> list[str]:
    """Name every setting that differs from its default and changes nothing in this recipe."""
    schedule, values = recipe.schedule, recipe.values()
    defaults = Recipe().values()
    idle: dict[str, tuple[str, ...]] = {}
    if schedule.kind == "steps":
        idle["with schedule steps"] = ("warmup_fraction",)
    else:
        idle[f"with schedule {schedule.kind}"] = ("lr_drop_epochs", "lr_drop_factor", "lr_drop_at")
    if world.size == 1:
        idle["in a single process"] = ("batch_rule", "sync_bn")
    elif recipe.network_options.norm != "batch":
        idle["without batch normalization"] = ("sync_bn",)
    if recipe.feed.crop_padding == 0:
        idle["without a crop"] = ("padding_mode",)
    if device == "cpu":
        idle["on a CPU, whose bits are always the same"] = ("deterministic",)
    if recipe.optimizer.weight_decay == 0:
        idle["without weight decay"] = ("weight_decay_on",)
    if recipe.init_from is not None:
        idle["when starting from trained weights"] = ("init", "bn_scale")
    notes = []
    late = [epoch for epoch in schedule.lr_drop_epochs if epoch > schedule.epochs]
    if schedule.kind == "steps" and late:
        late_epochs = f"epoch{'s' * (len(late) > 1)} {', '.join(map(str, late))}"
        notes.append(
            f"no drop of lr at {late_epochs}: the run has {schedule.epochs} epoch{'s' * (schedule.epochs > 1)}"
        )
    for why, keys in idle.items():
        if changed := [f"{key} {show_value(values[key])}" for key in keys if values[key] != defaults[key]]:
            *others, last = changed
            notes.append(
                f"{', '.join(others)} and {last} have no effect {why}" if others else f"{last} has no effect {why}"
            )
    return notes
