"""Learning rates as functions of the step; nothing here has state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
    """Constant, multiplied by `factor` at each of `drop_epochs`.

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
        """True at the first step after a drop, where the recipe asks for it."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.reset_momentum and within == 0 and epoch > 0 and self._num_drops(epoch) > self._num_drops(epoch - 1)


@dataclass(frozen=True)
class OneCycle:
    """Linear from 0 to `peak` over the warm-up, then linear to 0 after the last step."""

    peak: float
    warmup_steps: float
    num_steps: int

    def lr(self, step: int) -> float:
        """Linear up, linear down; never exactly 0."""
        done = step + 0.5  # a step stands for the middle of its interval
        if done < self.warmup_steps:
            return self.peak * done / self.warmup_steps
        return self.peak * (self.num_steps - done) / (self.num_steps - self.warmup_steps)

    def resets_momentum(self, step: int) -> bool:
        """Never: there are no drops."""
        del step
        return False


def make_schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """The recipe's schedule for that many steps an epoch."""
    if recipe.schedule == "steps":
        return Steps(
            recipe.lr,
            recipe.lr_drop_factor,
            recipe.lr_drop_epochs,
            recipe.lr_drop_at,
            recipe.reset_momentum_at_drops,
            steps_per_epoch,
        )
    num_steps = recipe.epochs * steps_per_epoch
    return OneCycle(recipe.lr, recipe.warmup_fraction * num_steps, num_steps)


def image_scale(recipe: Recipe, epoch: int) -> float:
    """The scale of the images in an epoch (from 0): the last pair of `image_scales` that has begun."""
    begun = [scale for start, scale in recipe.image_scales if epoch >= start * recipe.epochs - 1e-9]
    return begun[-1]
