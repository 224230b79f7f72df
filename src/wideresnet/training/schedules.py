"""Learning rates as functions of the step; nothing here has state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wideresnet.base.errors import UsageError
from wideresnet.spec.options import ScheduleOptions
from wideresnet.spec.recipe import Recipe


class Schedule(Protocol):
    """What the loop asks of a schedule; steps and epochs count from 0."""

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        ...

    def resets_momentum(self, step: int) -> bool:
        """Whether momentum starts from zero at this step."""
        ...


@dataclass(frozen=True)
class Steps:
    """A constant rate, multiplied by `factor` at each of `drop_epochs`.

    Attributes:
        base: the first learning rate.
        drop_epochs: counted from 1, as the paper and the authors' code count.
        drop_at: "start": the epoch named is the first with the lower rate (the authors' code: 59 epochs at 0.1);
            "end": it is the last with the higher one (the paper's text read literally: 60 epochs).
    """

    base: float
    factor: float
    drop_epochs: tuple[int, ...]
    drop_at: str
    reset_momentum: bool
    steps_per_epoch: int

    def _num_drops(self, epoch: int) -> int:
        first = 1 if self.drop_at == "start" else 0  # the first epoch after a drop at d, counted from 0, is d - first
        return sum(epoch >= drop - first for drop in self.drop_epochs)

    def lr(self, step: int) -> float:
        """base * factor ** (number of drops so far)."""
        return self.base * self.factor ** self._num_drops(step // self.steps_per_epoch)

    def resets_momentum(self, step: int) -> bool:
        """Return True at the first step after a drop, if the recipe asks for it."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.reset_momentum and within == 0 and epoch > 0 and self._num_drops(epoch) > self._num_drops(epoch - 1)


@dataclass(frozen=True)
class _WarmedUp:
    """Linear from 0 to `peak` over the warm-up, then down to 0 after the last step; lr changes at every step."""

    peak: float
    warmup_steps: float
    num_steps: int

    def lr(self, step: int) -> float:
        """The learning rate of a step; never exactly 0."""
        done = step + 0.5  # a step stands for the middle of its interval
        return self.peak * done / self.warmup_steps if done < self.warmup_steps else self._down(done)

    def _down(self, done: float) -> float:
        raise NotImplementedError

    def resets_momentum(self, step: int) -> bool:
        """Never: there are no drops."""
        del step
        return False


class OneCycle(_WarmedUp):
    """Down linearly."""

    def _down(self, done: float) -> float:
        return self.peak * (self.num_steps - done) / (self.num_steps - self.warmup_steps)


class Cosine(_WarmedUp):
    """Down along half a cosine.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """

    def _down(self, done: float) -> float:
        share = (done - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return self.peak * (1 + math.cos(math.pi * share)) / 2


def make_schedule(recipe: Recipe, steps_per_epoch: int, lr: float | None = None) -> Schedule:
    """Return the recipe's schedule for that many steps per epoch.

    Args:
        lr: learning rate instead of the recipe's, see `shared_batch`.
    """
    options = recipe.schedule
    lr = options.lr if lr is None else lr
    if options.kind == "steps":
        return Steps(
            lr,
            options.lr_drop_factor,
            options.lr_drop_epochs,
            options.lr_drop_at,
            recipe.optimizer.reset_momentum_at_drops,
            steps_per_epoch,
        )
    num_steps = options.epochs * steps_per_epoch
    kind = OneCycle if options.kind == "one_cycle" else Cosine
    return kind(lr, options.warmup_fraction * num_steps, num_steps)


def shared_batch(options: ScheduleOptions, num_processes: int) -> tuple[int, float]:
    """Return batch size and learning rate of the steps that all processes take together.

    Rule "global": both as they are, so that the result does not depend on the number of processes. Rule "linear": both
    times the number of processes (Goyal et al. 2017, arXiv 1706.02677, section 2.1).

    Raises:
        UsageError: a batch with fewer images than processes.
    """
    if options.batch_rule == "linear":
        return options.batch_size * num_processes, options.lr * num_processes
    if options.batch_size < num_processes:
        raise UsageError(
            f"batch_size={options.batch_size}: fewer images than the {num_processes} processes that share them; use "
            f"batch_size={num_processes} or more, or processes={options.batch_size} or fewer"
        )
    return options.batch_size, options.lr


def image_scale(recipe: Recipe, epoch: int) -> float:
    """Return the scale of the images in an epoch (from 0): the last pair of `image_scales` that has begun.

    In the last epoch it is the last pair, also where a run is so short that its share would be less than an epoch: test
    images are whole, and normalization is to know their statistics.
    """
    epochs, scales = recipe.schedule.epochs, recipe.feed.image_scales
    begun = [scale for start, scale in scales if epoch >= start * epochs - 1e-9]
    return scales[-1][1] if epoch == epochs - 1 else begun[-1]


def area_of(scale: Callable[[int], float], epochs: float) -> float:
    """Return the work of the first `epochs` epochs, in those at full size: it grows with the area of the images.

    Args:
        scale: of the images in an epoch (from 0).
        epochs: the last one may be in part.
    """
    areas = [scale(epoch) ** 2 for epoch in range(math.ceil(epochs))]
    return sum(areas[: int(epochs)]) + sum(areas[int(epochs) :]) * (epochs % 1)


def share_done(recipe: Recipe, share_of_steps: float) -> float:
    """Return the share of a run's work in this share of its steps: less, if small images come first."""
    return area_of_run(recipe, share_of_steps) / area_of_run(recipe)


def area_of_run(recipe: Recipe, share_of_steps: float = 1.0) -> float:
    """Return the epochs at full size that a run's work, or that of its first steps, amounts to."""
    return area_of(functools.partial(image_scale, recipe), share_of_steps * recipe.schedule.epochs)
