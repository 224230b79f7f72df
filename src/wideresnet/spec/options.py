"""What a network's name leaves open: one set of options for `create` and for recipes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wideresnet.spec.fields import PAPER, check_fields, option


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
