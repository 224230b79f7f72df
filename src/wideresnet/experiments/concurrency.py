"""How many runs share a device: more, for as long as the device does more work for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from wideresnet.base.format import human_bytes
from wideresnet.machine.memory import available_memory_bytes, memory_in_use_bytes
from wideresnet.training.preflight.plan import Plan

WINDOW_S = 10.0
"""How long so many runs are watched before it is decided on more: several hundred steps of a network that leaves a GPU
idle, and some evaluations. Own choice."""

MIN_GAIN = 1.15
"""What doubling the runs must gain in images/s: each run takes longer for it, so less is not worth it. Own choice."""


@dataclass(frozen=True)
class Report:
    """How far a run is: steps done, the epoch's loss and training error so far; `time_s` is of `time.monotonic`."""

    time_s: float
    step: int
    loss: float
    error_pct: float


class Pace:
    """How many runs may run at once.

    A measurement on the runs themselves, so that none of it is wasted and it is no guess from a GPU's name: one run is
    watched, then two, then four; doubling goes on while the images/s of all together grow by `MIN_GAIN`, there is
    memory, and runs are left. Processes on one device cannot disturb each other's numbers, only their time.

    Attributes:
        at_once: how many may run now.
        rates: runs at once -> images/s of all together, as measured.
    """

    def __init__(
        self,
        at_once: int,
        limit: int,
        batch_size: int = 1,
        num_that_fit: Callable[[], int] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """
        Args:
            at_once: how many run from the start; equal to `limit` where nothing is to be measured.
            num_that_fit: asks how many more runs the free memory has room for.
        """
        self.at_once, self.limit, self.batch_size = at_once, limit, batch_size
        self.num_that_fit, self.say = num_that_fit, say
        self.rates: dict[int, float] = {}
        self.settled = at_once >= limit
        self._since: dict[int, Report] = {}

    def observe(self, reports: Mapping[int, Report | None]) -> None:
        """Take note of how far the running runs are, by seed; decide when they have been watched for long enough."""
        now = {seed: report for seed, report in reports.items() if report}
        if self.settled or len(reports) != self.at_once or len(now) < len(reports):  # not all are training yet
            self._since = {}
        elif self._since.keys() != now.keys():
            self._since = now
        elif all(now[seed].time_s - self._since[seed].time_s >= WINDOW_S for seed in now):
            steps_per_s = sum(
                (now[seed].step - since.step) / (now[seed].time_s - since.time_s) for seed, since in self._since.items()
            )
            self._since = {}
            self._decide(steps_per_s * self.batch_size)

    def _decide(self, images_per_s: float) -> None:
        before = max(self.rates, default=0)
        self.rates[self.at_once] = images_per_s
        found = f"{self.at_once} at once: {images_per_s:,.0f} images/s"
        if before and images_per_s < MIN_GAIN * self.rates[before]:
            self.say(f"{found}, too little more than {before} at once: {before} from now on")
            self.at_once, self.settled = before, True
            return
        limit, why = self.limit, "no more are wanted"
        if self.num_that_fit and self.at_once + (more := self.num_that_fit()) < limit:
            limit, why = self.at_once + more, "no more fit into memory"
        if limit == self.at_once:
            self.settled = True
            self.say(f"{found}; {why}")
        else:
            self.at_once = min(2 * self.at_once, limit)
            self.say(f"{found}; trying {self.at_once}")


def report_now(step: int, loss: float, error_pct: float) -> Report:
    """A report that has come in now."""
    return Report(time.monotonic(), step, loss, error_pct)


def make_pace(
    device: str, plan: Plan, batch_size: int, num_seeds: int, at_once: int | None, say: Callable[[str], None]
) -> tuple[Pace, int | None]:
    """How many seeds are to train at once, told by `say`, with the memory that they need.

    Args:
        plan: of one run.
        at_once: what is asked for; None leaves it to the device.

    Returns:
        The pace, and the threads of each run; None: as many as it would have alone.
    """
    each = human_bytes(plan.memory_bytes)
    if device == "cpu":
        at_once = min(at_once or 1, num_seeds)
        num_threads = max(1, torch.get_num_threads() // at_once)
        how = (
            f"{at_once} at once"
            if at_once > 1
            else "one after another, because a run's last bits depend on its threads"
        )
        say(f"{num_seeds} seeds, {how}: {num_threads} threads each, expected memory {at_once} x {each}")
        return Pace(at_once, at_once, say=say), num_threads
    torch.cuda.empty_cache()  # what this process has kept is for the runs
    if at_once is not None:
        at_once = min(at_once, num_seeds)
        say(f"{num_seeds} seeds, {at_once} at once: expected memory {at_once} x {each}")
        return Pace(at_once, at_once, say=say), None
    free_before = available_memory_bytes(device)
    pace = Pace(1, num_seeds, batch_size, say=say)
    pace.num_that_fit = lambda: num_that_fit(plan.memory_bytes, free_before, pace.at_once)
    say(f"{num_seeds} seeds, more than 1 at once if the GPU then does more: expected memory {each} each")
    return pace, None


def num_that_fit(planned_bytes: int, free_before_bytes: int, num_running: int) -> int:
    """How many more runs fit into the memory of the GPU and of the machine.

    Each takes what it is planned to, or what those that run have taken where that is more (a process on a GPU holds
    memory besides its tensors); and in the machine's memory about what this process does.
    """
    free = available_memory_bytes("cuda")
    num = int(free // max(planned_bytes, (free_before_bytes - free) / num_running))
    host = available_memory_bytes("cpu")  # 0 where the system does not say
    return min(num, host // memory_in_use_bytes("cpu")) if host else num
