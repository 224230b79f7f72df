"""What a detection run consists of before its first step: checked data, the detector, notes about decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchvision.models.detection import FasterRCNN, RetinaNet

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.base.seeding import seed_of
from wideresnet.data.feeds.workers import chosen_workers
from wideresnet.detection.coco import CocoSet, find_split, read_split, summary
from wideresnet.detection.feed import DetectionFeed
from wideresnet.detection.model import body_of, freeze_stages, set_precision
from wideresnet.detection.step import LOSSES, WarmedUp
from wideresnet.detection.weights import (
    FROM_RECIPE,
    Architecture,
    Backbone,
    Detector,
    load_backbone,
    read_backbone,
    read_detector,
)
from wideresnet.distributed.world import World
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.spec.detection import DetectionFolder, DetectionRecipe
from wideresnet.spec.execution import Execution
from wideresnet.spec.names import parse
from wideresnet.training.configure import configure
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.schedules import Schedule, Steps, shared_batch
from wideresnet.weights.checkpoint import list_checkpoints

FROZEN_STAGES = 2
"""With weights, the stem and the first group stay as they are. Source: torchvision, trainable_backbone_layers=3."""

SHOWN_DIGITS = 12
"""Of a SHA-256, in messages."""


@dataclass(frozen=True)
class DetectionData:
    """The images of a run.

    Attributes:
        feed: the training images.
        evaluated: the split that is evaluated.
        categories: (id, name), in the order of the labels.
        name: of the data set.
        digest: tells whether a resumed run sees the same annotations.
        notes: what was found and decided.
    """

    feed: DetectionFeed
    evaluated: CocoSet
    categories: tuple[tuple[int, str], ...]
    name: str
    digest: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DetectionJob:
    """A run made ready; `training.loop.Loop` and the plan read it.

    Attributes:
        recipe: final.
        execution: what the machine decided.
        network: the detector, on its device.
        architecture: what it was built from.
        losses: names of the parts of its loss.
        notes: what was decided for the user, one line each.
    """

    recipe: DetectionRecipe
    execution: Execution
    data: DetectionData
    network: FasterRCNN | RetinaNet
    architecture: Architecture
    optimizer: torch.optim.SGD
    schedule: Schedule
    notes: tuple[str, ...]
    world: World

    @property
    def losses(self) -> Sequence[str]:
        """Names of the parts of the loss."""
        return LOSSES[self.recipe.detector]

    def detector(self, model: FasterRCNN | RetinaNet) -> Detector:
        """Return a model with what it needs to read images."""
        return Detector(model, self.architecture, self.data.categories)


def read_data(recipe: DetectionRecipe) -> tuple[CocoSet, CocoSet, list[str]]:
    """Read and check the two splits.

    Returns:
        What is trained on, what is evaluated, and notes.

    Raises:
        UsageError: there is no such split, or it has other categories.
        DataError: the annotations or images are not usable.
    """
    with progress.status("reading and checking the annotations"):
        train = read_split(recipe.data, "train", skip_unreadable=recipe.skip_unreadable)
        notes = train.notes()
        if recipe.eval_on == "train":
            notes.append("evaluated on the images that it is trained on: this shows what it can learn, nothing more")
            return train, train, notes
        if find_split(recipe.data, "val") is None:
            raise UsageError(f"data={recipe.data}: no val split to evaluate; add one, or use eval_on='train'")
        val = read_split(recipe.data, "val", skip_unreadable=recipe.skip_unreadable)
    if val.categories != train.categories:
        raise UsageError(
            f"data={recipe.data}: the categories of {val.source.name} are not those of {train.source.name}; give both "
            "the same list"
        )
    train = replace(train, truth={})  # of COCO's 860,000 boxes it takes a gigabyte, and nothing evaluates it
    return train, val, [*notes, *val.notes()]


def prepare(recipe: DetectionRecipe, world: World, *, begun: DetectionFolder | None = None) -> DetectionJob:
    """Make a run ready. Nothing is written.

    Args:
        world: the processes that train together.
        begun: the run that is continued; None for a new one.

    Raises:
        UsageError, DataError: recipe, data and weights are not usable together.
    """
    device = pick_device(recipe.device)
    world.use(device)
    parse(recipe.backbone, "imagenet")
    train, evaluated, notes = read_data(recipe)
    recipe, architecture, backbone = _architecture(recipe, begun)
    execution = Execution(
        device=device, precision=pick_precision(recipe.precision, device),
        threads=recipe.threads or torch.get_num_threads(),
        layout="channels_last" if device == "cuda" else "contiguous",
    )  # fmt: skip
    recipe = recipe.replace(precision=execution.precision, threads=execution.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(recipe.seed, "weights"))
        model = architecture.build(len(train.categories))
    if backbone:
        load_backbone(model, backbone)
        notes.append(f"the backbone starts from {backbone.name} (SHA-256 {backbone.sha256[:SHOWN_DIGITS]}...)")
    freeze_stages(body_of(model), recipe.frozen_stages or 0)
    set_precision(model, execution.precision)
    configure(model.to(device), execution)  # type: ignore[arg-type]  # any module
    torch.backends.cudnn.benchmark = False  # batches have many sizes, and each would be searched for anew
    batch_size, lr = shared_batch(recipe.schedule, world.size)
    feed = DetectionFeed(
        train, batch_size=batch_size, min_size=recipe.min_size, max_size=recipe.max_size, flip=recipe.flip,
        scale_jitter=recipe.scale_jitter, aspect_groups=recipe.aspect_groups, seed=recipe.seed, device=device,
        workers=chosen_workers(recipe.workers, device, world.size), skip_unreadable=recipe.skip_unreadable,
        rank=world.rank, num_ranks=world.size,
    )  # fmt: skip
    drops = Steps(lr, recipe.lr_drop_factor, recipe.lr_drop_epochs, "start", False, feed.num_batches)
    name = Path(recipe.data).resolve().name
    data = DetectionData(
        feed, evaluated, train.categories, name, f"{train.digest}{evaluated.digest}",
        (f"training: {summary(train)}; evaluation: {summary(evaluated)}",),
    )  # fmt: skip
    return DetectionJob(
        recipe=recipe,
        execution=execution,
        data=data,
        network=model,
        architecture=architecture,
        optimizer=make_optimizer(model, recipe.optimizer),
        schedule=WarmedUp(drops, min(recipe.warmup_steps, max(1, recipe.epochs * feed.num_batches - 1))),
        notes=(*notes, *_notes(recipe, backbone, world)),
        world=world,
    )


def _architecture(
    recipe: DetectionRecipe, begun: DetectionFolder | None
) -> tuple[DetectionRecipe, Architecture, Backbone | None]:
    """Return the final recipe, what the detector is built from, and the weights that its backbone starts from."""
    if begun and begun.config.is_file() and list_checkpoints(begun.checkpoint):  # which hold newer weights
        return recipe, read_detector(begun.path).architecture, None
    backbone = read_backbone(recipe.init_from) if recipe.init_from else None
    norm, stages = recipe.norm, recipe.frozen_stages
    if norm == "auto":
        norm = "group" if backbone is None or backbone.norm == "group" else "frozen"
    if backbone and (norm == "group") != (backbone.norm == "group"):
        raise UsageError(
            f"norm={norm!r}: the weights of {backbone.name} have {backbone.norm} normalization; use "
            + ("norm='group'" if backbone.norm == "group" else "norm='frozen' or norm='batch'")
        )
    if stages is None:
        stages = FROZEN_STAGES if backbone else 0
    recipe = recipe.replace(backbone=str(parse(recipe.backbone, "imagenet")), norm=norm, frozen_stages=stages)
    values = {key: getattr(recipe, key) for key in FROM_RECIPE}
    if backbone is None:
        return recipe, Architecture(recipe.backbone, norm, values), None
    if recipe.init_sha256 not in (None, backbone.sha256):
        raise UsageError(
            f"init_from={backbone.name}: has the SHA-256 {backbone.sha256[:SHOWN_DIGITS]}..., but the recipe was made "
            f"with {str(recipe.init_sha256)[:SHOWN_DIGITS]}...; put those weights there, or give init_from= anew"
        )
    recipe = recipe.replace(init_from=recipe.init_from, init_sha256=backbone.sha256)
    return recipe, Architecture(recipe.backbone, norm, values, backbone.mean, backbone.std, backbone.options), backbone


def _notes(recipe: DetectionRecipe, backbone: Backbone | None, world: World) -> list[str]:
    """Say what is unusual about a run."""
    notes = []
    if backbone is None and recipe.init_from is None:
        notes.append(
            "the backbone starts from random weights, with group normalization that is trained; COCO's usual results "
            "need weights from ImageNet: --from"
            if recipe.norm == "group"
            else f"the backbone starts from random weights, normalization {recipe.norm}"
        )
    if recipe.norm == "batch" and recipe.batch_size // world.size < 8:
        notes.append(
            f"norm batch: statistics of {recipe.batch_size // world.size} images per process are noisy; use "
            "norm='group' or norm='frozen'"
        )
    if world.size > 1:
        notes.append("each process samples anchors and regions of its own share, so its number changes the result")
    return notes
