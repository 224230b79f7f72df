"""Peak memory of one contender, above what was in use before it was built.

On a CPU the peak is that of the whole process, so each contender gets its own process, in which no memory that another
one has freed waits to be used again. The peak is the one that Linux can reset. Linux's getrusage would not do: it also
counts the process that started this one, as it was before this one's program was loaded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from wideresnet.base.child import Child, Parent
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import engine, make_contender
from wideresnet.bench.engines import check_machine, fastest_way, write_model
from wideresnet.bench.words import ENGINES
from wideresnet.machine.memory import memory_in_use_bytes, peak_memory_mib, reset_peak_memory

NUM_CALLS = {"train": 2, "infer": 1}
"""Training reaches its peak in the second step: the optimizer's state is created at the end of the first."""


class PeakMemory:
    """Peak memory since `restart`, above what was in use when this was created."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before_bytes = memory_in_use_bytes(device)

    def restart(self) -> None:
        """Forget the peak so far. If a container does not allow that, what building took counts too."""
        reset_peak_memory(self.device)

    def mib(self) -> float:
        """Return the peak, MiB."""
        return max(0.0, peak_memory_mib(self.device) - self.before_bytes / 2**20)


def memory_in_own_process(name: str, case: Case) -> float | None:
    """Measure the peak of a contender on the CPU.

    Args:
        name: as for `make_contender`.
        case: what it does.

    Returns:
        MiB; None if its process failed.
    """
    with TemporaryDirectory() as folder:
        given: dict[str, Any] = {"name": name, "case": case.to_json()}
        if name in ENGINES:  # converted here: what that takes is no memory of the engine
            write_model(name, case, Path(folder))
            given |= {"folder": folder, "choice": fastest_way(name, case)}
        return _peak_of_child(given)


def _peak_of_child(given: dict[str, Any]) -> float | None:
    with Child("wideresnet.bench.memory", given) as child:
        answers = list(child)
        return answers[-1]["peak_mib"] if child.wait() == 0 else None


def _load_libraries() -> None:
    """Take a step of a single convolution, so that everyone starts with the code that PyTorch loads at first use."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9).step()


def main() -> None:
    """Be the process of `memory_in_own_process`: measure what the parent names, and say the peak in MiB."""
    parent = Parent()
    given = parent.document
    if given is None:
        return
    case = Case(**given["case"])
    torch.set_num_threads(case.num_threads)
    _load_libraries()
    name, build = given["name"], make_contender
    if name in ENGINES:
        check_machine(name, case)  # imports the engine, as PyTorch has been imported
        build = partial(engine, folder=Path(given["folder"]), choice=given["choice"])
    case.batch()  # reads the images
    reset_peak_memory(case.device)
    peak = PeakMemory(case.device)
    contender = build(name, case)
    torch.set_num_threads(contender.num_threads)
    peak.restart()
    for _ in range(NUM_CALLS[case.job]):
        contender.call()
    parent.say(peak_mib=round(peak.mib(), 1))


if __name__ == "__main__":
    main()
