"""The options of a recipe by concern: each value with its rule, its help and the source of its default."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.spec.fields import CODE, PAPER, check_fields, check_length, option

MAX_TIME_S = 366 * 24 * 3600.0
"""Of a time budget: no run of this package takes a year."""

STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")
"""The stages of networks, by Table 1; those for small images have four."""


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
    time_s: float | None = option(
        None,
        "time for the whole run, such as 90s, 10m or 1h30m: the measured speed decides the number of epochs, to which "
        "drops of lr and evaluations are scaled (none: epochs decides)",
        "own choice",
        above=0,
        high=MAX_TIME_S,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate={self.accumulate}: a batch of {self.batch_size} has no more than {self.batch_size} parts; "
                f"use accumulate={self.batch_size} or less"
            )
        check_length("lr_drop_epochs", self.lr_drop_epochs)
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
    muon_lr: float = option(
        0.0,
        "Muon: orthogonalize the updates of all convolutions but the first, with this learning rate (its peak; it "
        "rises and falls as lr does), and keep their norms instead of decaying them; 0: off, SGD for all",
        "Jordan et al. 2024 (Muon)",
        low=0,
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
    freeze: str = option(
        "none",
        "keep the trained weights of all stages up to this one, as wrn info names them, or of the whole backbone: all "
        "but the head; their normalization keeps its statistics, and they have no dropout",
        "Yosinski et al. 2014; the paper has none",
        choices=("none", *STAGES, "backbone"),
    )
    layer_lr_decay: float = option(
        1.0,
        "factor of lr from each stage to the one below it, from the head down; 1: all learn alike",
        "Howard & Ruder 2018 (discriminative fine-tuning, a factor of 1/2.6 per layer)",
        above=0,
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
        "convolutions on a CPU by this package's Winograd kernels or by PyTorch; auto: measured; for ImageNet's "
        "networks they are for evaluation only",
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
