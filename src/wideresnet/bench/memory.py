"""Peak memory of one contender, above what was there before it was built.

On a CPU it is the whole process's, so each contender gets a process of its own, in which nobody else's freed memory
waits to be used again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from wideresnet.bench.case import Case
from wideresnet.bench.contenders import make_contender
from wideresnet.machine.memory import memory_in_use_bytes, peak_memory_mib

NUM_CALLS = {"train": 2, "infer": 1}
"""Training reaches its peak in the second step: the optimiser's state is made at the end of the first."""

_CHILD = "from wideresnet.bench.memory import measure_and_print; measure_and_print()"


class PeakMemory:
    """Peak memory from `restart` on, above what was in use when this was made."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before_bytes = memory_in_use_bytes(device)

    def restart(self) -> None:
        """Forget what the peak was so far, where the system can."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:  # not allowed in some containers: then what building took counts too
                return

    def mib(self) -> float:
        """The peak, MiB."""
        return max(0.0, _peak_mib(self.device) - self.before_bytes / 2**20)


def _peak_mib(device: str) -> float:
    """The process's peak since it was last reset.

    Linux's getrusage also counts the process that started this one, as it was before this one's program was loaded.
    """
    if device == "cpu" and sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return peak_memory_mib(device)


def memory_in_own_process(name: str, case: Case) -> float | None:
    """Peak of a contender on the CPU, MiB; None where its process failed."""
    given = json.dumps({"name": name, "case": case.to_json()})
    done = subprocess.run([sys.executable, "-c", _CHILD], input=given, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _load_libraries() -> None:
    """A step of a single convolution, so that the code which PyTorch loads when first used is there for everyone."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9).step()


def measure_and_print() -> None:
    """The process of `memory_in_own_process`: reads what to measure from stdin, writes MiB to stdout."""
    given, out = json.loads(sys.stdin.read()), sys.stdout
    sys.stdout = sys.stderr  # another implementation may print
    case = Case(**given["case"])
    torch.set_num_threads(case.num_threads)
    _load_libraries()
    peak = PeakMemory(case.device)
    contender = make_contender(given["name"], case)
    torch.set_num_threads(contender.num_threads)
    peak.restart()
    for _ in range(NUM_CALLS[case.job]):
        contender.call()
    print(json.dumps(round(peak.mib(), 1)), file=out)
