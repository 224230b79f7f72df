"""What the machine decided about a run, apart from what was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SETTLED = ("precision", "kernels", "layout", "threads", "compile")
"""The fields of a recipe that the machine decides if they are "auto" or None; `recipe.json` holds what it decided."""

ELSEWHERE = ("device", "kernels", "layout", "threads", "compile", "workers")
"""The fields that may differ when a run is resumed: where it runs, and what changes its numbers by rounding alone."""

AUTOTUNE_MODES = ("cached", "again", "off")
"""How the machine decides: by a measurement unless there is one already; by a new one; by what is usually fastest."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is computed: the answer to a recipe's `MachineOptions`.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16".
        kernels: "winograd" or "pytorch".
        layout: "channels_last" or "contiguous", of feature maps in memory.
        threads: of the CPU.
        compile: whether `torch.compile` compiles the network.
        deterministic: whether a GPU takes only algorithms that give the same bits every time.
    """

    device: str
    precision: str = "fp32"
    kernels: str = "pytorch"
    layout: str = "channels_last"
    threads: int = 1
    compile: bool = False
    deterministic: bool = False

    def settled(self) -> dict[str, Any]:
        """Return the decisions under the recipe's flat keys, as `recipe.json` stores them over what was asked for.

        The device is left out: a run that asked for "auto" may be repeated elsewhere.
        """
        values = asdict(self)
        return {key: values[key] for key in SETTLED}

    def describe(self, other: Execution | None = None) -> str:
        """Put the configuration in words; only what differs from another one, if that is given."""
        words = {
            "kernels": {"winograd": "Winograd kernels", "pytorch": "PyTorch's kernels"}[self.kernels],
            "layout": self.layout.replace("_", " "),
            "precision": self.precision,
            "threads": f"{self.threads} thread{'s' if self.threads != 1 else ''}",
            "compile": "compiled" if self.compile else "not compiled",
        }
        if other is None:
            return ", ".join(text for key, text in words.items() if key != "compile" or self.compile)
        return ", ".join(text for key, text in words.items() if getattr(self, key) != getattr(other, key))
