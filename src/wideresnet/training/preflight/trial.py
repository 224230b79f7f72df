"""Timing candidates by real training steps, in turns, on batches as small as tell them apart."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from wideresnet.base.arithmetic import ceil_div
from wideresnet.data.feeds.resident import Feed
from wideresnet.machine.device import synchronize
from wideresnet.networks import Network
from wideresnet.spec.execution import Execution
from wideresnet.spec.recipe import OptimizerOptions, Recipe
from wideresnet.training.configure import configure, make_forward, set_threads
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter, train_step

FEW, MANY, MOST = 8, 16, 32
"""Images of the batches that are tried on a CPU: FEW, and then MANY, or MOST if steps are short. Work on weights does
not grow with the batch and counts for too much in them, so the time of a whole batch is extrapolated. Own choice."""

LONG_STEP_S = 0.3
MIN_STEPS, MAX_STEPS = 3, 5  # of a candidate; one less at the least if steps are long
SETTLED_AT = 0.9  # of a candidate's best: a step that takes no less is its last; the first steps pay for memory
HOPELESS = 1.6  # a candidate this many times slower on few images is not tried on many

Run = tuple[Execution, nn.Module, torch.optim.SGD]


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


def measure_rates(
    shape: StepShape,
    network: Network,
    candidates: Sequence[Execution],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return images per second of each candidate in a step of that shape, from the best of a few steps in turns.

    Args:
        network: on the CPU; copies of it are trained.
        clock: seconds; read before and after each step.
    """
    device = candidates[0].device
    whole = ceil_div(shape.batch_size, shape.accumulate)  # what is computed at once
    num_images = whole if device == "cuda" else min(whole, MOST)
    with _threads_kept(), torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        images = torch.randn(num_images, network.in_channels, *shape.size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)  # as a feed yields them
        labels = torch.randint(network.num_classes, (len(images),), device=device)
        runs: list[Run] = []
        for execution in candidates:
            twin = configure(copy.deepcopy(network).to(device), execution).train()
            runs.append((execution, make_forward(twin, execution), make_optimizer(twin, shape.optimizer)))

        def best_seconds(num: int, among: Collection[int]) -> list[float]:
            """Take turns until no candidate gets faster; return each one's best seconds per step."""
            best, waiting = [float("inf")] * len(runs), set(among)
            for number in range(1, MAX_STEPS + 1):
                for i in sorted(waiting):
                    execution, forward, optimizer = runs[i]
                    set_threads(execution.threads)
                    synchronize(device)
                    start = clock()
                    train_step(forward, optimizer, images[:num], labels[:num], Meter(device), execution, step=0, lr=0.0)
                    synchronize(device)
                    took = clock() - start
                    fewest = MIN_STEPS - (took > LONG_STEP_S)
                    if number >= fewest and took > SETTLED_AT * best[i]:
                        waiting.remove(i)
                    best[i] = min(best[i], took)
            return best

        everyone = range(len(runs))
        if device == "cuda" or whole <= FEW:
            return [whole / seconds for seconds in best_seconds(whole, everyone)]
        small = best_seconds(FEW, everyone)
        many = min(whole, MOST if min(small) < LONG_STEP_S else MANY)
        large = best_seconds(many, [i for i in everyone if small[i] < HOPELESS * min(small)])
    return [whole / extrapolated((FEW, low), (many, high), whole) for low, high in zip(small, large, strict=True)]


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


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restore PyTorch's number of threads afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)
