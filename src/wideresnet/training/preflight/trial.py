"""Timing candidates by real training steps, in rounds of turns, on batches as small as tell them apart."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from wideresnet.base.arithmetic import ceil_div
from wideresnet.data.feeds.resident import Feed
from wideresnet.machine.device import synchronize
from wideresnet.networks import Network
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import OptimizerOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.training.captured import Step, make_step
from wideresnet.training.configure import configure, make_forward, set_threads
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter

FEW, MANY, MOST = 8, 16, 32
"""Images of the batches that are tried on a CPU: FEW, and then MANY, or MOST if steps are short. Work on weights does
not grow with the batch and counts for too much in them, so the time of a whole batch is extrapolated. Own choice."""

LONG_STEP_S = 0.3
MIN_STEPS = {"cpu": 2, "cuda": 4}  # of a candidate's warm-up; on a GPU the fourth is the first that is replayed
MAX_STEPS = 5
SETTLED_AT = 0.9  # of a candidate's best: a step that takes no less ends its warm-up; the first steps pay for memory
HOPELESS = 1.6  # a candidate this many times slower after a warm-up takes no further turns
ROUNDS = 3  # fewer cannot tell agreement from luck
TURN_S = 0.02  # a turn has one step, or as many as fit, of which the best counts: a single short one is mostly noise
MIN_CPU_SHARE = 0.9
"""Below this share of the CPU a trial proves nothing. Own choice: on a quiet machine the thread that takes steps hardly
ever waits. Measured on two busy cores, at a load of 7 to 13, for four networks: 0.14 to 0.35."""

Tell = Callable[[str], object]
"""Shows what is going on, until the next call."""


@dataclass(frozen=True)
class StepShape:
    """What one training step works on.

    Attributes:
        batch_size: images per step.
        accumulate: parts in which they are computed.
        size: height and width of the images, px.
        optimizer: what updates the weights.
    """

    batch_size: int
    accumulate: int
    size: tuple[int, int]
    optimizer: OptimizerOptions

    @classmethod
    def of(cls, recipe: Recipe, feed: Feed) -> StepShape:
        """Return the shape of a recipe's steps on the images of a feed, all processes together."""
        return cls(feed.batch_size, recipe.schedule.accumulate, feed.size, recipe.optimizer)


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        rates: of each candidate, images per second in each round; a single figure of one that was left out of the
            rounds, because it was hopeless, nothing was left to compare it with, or the trial ended early.
        cpu_share: CPU time that the thread which takes the steps got, as a share of the time that they took. It
            computes throughout, so a lower share means that other programs were computing; 1 on a GPU.
    """

    rates: tuple[tuple[float, ...], ...]
    cpu_share: float = 1.0


def time_candidates(
    shape: StepShape,
    network: Network,
    candidates: Sequence[Execution],
    tell: Tell = lambda _: None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> Trial:
    """Time each candidate in steps of a shape: a warm-up, which leaves out the hopeless ones, then rounds of turns.

    If other programs are computing, the trial ends early, since it would prove nothing and take long.

    Args:
        network: on the CPU; copies of it are trained.
        candidates: the first one is never left out.
        tell: shows the candidate that is being timed.
        clock: seconds.
        cpu_clock: seconds of CPU time of this thread.
    """
    device = candidates[0].device
    whole = ceil_div(shape.batch_size, shape.accumulate)  # what is computed at once
    is_small = device == "cuda" or whole <= FEW
    with _threads_kept(), torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        timer = _Timer(shape, network, candidates, whole if is_small else min(whole, MOST), clock, cpu_clock, tell)
        everyone = range(len(candidates))
        if is_small:
            best = timer.warm_up(whole, everyone)
            estimates = [whole / seconds for seconds in best]
            sizes = [whole]
        else:
            low = timer.warm_up(FEW, everyone)
            sizes = [FEW, min(whole, MOST if min(low) < LONG_STEP_S else MANY)]
            hopeful = _hopeful([1 / seconds for seconds in low])
            high = timer.warm_up(sizes[1], hopeful if timer.cpu_share >= MIN_CPU_SHARE else ())
            estimates = [_rate(sizes, pair, whole) for pair in zip(low, high, strict=True)]
        rates: dict[int, tuple[float, ...]] = {i: (estimates[i],) for i in everyone}
        hopeful = _hopeful(estimates)
        if len(hopeful) > 1 and timer.cpu_share >= MIN_CPU_SHARE:
            rates |= dict.fromkeys(hopeful, ())
            for number in range(1, ROUNDS + 1):
                for i in hopeful:
                    seconds = [timer.turn(i, num, f"round {number} of {ROUNDS}") for num in sizes]
                    rates[i] += (_rate(sizes, seconds, whole),)
    return Trial(tuple(rates[i] for i in everyone), timer.cpu_share)


def extrapolated(small: tuple[int, float], large: tuple[int, float], whole: int) -> float:
    """Return seconds of a step of `whole` images from (images, seconds) of two smaller ones.

    The larger one may not have been taken (infinite seconds). Between half and all of its time is assumed to grow with
    the images, whatever noise makes of the two.
    """
    (few, low), (many, high) = small, large
    if high == float("inf"):
        return low * whole / few
    each = min(max((high - low) / (many - few), high / many / 2), high / many)
    return high + (whole - many) * each


def _rate(sizes: Sequence[int], seconds: Sequence[float], whole: int) -> float:
    """Return images per second of a whole batch from the seconds of one or two batches."""
    if len(sizes) == 1:
        return whole / seconds[0]
    return whole / extrapolated((sizes[0], seconds[0]), (sizes[1], seconds[1]), whole)


def _hopeful(rates: Sequence[float]) -> list[int]:
    """Return the candidates that are worth another look, and the first in any case."""
    return [i for i, rate in enumerate(rates) if i == 0 or HOPELESS * rate > max(rates)]


class _Timer:
    """The candidates' copies of a network, ready to take steps, and the time that these took altogether."""

    def __init__(
        self,
        shape: StepShape,
        network: Network,
        candidates: Sequence[Execution],
        num_images: int,
        clock: Callable[[], float],
        cpu_clock: Callable[[], float],
        tell: Tell,
    ) -> None:
        self.clock, self.cpu_clock, self.tell = clock, cpu_clock, tell
        self.device = device = candidates[0].device
        images = torch.randn(num_images, network.in_channels, *shape.size, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)  # as a feed yields them
        self.labels = torch.randint(network.num_classes, (num_images,), device=device)
        self.runs: list[tuple[Execution, Step]] = []
        for execution in candidates:
            twin = configure(copy.deepcopy(network).to(device), execution).train()
            forward, optimizer = make_forward(twin, execution), make_optimizer(twin, shape.optimizer)
            self.runs.append((execution, make_step(twin, forward, optimizer, Meter(device), execution)))
        self.began, self.wall_s, self.cpu_s = clock(), 0.0, 0.0

    @property
    def cpu_share(self) -> float:
        """See `Trial`."""
        return 1.0 if self.device == "cuda" else min(1.0, self.cpu_s / max(self.wall_s, 1e-9))

    def warm_up(self, num_images: int, among: Collection[int]) -> list[float]:
        """Take turns until no candidate gets faster; return each one's best seconds per step, infinity without one."""
        best, waiting = [float("inf")] * len(self.runs), set(among)
        for number in range(1, MAX_STEPS + 1):
            for i in sorted(waiting):
                self._tell(i, "warm-up")
                took = self._step(i, num_images)
                if number >= MIN_STEPS[self.device] and took > SETTLED_AT * best[i]:
                    waiting.remove(i)
                best[i] = min(best[i], took)
        return best

    def turn(self, i: int, num_images: int, what: str) -> float:
        """Return the best seconds per step of a candidate's turn."""
        self._tell(i, what)
        took = [self._step(i, num_images)]
        while sum(took) + min(took) < TURN_S:
            took.append(self._step(i, num_images))
        return min(took)

    def _tell(self, i: int, what: str) -> None:
        self.tell(f"timing {self.runs[i][0].describe()}: {what}, {self.clock() - self.began:.0f} s so far")

    def _step(self, i: int, num_images: int) -> float:
        execution, step = self.runs[i]
        images, labels = self.images[:num_images], self.labels[:num_images]
        set_threads(execution.threads)
        synchronize(self.device)
        cpu_s, start = self.cpu_clock(), self.clock()
        step(images, labels, step=0, lr=0.0)
        synchronize(self.device)
        took = self.clock() - start
        self.cpu_s += self.cpu_clock() - cpu_s
        self.wall_s += took
        return took


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restore PyTorch's number of threads afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)
