"""Questions to `autotune`, and a measurement that answers by words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wideresnet.networks import Network, create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import MachineOptions, OptimizerOptions
from wideresnet.training.preflight.autotune import Measure, autotune
from wideresnet.training.preflight.host import Host
from wideresnet.training.preflight.trial import ROUNDS, StepShape, Tell, Trial

HOST = Host("a CPU", frozenset({"avx2"}), "kernels", "torch 2")
HOST_WITH_BF16 = Host("a CPU", frozenset({"avx2", "avx512_bf16"}), "kernels", "torch 2")


class Rates:
    """Images per second by words of a configuration's description, 100 for all others.

    Attributes:
        asked: the configurations of each measurement so far.
        rounds: factors of all rates in each round.
        cpu_share: see `Trial`.
    """

    def __init__(self, **by_word: float) -> None:
        self.by_word = {word.replace("_", " "): rate for word, rate in by_word.items()}
        self.asked: list[list[Execution]] = []
        self.rounds: Sequence[float] = (1.0,) * ROUNDS
        self.cpu_share = 1.0

    def __call__(self, shape: StepShape, network: Network, candidates: Sequence[Execution], tell: Tell) -> Trial:
        del shape, network, tell
        self.asked.append(list(candidates))
        words = [candidate.describe() for candidate in candidates]
        rates = [max([rate for word, rate in self.by_word.items() if word in text], default=100.0) for text in words]
        return Trial(tuple(tuple(rate * factor for factor in self.rounds) for rate in rates), self.cpu_share)

    def tried(self, *names: str) -> list[tuple[Any, ...]]:
        """Those fields of all configurations that were measured."""
        return [tuple(getattr(way, name) for name in names) for ways in self.asked for way in ways]


def a_network(name: str = "WRN-10-1", **options: Any) -> Network:
    torch.manual_seed(0)
    return create(name, 4, **options)


def a_shape(batch_size: int = 8, accumulate: int = 1, size: tuple[int, int] = (8, 8), **optimizer: Any) -> StepShape:
    return StepShape(batch_size, accumulate, size, OptimizerOptions(**optimizer))


def decide(
    measure: Measure,
    network: Network | None = None,
    *,
    device: str = "cpu",
    shape: StepShape | None = None,
    num_images: int = 200_000,
    mode: str | None = None,
    tell: Tell = lambda _: None,
    host: Host = HOST,
    **asked: Any,
) -> tuple[Execution, str]:
    """Return what `autotune` decides, and its notes as one text."""
    machine = MachineOptions(**{"precision": "fp32", **asked})
    execution, notes = autotune(
        machine, shape or a_shape(), network or a_network(), device, num_images, mode=mode, tell=tell,
        measure=measure, host=host,
    )  # fmt: skip
    assert all("\n" not in note for note in notes)
    return execution, "; ".join(notes)
