"""What a detection run is: a frozen `DetectionRecipe`, its named recipes with their sources, and its run folder."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import nearest
from wideresnet.spec.fields import check_fields, option
from wideresnet.spec.files import parse_json, read_json
from wideresnet.spec.options import OptimizerOptions, ScheduleOptions
from wideresnet.spec.record import RunFolder

TASK = "detection"
"""The value of `task` in `recipe.json`, which tells these runs from those of `wrn train`."""

VISION = "torchvision's references/detection"
DETECTRON = "Detectron's 1x schedule: 90,000 steps of 16 images"


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe:
    """What was asked for; `recipe.json` of a detection run holds it flat, and is enough to run it again.

    Raises:
        UsageError: a value outside its field's range or choices, naming the field, the value and the rule.
    """

    backbone: str = option("WRN-34-2", "name of the backbone, one of ImageNet's networks")
    data: str = option("", "COCO's folder, or any folder with images and COCO's JSON")
    recipe: str = option("reference", "name of the recipe that these values started from")
    init_from: str | None = option(
        None,
        "weights of the backbone: a classification run, a weights folder, or a state dict of torchvision's",
        "own choice; the paper starts from ImageNet's weights",
    )
    init_sha256: str | None = option(None, "what the SHA-256 of that file must be", "own choice")

    detector: str = option(
        "faster_rcnn",
        "faster_rcnn: two stages (Ren et al. 2015); retinanet: one stage (Lin et al. 2017b)",
        "own choice; the paper has MultiPathNet, see docs/detection.md",
        choices=("faster_rcnn", "retinanet"),
    )
    norm: str = option(
        "auto",
        "normalization of the backbone: frozen (statistics, scale and shift as in the weights), batch (trained), group "
        "(trained, independent of the batch); auto: frozen with weights, group without",
        "frozen: torchvision's detection.faster_rcnn; group: He et al. 2019, Rethinking ImageNet Pre-training",
        choices=("auto", "frozen", "batch", "group"),
    )
    frozen_stages: int | None = option(
        None,
        "stages of the backbone, from the stem on, that are not trained (none: 2 with weights, 0 without)",
        "torchvision's trainable_backbone_layers=3",
        low=0,
        high=5,
    )
    fpn_channels: int = option(256, "channels of the feature pyramid", "Lin et al. 2017a", low=8, high=1024)
    anchor_size: int = option(
        32, "side of the smallest anchors, px; it doubles at each level", "Lin et al. 2017a", low=4, high=256
    )
    proposals: int = option(
        1000,
        "faster_rcnn: proposals kept per image in evaluation, twice as many in training",
        VISION,
        low=10,
        high=10_000,
    )
    regions: int = option(
        512, "faster_rcnn: regions per image on which the second stage is trained", VISION, low=8, high=4096
    )
    min_size: int = option(800, "shorter side to which images are scaled, px", VISION, low=32, high=4096)
    max_size: int = option(1333, "longer side that images may then have, px", VISION, low=32, high=8192)

    epochs: int = option(26, "passes over the training images", VISION, low=1)
    batch_size: int = option(16, "images per step, of all processes together", VISION + ", 8 GPUs with 2 each", low=1)
    batch_rule: str = option(
        "global",
        "with several processes: global: they share batch_size; linear: each has batch_size, and lr is multiplied by "
        "their number",
        "linear: Goyal et al. 2017",
        choices=("global", "linear"),
    )
    lr: float = option(0.02, "learning rate", VISION, low=0)
    lr_drop_epochs: tuple[int, ...] = option((17, 23), "epochs, counted from 1, at whose start lr drops", VISION, low=1)
    lr_drop_factor: float = option(0.1, "factor of lr at a drop", VISION, low=0, high=1)
    warmup_steps: int = option(1000, "steps in which lr rises from a thousandth", VISION + ", engine.py", low=0)
    momentum: float = option(0.9, "momentum of SGD", VISION, low=0, high=1)
    weight_decay: float = option(1e-4, "factor of the L2 penalty", VISION, low=0)
    clip_grad_norm: float = option(
        0.0, "scale the gradient down to at most this norm over all parameters; 0: off", "Pascanu et al. 2013", low=0
    )

    flip: bool = option(True, "mirror half of the images left-right, with their boxes", VISION)
    scale_jitter: float = option(
        0.0,
        "draw the shorter side between min_size less this share and min_size; 0: off",
        "Detectron2's 640 to 800 px are 0.2",
        low=0,
        below=1,
    )
    aspect_groups: int = option(
        3,
        "images of a step have similar aspect ratios: bins per factor of two; 0: off",
        VISION + ", --aspect-ratio-group-factor",
        low=0,
        high=100,
    )
    eval_every: int = option(1, "epochs between evaluations; the last is always evaluated", VISION, low=1)
    eval_on: str = option(
        "val", "the split that is evaluated; train shows whether a set can be learned", "own choice",
        choices=("val", "train"),
    )  # fmt: skip
    skip_unreadable: bool = option(
        False, "leave out images that are missing or cannot be read (listed) instead of stopping", "own choice"
    )

    seed: int = option(0, "decides initial weights, order, augmentation and sampled regions", "own choice", low=0)
    device: str = option("auto", "auto: cuda if there is one, else cpu", "own choice", choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "auto", "of backbone and pyramid; auto: bf16 on a GPU that has it, else fp32", "own choice",
        choices=("auto", "fp32", "bf16"),
    )  # fmt: skip
    threads: int | None = option(None, "threads of the CPU (none: all)", "own choice", low=1, high=1024)
    workers: int | None = option(
        None, "processes that decode images (none: by the CPUs)", "own choice", low=0, high=256
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_size < self.min_size:
            raise UsageError(
                f"max_size={self.max_size}: below min_size={self.min_size}; use max_size={self.min_size} or more"
            )
        if self.norm == "frozen" and self.init_from is None:
            raise UsageError(
                "norm='frozen': needs the statistics of trained weights; name them with init_from=, or use norm='group'"
            )
        if self.init_sha256 is not None and self.init_from is None:
            raise UsageError(f"init_sha256={self.init_sha256}: is of the weights that init_from= names; give both")
        assert self.schedule  # checks what it shares with classification, such as rising drops

    @property
    def schedule(self) -> ScheduleOptions:
        """The schedule as the shared machinery reads it."""
        return ScheduleOptions(
            epochs=self.epochs, batch_size=self.batch_size, batch_rule=self.batch_rule, lr=self.lr,
            lr_drop_epochs=self.lr_drop_epochs, lr_drop_factor=self.lr_drop_factor,
        )  # fmt: skip

    @property
    def optimizer(self) -> OptimizerOptions:
        """The optimizer as the shared machinery reads it; torchvision's references use plain momentum."""
        return OptimizerOptions(
            momentum=self.momentum, nesterov=False, weight_decay=self.weight_decay,
            clip_grad_norm=self.clip_grad_norm, reset_momentum_at_drops=False,
        )  # fmt: skip

    def replace(self, **values: Any) -> DetectionRecipe:
        """Return the recipe with other values.

        Raises:
            UsageError: a field that does not exist, naming the nearest, or a value that it refuses.
        """
        if "init_from" in values:
            values = {"init_sha256": None, **values}
        for key in values:
            if key not in FIELDS:
                raise UsageError(f"recipe field {key!r} does not exist; {nearest(key, FIELDS)}")
        return dataclasses.replace(self, **values)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values; `from_json` is the inverse."""
        return {"task": TASK, **{key: _plain(getattr(self, key)) for key in FIELDS}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DetectionRecipe:
        """Build a recipe from the values of a `recipe.json`.

        Raises:
            UsageError: it is not of a detection run, or as for `replace`.
        """
        if values.get("task") != TASK:
            raise UsageError("not the recipe of a detection run: it lacks 'task': 'detection'")
        return cls().replace(**{key: value for key, value in values.items() if key != "task"})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(DetectionRecipe)}
"""Every field by its name."""

GROUPS: dict[str, tuple[str, ...]] = {
    "what": ("backbone", "data", "recipe", "init_from", "init_sha256"),
    "detector": (
        "detector", "norm", "frozen_stages", "fpn_channels", "anchor_size", "proposals", "regions", "min_size",
        "max_size",
    ),
    "schedule": (
        "epochs", "batch_size", "batch_rule", "lr", "lr_drop_epochs", "lr_drop_factor", "warmup_steps", "momentum",
        "weight_decay", "clip_grad_norm",
    ),
    "feed": ("flip", "scale_jitter", "aspect_groups", "eval_every", "eval_on", "skip_unreadable"),
    "machine": ("seed", "device", "precision", "threads", "workers"),
}  # fmt: skip
"""The fields as people see them: groups of flags, rows of the announcement and the page."""

MAY_CHANGE = ("device", "threads", "workers")
"""What may differ when a run is resumed."""


def reference(backbone: str, data: str, detector: str = "faster_rcnn") -> DetectionRecipe:
    """Return the schedule of torchvision's own Faster R-CNN and RetinaNet: 26 epochs of COCO, lr drops after 16 and 22.

    Source: torchvision's references/detection, README.md, train.py and engine.py; lr 0.01 for RetinaNet.
    """
    lr = 0.01 if detector == "retinanet" else 0.02
    return DetectionRecipe(backbone=backbone, data=data, recipe="reference", detector=detector, lr=lr)


def one_x(backbone: str, data: str, detector: str = "faster_rcnn") -> DetectionRecipe:
    """Return the same with the schedule called 1x: 12 epochs, lr drops after 8 and 11.

    Source: Detectron, 90,000 steps of 16 images with drops at 60,000 and 80,000: of 117,266 images that is 12.3 epochs,
    8.2 and 10.9.
    """
    base = reference(backbone, data, detector)
    return base.replace(recipe="1x", epochs=12, lr_drop_epochs=(9, 12))


def tiny(backbone: str, data: str, detector: str = "faster_rcnn") -> DetectionRecipe:
    """Return what teaches a small set to a small network in the better part of an hour on two CPU cores.

    Images are a quarter of COCO's size, and so are the anchors; without jitter and mirrored images, since few images
    are to be learned; the gradient is clipped, since a network without weights starts far away.
    Source: own choice, see LOG.md.
    """
    return DetectionRecipe(
        backbone=backbone, data=data, recipe="tiny", detector=detector, fpn_channels=64, anchor_size=12, proposals=250,
        regions=64, min_size=192, max_size=320, epochs=100, batch_size=4, lr=0.02, lr_drop_epochs=(76,),
        warmup_steps=100, clip_grad_norm=10.0, flip=False, eval_every=25,
    )  # fmt: skip


RECIPES: dict[str, Callable[..., DetectionRecipe]] = {"reference": reference, "1x": one_x, "tiny": tiny}
"""Name -> recipe."""


def resolve(
    recipe: str, backbone: str, data: str, overrides: dict[str, Any] | None = None
) -> tuple[DetectionRecipe, DetectionRecipe]:
    """Return a recipe with changes, and the named recipe that it starts from.

    Args:
        recipe: one of `RECIPES`, or the path of a run's `recipe.json`.
        backbone, data: of the run.
        overrides: other fields.

    Raises:
        UsageError: an unknown recipe, or a value that a field refuses.
    """
    overrides = dict(overrides or {})
    if recipe in RECIPES:
        base = RECIPES[recipe](backbone, data, overrides.get("detector", "faster_rcnn"))
    elif Path(recipe).is_file():
        base = DetectionRecipe.from_json(read_json(Path(recipe))).replace(backbone=backbone, data=data)
    else:
        raise UsageError(f"recipe={recipe!r}: {nearest(recipe, RECIPES)}, or the path of a recipe.json")
    return base.replace(**overrides), base


REQUIRED: dict[str, type] = {
    "task": str, "backbone": str, "detector": str, "dataset": str, "recipe": str, "split": str, "params": int,
    "epochs": int, "num_images": int, "num_objects": int, "ap_pct": float, "ap50_pct": float, "seconds": float,
    "train_s": float, "images_per_s": float, "peak_memory_mib": float, "device": str, "precision": str, "seed": int,
}  # fmt: skip
"""Fields of a detection run's `result.json` and their types. `ap_pct` is COCO's mAP, the mean over IoU 0.50 to 0.95."""

OPTIONAL: dict[str, type] = {
    "ap75_pct": float, "ap_small_pct": float, "ap_medium_pct": float, "ap_large_pct": float, "evaluator": str,
    "predicted_memory_mib": float, "num_processes": int, "workers": int, "data_wait_pct": float, "num_unreadable": int,
}  # fmt: skip
"""Fields that may be missing: there may be no object of a size."""


class DetectionFolder(RunFolder):
    """A `RunFolder` with `detections.json` (COCO's results format), `evaluation.json` (per class, curves, mistakes) and
    `detections.png`.
    """

    result_fields = (REQUIRED, OPTIONAL)

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.detections = self.path / "detections.json"
        self.evaluation = self.path / "evaluation.json"

    def read_detection_recipe(self) -> DetectionRecipe:
        """Read the recipe of the run in this folder.

        Raises:
            DataError: the file is damaged.
        """
        try:
            return DetectionRecipe.from_json(parse_json(self.read(self.recipe), str(self.recipe)))
        except UsageError as error:
            raise DataError(f"{self.recipe}: {error}") from None

    def resume_command(self, num_processes: int = 1) -> str:
        """Return the command that continues the run."""
        processes = f" --processes {num_processes}" if num_processes > 1 else ""
        return f"wrn detect train --resume --out {shlex.quote(str(self.path))}{processes}"


def is_detection(path: Path) -> bool:
    """Tell whether a folder holds a detection run."""
    recipe = RunFolder(path).recipe
    if not recipe.is_file():
        return False
    try:
        return read_json(recipe).get("task") == TASK
    except DataError:
        return False
