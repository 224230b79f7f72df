"""The options of a recipe by concern: each value with its rule, its help and the source of its default."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.spec.fields import CODE, PAPER, check_fields, option

MAX_LIST_LENGTH = 100
"""Entries of a list in a recipe, each of which is a note, a cell of a table and a part of a flag. Own choice."""


def _check_length(key: str, values: tuple[Any, ...]) -> None:
    if len(values) > MAX_LIST_LENGTH:
        raise UsageError(f"{key}: a list of {len(values):,} entries; must have at most {MAX_LIST_LENGTH}")


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Epochs, batches and the learning rate."""

    epochs: int = option(200, "passes over the training set", PAPER, low=1)
    batch_size: int = option(128, "images per step", PAPER, low=1)
    accumulate: int = option(
        1,
        "compute each batch in this many parts and add up their gradients: less memory, the same batch and lr; "
        "normalization, dropout and stochastic depth see each part as a batch (Hoffer et al. 2017)",
        "own choice; the paper has 1",
        low=1,
    )
    kind: str = option(
        "steps",
        "steps: constant with drops; one_cycle: linear warm-up, linear decay to zero; cosine: linear warm-up, half a "
        "cosine to zero",
        PAPER,
        key="schedule",
        choices=("steps", "one_cycle", "cosine"),
    )
    batch_rule: str = option(
        "global",
        "with several processes: global: they share batch_size; linear: each has batch_size, and lr is multiplied by "
        "their number",
        "one GPU in the paper; linear: Goyal et al. 2017",
        choices=("global", "linear"),
    )
    sync_bn: bool = option(
        False,
        "with several processes: BN over the images of all, not of each",
        "own choice; the paper has one GPU",
    )
    lr: float = option(0.1, "learning rate (one_cycle, cosine: its peak)", PAPER, low=0)
    lr_drop_epochs: tuple[int, ...] = option((60, 120, 160), "epochs, counted from 1, at which lr drops", PAPER, low=1)
    lr_drop_factor: float = option(0.2, "factor of lr at a drop", PAPER, low=0, high=1)
    lr_drop_at: str = option(
        "start",
        "lr drops at the start of those epochs (59 epochs at 0.1) or at their end (60 epochs)",
        CODE + ", onStartEpoch",
        choices=("start", "end"),
    )
    warmup_fraction: float = option(
        0.0,
        "one_cycle, cosine: share of the steps in which lr rises",
        "Smith & Topin 2017 (super-convergence)",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate={self.accumulate}: a batch of {self.batch_size} has no more than {self.batch_size} parts; "
                f"use accumulate={self.batch_size} or less"
            )
        _check_length("lr_drop_epochs", self.lr_drop_epochs)
        drops = list(self.lr_drop_epochs)
        if drops != sorted(set(drops)) or any(epoch < 1 for epoch in drops):
            raise UsageError(f"lr_drop_epochs={self.lr_drop_epochs}: epochs counted from 1, rising")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """SGD, the loss and averaged weights."""

    reset_momentum_at_drops: bool = option(
        True, "restart momentum from zero at every drop of lr", CODE + ", which rebuilds the optimizer"
    )
    momentum: float = option(0.9, "momentum of SGD", PAPER, low=0, high=1)
    nesterov: bool = option(True, "Nesterov momentum", PAPER)
    dampening: float = option(0.0, "dampening of momentum", PAPER, low=0, high=1)
    weight_decay: float = option(5e-4, "factor of the L2 penalty", PAPER, low=0)
    weight_decay_on: str = option(
        "all",
        "all: every parameter; weights: not normalization and biases",
        CODE + ", one flat parameter vector",
        choices=("all", "weights"),
    )
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", "Szegedy et al. 2016; 0.1 there", low=0, high=1
    )
    clip_grad_norm: float = option(
        0.0, "scale the gradient down to at most this norm over all parameters; 0: off", "Pascanu et al. 2013", low=0
    )
    sam_rho: float = option(
        0.0,
        "sharpness-aware minimization: take the gradient this far uphill from the weights, in two passes per step; "
        "0: off",
        "Foret et al. 2021; 0.05 there",
        low=0,
    )
    ema_decay: float = option(
        0.0,
        "decay per step of the averaged weights, which are then the result; 0: off",
        "Polyak & Juditsky 1992",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise UsageError(
                f"nesterov=True needs momentum above 0 and dampening 0, got momentum={self.momentum} and "
                f"dampening={self.dampening}; use nesterov=False"
            )

    @property
    def passes(self) -> int:
        """Forward and backward passes per step."""
        return 2 if self.sam_rho else 1


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """The images: which ones, how they are augmented and preprocessed, when the network is evaluated."""

    drop_last: bool = option(
        True, "leave out an epoch's last, smaller batch (390 steps on CIFAR)", CODE + ", skip-last"
    )
    flip: bool = option(True, "mirror half of the images left-right", PAPER)
    crop_padding: int = option(4, "random crop from the image padded by this many pixels", PAPER, low=0)
    padding_mode: str = option("reflection", "what the padding holds", PAPER, choices=("reflection", "zero"))
    auto_augment: str = option(
        "none",
        "after crop and flip: trivial: one random operation of random strength per image (TrivialAugmentWide: shear, "
        "shift by up to 32 pixels, rotation, colors, contrast, ...)",
        "Mueller & Hutter 2021; the paper has none",
        choices=("none", "trivial"),
    )
    cutout: int = option(
        0,
        "side in pixels of a square at a random place that is set to 0 after preprocessing; 0: off",
        "DeVries & Taylor 2017; 16 on CIFAR-10, 8 on CIFAR-100 there", low=0, high=1024,
    )  # fmt: skip
    random_resized_crop: float = option(
        0.0,
        "cut a part of at least this share of the area, aspect 3/4 to 4/3, and scale it to image_size; 0: off",
        "Szegedy et al. 2015; 0.08 there",
        low=0,
        high=1,
    )
    color_jitter: float = option(
        0.0,
        "change brightness, contrast and saturation by up to this share, in random order; 0: off",
        "fb.resnet.torch, datasets/imagenet.lua; 0.4 there",
        low=0,
        high=1,
    )
    pca_lighting: float = option(
        0.0,
        "add colors along the principal components of ImageNet's, with this standard deviation; 0: off",
        "Krizhevsky et al. 2012; 0.1 there",
        low=0,
        high=10,
    )
    random_erasing: float = option(
        0.0,
        "probability of setting a random rectangle to 0 after preprocessing; 0: off",
        "Zhong et al. 2020; 0.1 in torchvision's recipe", low=0, high=1,
    )  # fmt: skip
    mixup: float = option(
        0.0,
        "alpha of mixup, blends of two images and of their labels; 0: off; with cutmix, one of the two per batch",
        "Zhang et al. 2018", low=0, high=100,
    )  # fmt: skip
    cutmix: float = option(
        0.0,
        "alpha of cutmix, a rectangle of another image and a share of its label; 0: off",
        "Yun et al. 2019; 1 there", low=0, high=100,
    )  # fmt: skip
    repeated_augmentation: int = option(
        1,
        "times that an image is in a batch, augmented differently; an epoch then has fewer different images",
        "Hoffer et al. 2020; 4 in torchvision's recipe", low=1, high=64,
    )  # fmt: skip
    image_scales: tuple[tuple[float, float], ...] = option(
        ((0.0, 1.0),),
        "pairs (from this share of the epochs, train on images scaled by this)",
        "Howard 2018, fast.ai's entry to DAWNBench",
    )
    preprocessing: str = option(
        "mean_std",
        "mean_std; zca: global contrast normalization and ZCA whitening (Tables 2-4); scale: pixels / 255 only",
        "paper, Tables 5-6 mean_std, 2-4 zca; SVHN scale",
        choices=("mean_std", "zca", "scale"),
    )
    image_size: int | None = option(
        None,
        "resize images to this side, px (own images of different sizes: 64)",
        "own choice; the paper has 32",
        low=8,
        high=1024,
    )
    eval_size: int | None = option(
        None, "side of the center crop of test images, px (none: image_size)", "fb.resnet.torch; 224 there",
        low=8, high=1024,
    )  # fmt: skip
    eval_resize: int | None = option(
        None,
        "shorter side, px, to which test images are scaled before the crop (none: eval_size)",
        "fb.resnet.torch; 256 there",
        low=8,
        high=2048,
    )
    extra_data: bool = option(False, "svhn: train on its 531,131 extra images too", PAPER)
    limit: int | None = option(
        None, "train on only this many images, drawn by the seed", "own choice, for trials", low=1
    )
    holdout: int = option(
        0,
        "validate on this many training images; the test set is then used once, at the end",
        "own choice; the paper has none",
        low=0,
    )
    skip_unreadable: bool = option(
        False, "leave out images that cannot be read (listed) instead of stopping", "own choice"
    )
    image_column: str | None = option(None, "own tables and parquet: the column of images", "own choice")
    label_column: str | None = option(None, "own tables and parquet: the column of labels", "own choice")
    class_order: str | None = option(
        None,
        "own classes called by numbers: order them as text (1, 10, 2) or by number; folders: text, tables: number",
        "own choice",
        choices=("text", "number"),
    )
    white: int | None = option(
        None,
        "own 16-bit images: the value that becomes white (the largest of as many bits as they all use)",
        "own choice",
        low=1,
        high=65_535,
    )
    eval_every: int = option(
        1, "epochs between evaluations; the last is always evaluated", "own choice; the paper has 1", low=1
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.auto_augment != "none" and self.preprocessing == "zca":
            raise UsageError(
                f"auto_augment={self.auto_augment!r}: changes pixels of 0..255, but preprocessing='zca' whitens the "
                "whole set in advance; use preprocessing='mean_std'"
            )
        if self.preprocessing == "zca" and (self.streams or self.pca_lighting):
            raise UsageError(
                "preprocessing='zca': whitens the whole set in advance, so random_resized_crop, color_jitter, "
                "pca_lighting, eval_size and eval_resize cannot be used; use preprocessing='mean_std'"
            )
        if self.eval_resize is not None and self.eval_resize < (size := self.eval_size or self.image_size or 0):
            raise UsageError(
                f"eval_resize={self.eval_resize}: smaller than the crop of {size} px; use eval_resize={size} or more"
            )
        _check_length("image_scales", self.image_scales)
        starts = [start for start, _ in self.image_scales]
        if (
            not starts
            or starts[0] != 0
            or starts != sorted(set(starts))
            or not all(0 <= start < 1 and 0 < scale <= 2 for start, scale in self.image_scales)
        ):
            raise UsageError(
                f"image_scales={self.image_scales}: pairs (start, scale) with the first start 0, starts rising and "
                "below 1, 0 < scale <= 2"
            )

    @property
    def streams(self) -> bool:
        """Whether images are needed as they are on the disk, at every use again."""
        return bool(self.random_resized_crop or self.color_jitter or self.eval_size or self.eval_resize)

    @property
    def mixes(self) -> bool:
        """Whether images and labels of a batch are mixed."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of a network; `create` and `Recipe` share them, their checks and their defaults.

    Raises:
        UsageError: a value outside its range or choices.
    """

    dropout: float = option(
        0.0,
        "dropout probability before a block's second and later convolutions (the paper's: 0.3 on CIFAR, 0.4 on SVHN)",
        PAPER,
        low=0,
        below=1,
    )
    activation: str = option("relu", "activation function", PAPER, choices=("relu", "leaky_relu", "silu"))
    norm: str = option("batch", "normalization", PAPER, choices=("batch", "group"))
    bn_momentum: float = option(
        0.1, "weight of the newest batch in BN's running statistics", "Torch 7's default", above=0, high=1
    )
    bn_eps: float = option(1e-5, "epsilon of the normalization", "Torch 7's default", above=0)
    init: str = option(
        "fan_in",
        "which fan scales He's normal initialization",
        "authors' models/utils.lua since 2016-09",
        choices=("fan_in", "fan_out"),
    )
    bn_scale: str = option(
        "one",
        "initial BN scale: one, or uniform for U(0, 1)",
        "authors' code: uniform since 2016-05-17, one before",
        choices=("one", "uniform"),
    )
    stochastic_depth: float | None = option(
        None,
        "survival probability of the last block (Huang et al. 2016: 0.5); it falls linearly from 1",
        "paper, Table 5",
        above=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain values; `NetworkOptions(**values)` is the inverse."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What is asked of the machine; `Execution` says what it then decided."""

    device: str = option("auto", "auto: cuda if there is one, else cpu", "own choice", choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "auto",
        "auto: bf16 if a measurement finds it faster, else fp32",
        "own choice; the paper has fp32",
        choices=("auto", "fp32", "bf16"),
    )
    kernels: str = option(
        "auto",
        "convolutions on a CPU by this package's Winograd kernels or by PyTorch; auto: measured",
        "Lavin & Gray 2015",
        choices=("auto", "winograd", "pytorch"),
    )
    feed: str = option(
        "auto",
        "resident: decoded images stay in memory; stream: they are decoded when they are needed, by other processes; "
        "auto: resident if they take at most a quarter of the free memory",
        "own choice",
        choices=("auto", "resident", "stream"),
    )
    workers: int | None = option(
        None,
        "processes that decode images of a stream; 0: none (none: one per CPU with a GPU, else one per four)",
        "own choice",
        low=0,
        high=256,
    )
    layout: str = option(
        "auto", "memory layout of feature maps; auto: measured", "own choice",
        choices=("auto", "channels_last", "contiguous"),
    )  # fmt: skip
    threads: int | None = option(None, "threads on a CPU (none: measured)", "own choice", low=1, high=1024)
    compile: bool | None = option(
        None,
        "torch.compile the network, about a minute before the first step (none: measured for long runs on a GPU)",
        "own choice",
    )
    deterministic: bool = option(
        False,
        "the same bits in every run on a GPU too, which is slower; on a CPU they always are",
        "PyTorch documentation, Reproducibility",
    )

    def __post_init__(self) -> None:
        check_fields(self)
