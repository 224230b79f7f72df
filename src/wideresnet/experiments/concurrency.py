"""How many runs share a device: more of them as long as that makes the device do more work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from wideresnet.base.format import human_bytes
from wideresnet.machine.memory import available_memory_bytes, memory_in_use_bytes
from wideresnet.training.preflight.plan import Plan

WINDOW_S = 10.0
"""How long a number of runs is observed before it may be doubled: several hundred steps of a network that leaves a GPU
idle, and some evaluations. This package's choice."""

MIN_GAIN = 1.15
"""How many times as many images/s twice as many runs must reach: each run takes longer, so a smaller gain is not worth
it. This package's choice."""


@dataclass(frozen=True)
class Report:
    """The progress of a run.

    Attributes:
        time_s: when it was reported, by `time.monotonic`.
        step: steps done.
        loss: mean loss of the epoch so far.
        error_pct: training error of the epoch so far, percent.
    """

    time_s: float
    step: int
    loss: float
    error_pct: float


class Pace:
    """How many runs may train at the same time.

    It is measured on the runs themselves, so that no work is wasted and nothing is guessed from the name of a GPU: one
    run is observed, then two, then four. The number doubles as long as the images/s of all runs together grow by
    `MIN_GAIN`, memory suffices, and runs are left. Runs on one device change each other's speed, never their results.

    Attributes:
        at_once: how many runs may train now.
        rates: number of runs -> images/s of all of them together, as measured.
    """

    def __init__(
        self,
        at_once: int,
        limit: int,
        batch_size: int = 1,
        num_that_fit: Callable[[], int] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Begin with a number of runs.

        Args:
            at_once: how many runs train from the start; equal to `limit` if nothing is to be measured.
            limit: how many may train at the same time, at most.
            batch_size: images per step of a run.
            num_that_fit: returns how many more runs fit into free memory; None for any number.
            say: called with every decision.
        """
        self.at_once, self.limit, self.batch_size = at_once, limit, batch_size
        self.num_that_fit, self.say = num_that_fit, say
        self.rates: dict[int, float] = {}
        self.settled = at_once >= limit
        self._since: dict[int, Report] = {}

    def observe(self, reports: Mapping[int, Report | None]) -> None:
        """Decide on the number of runs once they have been observed for long enough.

        Args:
            reports: seed -> latest report, of all runs that are running; None if a run has not begun to train.
        """
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
            self.say(f"{found}, hardly more than {before} at once; continuing with {before}")
            self.at_once, self.settled = before, True
            return
        limit, why = self.limit, "no seeds are left to add"
        if self.num_that_fit and self.at_once + (more := self.num_that_fit()) < limit:
            limit, why = self.at_once + more, "no more fit into memory"
        if limit == self.at_once:
            self.settled = True
            self.say(f"{found}; {why}")
        else:
            self.at_once = min(2 * self.at_once, limit)
            self.say(f"{found}; trying {self.at_once}")


def report_now(step: int, loss: float, error_pct: float) -> Report:
    """Make a report that has come in now."""
    return Report(time.monotonic(), step, loss, error_pct)


def make_pace(
    device: str,
    plan: Plan,
    batch_size: int,
    num_seeds: int,
    at_once: int | None,
    say: Callable[[str], None],
    *,
    num_threads: int | None = None,
    available_bytes: Callable[[str], int] = available_memory_bytes,
    in_use_bytes: Callable[[str], int] = memory_in_use_bytes,
) -> tuple[Pace, int | None]:
    """Decide how many seeds train at the same time, and say so together with the memory that they need.

    Args:
        device: "cpu" or "cuda".
        plan: of one run.
        batch_size: images per step.
        num_seeds: number of seeds.
        at_once: how many are asked for; None leaves it to the device.
        say: called with every decision.
        num_threads: threads of the CPU to share; None for PyTorch's number.
        available_bytes: returns the free memory of a device.
        in_use_bytes: returns the memory that this process uses.

    Returns:
        The pace, and the number of threads of each run; None for as many as it takes when it runs alone.
    """
    each = human_bytes(plan.memory_bytes)
    if device == "cpu":
        at_once = min(at_once or 1, num_seeds)
        num_threads = max(1, (num_threads or torch.get_num_threads()) // at_once)
        how = f"{at_once} at once" if at_once > 1 else "one at a time, because the last bits of a run depend on threads"
        say(f"{num_seeds} seeds, {how}: {num_threads} threads each, expected memory {at_once} x {each}")
        return Pace(at_once, at_once, say=say), num_threads
    torch.cuda.empty_cache()  # memory that this process has cached is for the runs
    if at_once is not None:
        at_once = min(at_once, num_seeds)
        say(f"{num_seeds} seeds, {at_once} at once: expected memory {at_once} x {each}")
        return Pace(at_once, at_once, say=say), None
    free_before = available_bytes(device)
    pace = Pace(1, num_seeds, batch_size, say=say)
    pace.num_that_fit = lambda: num_that_fit(
        plan.memory_bytes, free_before, pace.at_once, available_bytes, in_use_bytes
    )
    say(f"{num_seeds} seeds, several at once if that makes the GPU do more: expected memory {each} each")
    return pace, None


def num_that_fit(
    planned_bytes: int,
    free_before_bytes: int,
    num_running: int,
    available_bytes: Callable[[str], int] = available_memory_bytes,
    in_use_bytes: Callable[[str], int] = memory_in_use_bytes,
) -> int:
    """Compute how many more runs fit into the memory of the GPU and of the machine.

    On the GPU each run takes what it is planned to take, or what the running ones have taken if that is more (a process
    on a GPU needs memory besides its tensors). In the machine's memory it takes about as much as this process.

    Args:
        planned_bytes: of one run on the GPU.
        free_before_bytes: free memory of the GPU before any run.
        num_running: number of runs that are running.
        available_bytes: returns the free memory of a device; 0 if the system does not say.
        in_use_bytes: returns the memory that this process uses.
    """
    free = available_bytes("cuda")
    num = int(free // max(planned_bytes, (free_before_bytes - free) / num_running))
    host = available_bytes("cpu")
    return min(num, host // in_use_bytes("cpu")) if host else num
