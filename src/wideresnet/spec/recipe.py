"""What a run is: one frozen `Recipe`. Each field says what it does and who set the value that the paper's runs used."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, get_args, get_type_hints

from wideresnet.base.errors import DataError, UsageError

PAPER = "paper, section 3"
CODE = "authors' train.lua"


def _field(
    default: Any,
    help: str,
    source: str = "",
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    group: str = "",
) -> Any:
    metadata = {"help": help, "source": source, "choices": choices, "low": low, "high": high, "group": group}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's numbers; `recipe.json` in a run folder is this, and is enough to run it again.

    Raises:
        UsageError: a value outside its field's range or choices, naming the field, the value and the rule.
    """

    network: str = _field("WRN-16-2", "name of the network, e.g. WRN-28-10", group="what")
    data: str = _field("digits", "digits, cifar10, cifar100, svhn, or a path", group="what")
    recipe: str = _field("paper", "name of the recipe these values started from", group="what")
    epochs: int = _field(200, "passes over the training set", PAPER, low=1, group="schedule")
    batch_size: int = _field(128, "images a step", PAPER, low=1, group="schedule")
    accumulate: int = _field(
        1,
        "compute a step's batch in so many parts, one after another, and add their gradients: less memory, the same "
        "batch and lr; normalisation, dropout and stochastic depth take each part for a batch (Hoffer et al. 2017)",
        source="own choice; the paper has 1",
        low=1,
        group="schedule",
    )
    schedule: str = _field(
        "steps",
        "steps: constant with drops; one_cycle: linear warm-up, linear decay to zero",
        PAPER,
        choices=("steps", "one_cycle"),
        group="schedule",
    )
    batch_rule: str = _field(
        "global",
        "several processes: global: they share batch_size; linear: each has batch_size, and lr is times their number",
        "one GPU in the paper; linear: Goyal et al. 2017",
        choices=("global", "linear"),
        group="schedule",
    )
    lr: float = _field(0.1, "learning rate (one_cycle: its peak)", PAPER, low=0, group="schedule")
    lr_drop_epochs: tuple[int, ...] = _field(
        (60, 120, 160), "epochs, counted from 1, at which lr drops", PAPER, low=1, group="schedule"
    )
    lr_drop_factor: float = _field(0.2, "what lr is multiplied by at a drop", PAPER, low=0, high=1, group="schedule")
    lr_drop_at: str = _field(
        "start",
        "lr drops at the start of those epochs (59 epochs at 0.1) or at their end (60 epochs)",
        CODE + ", onStartEpoch",
        choices=("start", "end"),
        group="schedule",
    )
    warmup_fraction: float = _field(
        0.0,
        "one_cycle: share of the steps in which lr rises",
        source="Smith & Topin 2017 (super-convergence)",
        low=0,
        high=1,
        group="schedule",
    )
    reset_momentum_at_drops: bool = _field(
        True,
        "momentum starts from zero at every drop",
        CODE + ", which rebuilds the optimiser",
        group="optimiser",
    )
    momentum: float = _field(0.9, "momentum of SGD", PAPER, low=0, high=1, group="optimiser")
    nesterov: bool = _field(True, "Nesterov's form of momentum", PAPER, group="optimiser")
    dampening: float = _field(0.0, "dampening of momentum", PAPER, low=0, high=1, group="optimiser")
    weight_decay: float = _field(5e-4, "L2 penalty's factor", PAPER, low=0, group="optimiser")
    weight_decay_on: str = _field(
        "all",
        "all: every parameter; weights: not on normalisation and biases",
        CODE + ", one flat parameter vector",
        choices=("all", "weights"),
        group="optimiser",
    )
    label_smoothing: float = _field(
        0.0,
        "share of the target spread over all classes",
        source="Szegedy et al. 2016; 0.1 there",
        low=0,
        high=1,
        group="optimiser",
    )
    ema_decay: float = _field(
        0.0,
        "decay a step of averaged weights, which are then the result; 0: off",
        source="Polyak & Juditsky 1992",
        low=0,
        high=1,
        group="optimiser",
    )
    drop_last: bool = _field(
        True,
        "leave out an epoch's last, smaller batch (390 steps on CIFAR)",
        CODE + ", skip-last",
        group="feed",
    )
    flip: bool = _field(True, "mirror half of the images left-right", PAPER, group="feed")
    crop_padding: int = _field(4, "random crop from an image padded by so many pixels", PAPER, low=0, group="feed")
    padding_mode: str = _field(
        "reflection", "what the padding holds", PAPER, choices=("reflection", "zero"), group="feed"
    )
    image_scales: tuple[tuple[float, float], ...] = _field(
        ((0.0, 1.0),),
        "pairs (from this share of the epochs, train on images scaled by this)",
        source="Howard 2018, fast.ai's entry to DAWNBench",
        group="feed",
    )
    preprocessing: str = _field(
        "mean_std",
        "mean_std; zca: global contrast normalisation and ZCA whitening (Tables 2-4); scale: pixels / 255 only",
        "paper, Tables 5-6 mean_std, 2-4 zca; SVHN scale",
        choices=("mean_std", "zca", "scale"),
        group="feed",
    )
    image_size: int | None = _field(
        None,
        "bring images to this side, px (own images of many sizes: 64)",
        source="own choice; the paper has 32",
        low=8,
        high=1024,
        group="feed",
    )
    extra_data: bool = _field(False, "svhn: train on its 531,131 extra images too", PAPER, group="feed")
    limit: int | None = _field(
        None, "train on only so many images, drawn by the seed", source="own choice, for trials", low=1, group="feed"
    )
    holdout: int = _field(
        0,
        "validate on so many training images; the test set is then used once, at the end",
        source="own choice; the paper has none",
        low=0,
        group="feed",
    )
    skip_unreadable: bool = _field(
        False, "leave out images that cannot be read (listed), instead of stopping", source="own choice", group="feed"
    )
    eval_every: int = _field(
        1,
        "epochs between evaluations; the last is always evaluated",
        source="own choice; the paper has 1",
        low=1,
        group="feed",
    )
    family: str | None = _field(
        None,
        "reading of a name that has two",
        source="paper, Tables 1 and 7",
        choices=("cifar", "imagenet"),
        group="network",
    )
    dropout: float = _field(
        0.0,
        "dropout before a block's second and later convolutions",
        PAPER,
        low=0,
        high=0.99,
        group="network",
    )
    activation: str = _field(
        "relu", "activation function", PAPER, choices=("relu", "leaky_relu", "silu"), group="network"
    )
    norm: str = _field("batch", "normalisation", PAPER, choices=("batch", "group"), group="network")
    bn_momentum: float = _field(
        0.1,
        "weight of the newest batch in BN's running statistics",
        "Torch 7's default",
        low=1e-6,
        high=1,
        group="network",
    )
    bn_eps: float = _field(1e-5, "epsilon of the normalisation", "Torch 7's default", low=1e-12, group="network")
    sync_bn: bool = _field(
        False,
        "several processes: BN over the images of all, not of each",
        source="own choice; the paper has one GPU",
        group="network",
    )
    init: str = _field(
        "fan_in",
        "which side scales He's normal initialisation",
        "authors' models/utils.lua since 2016-09",
        choices=("fan_in", "fan_out"),
        group="network",
    )
    bn_scale: str = _field(
        "uniform",
        "BN's first scale: U(0,1) or one",
        "authors' code since 2016-05-17",
        choices=("one", "uniform"),
        group="network",
    )
    stochastic_depth: float | None = _field(
        None,
        "survival probability of the last block (Huang et al. 2016: 0.5)",
        "paper, Table 5",
        low=1e-6,
        high=1,
        group="network",
    )
    seed: int = _field(
        0,
        "decides initial weights, order, augmentation and dropout",
        source="own choice; the authors' default is 444",
        low=0,
        group="machine",
    )
    device: str = _field(
        "auto",
        "auto: cuda where there is one, else cpu",
        source="own choice",
        choices=("auto", "cpu", "cuda"),
        group="machine",
    )
    precision: str = _field(
        "auto",
        "auto: bf16 where a measurement finds it faster, else fp32",
        source="own choice; the paper has fp32",
        choices=("auto", "fp32", "bf16"),
        group="machine",
    )
    kernels: str = _field(
        "auto",
        "convolutions on a CPU by this package's Winograd kernels or by PyTorch; auto: measured",
        source="Lavin & Gray 2015",
        choices=("auto", "winograd", "pytorch"),
        group="machine",
    )
    layout: str = _field(
        "auto",
        "order of the numbers of a map in memory; auto: measured",
        source="own choice",
        choices=("auto", "channels_last", "contiguous"),
        group="machine",
    )
    threads: int | None = _field(
        None, "threads on a CPU (none: measured)", source="own choice", low=1, high=1024, group="machine"
    )
    compile: bool | None = _field(
        None,
        "torch.compile the network, about a minute before the first step (none: measured for long runs on a GPU)",
        source="own choice",
        group="machine",
    )
    deterministic: bool = _field(
        False,
        "the same bits in every run on a GPU too, which is slower; on a CPU they always are",
        source="PyTorch documentation, Reproducibility",
        group="machine",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise UsageError(
                f"nesterov needs momentum > 0 and dampening 0, got momentum {self.momentum} and dampening "
                f"{self.dampening}; use --no-nesterov"
            )
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate {self.accumulate}: a batch of {self.batch_size} has no more than {self.batch_size} parts; "
                f"use --accumulate {self.batch_size} or less"
            )
        drops = list(self.lr_drop_epochs)
        if drops != sorted(set(drops)) or any(epoch < 1 for epoch in drops):
            raise UsageError(f"lr_drop_epochs {self.lr_drop_epochs}: epochs counted from 1, rising")
        starts = [start for start, _ in self.image_scales]
        if (
            not starts
            or starts[0] != 0
            or starts != sorted(set(starts))
            or not all(0 <= start < 1 and 0 < scale <= 2 for start, scale in self.image_scales)
        ):
            raise UsageError(
                f"image_scales {self.image_scales}: pairs (start, scale) with the first start 0, starts rising and "
                "below 1, 0 < scale <= 2"
            )

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values; `Recipe.from_json` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recipe:
        """A recipe from the values of a `recipe.json`; a field that does not exist is an error naming the nearest."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
                raise UsageError(f"recipe field {name!r} does not exist; nearest: {close}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> Recipe:
        """A recipe from a `recipe.json` file (of a run folder, or written by hand).

        Raises:
            DataError: the file cannot be read or is not a JSON object.
        """
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable recipe.json ({error})") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}: a recipe is a JSON object of fields, this is {type(values).__name__}")
        return cls.from_json(values)


def show_value(value: Any) -> str:
    """A field's value as its flag takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return ",".join(f"{show_value(start)}:{show_value(scale)}" for start, scale in value)
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


TYPES: dict[str, Any] = get_type_hints(Recipe)

RULES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[int, ...]: "a list of whole numbers",
    tuple[tuple[float, float], ...]: "a list of pairs of numbers",
}
"""What a value must be, in words, by its field's type."""


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the field's type, or a UsageError naming field, value and rule."""
    kind = TYPES[field.name]
    options = get_args(kind)
    if value is None:
        if type(None) in options:
            return None
        raise UsageError(f"{field.name} None: needs a value")
    if type(None) in options:
        kind = options[0]
    try:
        value = _converted(value, kind)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{field.name} {value!r}: must be {RULES[kind]}") from None
    _check_range(field, value)
    return value


def _converted(value: Any, kind: Any) -> Any:
    """The value in the type, where nothing of it is lost and nothing guessed; else TypeError or ValueError."""
    if kind == tuple[int, ...]:
        return tuple(_converted(item, int) for item in value)
    if kind == tuple[tuple[float, float], ...]:
        return tuple((_converted(start, float), _converted(scale, float)) for start, scale in value)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (isinstance(value, kind) if kind in (bool, str) else is_number):
        raise TypeError
    converted = kind(value)
    if kind is int and converted != value:
        raise ValueError
    return converted


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
        raise UsageError(f"{field.name} {value!r}: one of {', '.join(choices)} (nearest: {close})")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise UsageError(f"{field.name} {value}: must be a finite number")
    if low is not None and isinstance(value, int | float) and value < low:
        raise UsageError(f"{field.name} {value}: must be at least {low}")
    if high is not None and isinstance(value, int | float) and value > high:
        raise UsageError(f"{field.name} {value}: must be at most {high}")


CHOICES: dict[str, tuple[str, ...]] = {
    field.name: field.metadata["choices"] for field in dataclasses.fields(Recipe) if field.metadata["choices"]
}
"""The values that a field of words may take."""

NETWORK_OPTIONS = (
    "dropout", "activation", "norm", "bn_momentum", "bn_eps", "init", "bn_scale", "stochastic_depth",
)  # fmt: skip
"""The fields that `networks.create` takes as options of the same name."""

ELSEWHERE = ("device", "kernels", "layout", "threads", "compile")
"""The fields that may differ when a run is resumed: where it runs, and what changes its numbers by rounding alone."""

SETTLED = ("family", "precision", "kernels", "layout", "threads", "compile")
"""The fields that are settled by the data and by measurements on the machine where they are "auto" or None."""
