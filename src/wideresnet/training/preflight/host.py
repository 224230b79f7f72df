"""What computes a trial: an answer holds for this hardware and these versions alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wideresnet.kernels import library
from wideresnet.machine.cpu import BF16_FLAGS, cpu_flags
from wideresnet.machine.description import hardware_name


@dataclass(frozen=True)
class Host:
    """The hardware and the versions of what runs on it.

    Attributes:
        hardware: processor and how many there are.
        cpu_flags: names of the CPU's instruction sets. Hypervisors hide its model, so its name is not enough.
        kernels: digest of the kernels' sources, compiler and flags; "" if there is no compiler.
        torch: PyTorch's version.
    """

    hardware: str
    cpu_flags: frozenset[str]
    kernels: str
    torch: str

    @classmethod
    def here(cls, device: str) -> Host:
        """Return what computes in this process on a device, "cpu" or "cuda"."""
        return cls(hardware_name(device), cpu_flags(), library.identity(), str(torch.__version__))

    @property
    def has_bf16(self) -> bool:
        """Whether the CPU has instructions for products in bf16."""
        return bool(self.cpu_flags & BF16_FLAGS)

    def describe(self) -> dict[str, str]:
        """Return all of it for JSON."""
        flags = " ".join(sorted(self.cpu_flags))
        return {"hardware": self.hardware, "cpu_flags": flags, "kernels": self.kernels, "torch": self.torch}
