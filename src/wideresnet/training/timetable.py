"""The schedule of a run as it is kept: that of the recipe, unless a time budget makes the run shorter or longer.

With `time_s` the number of epochs is chosen before the first step, from the measured speed. The machine may turn out
slower or faster. So after each epoch the end is predicted from the time that epochs take, and if it is off by more than
`SLACK` of the budget, the number of epochs changes: what is left of the schedule is stretched over those that are left,
so that the learning rate still ends where it should. At least one more epoch is trained, so that it always does.
Each revision is kept in checkpoints and in the result; only those that move the end much are told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_seconds
from wideresnet.spec.recipe import Recipe
from wideresnet.training.schedules import Schedule, image_scale

SLACK = 0.05
"""Share of the budget by which a run may miss it without a change: clocks are noisy. Own choice."""

TOLD = 0.2
"""Share by which the number of epochs must move until that is told: each small change would be noise. Own choice."""

MAX_EPOCHS = 100_000
"""That a time budget may choose. Own choice."""


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Return a recipe with another number of epochs, and with its drops of lr and its evaluations in proportion."""
    schedule = recipe.schedule
    share = epochs / schedule.epochs
    drops = sorted({max(1, round(drop * share)) for drop in schedule.lr_drop_epochs})
    every = max(1, int(recipe.feed.eval_every * share))
    return recipe.replace(epochs=epochs, lr_drop_epochs=tuple(drops), eval_every=every)


def epochs_in(time_s: float, left_s: float, epoch_s: float, num_images: int) -> int:
    """Return how many epochs take the time that is left, at least one.

    Args:
        time_s: the whole budget, for messages.
        left_s: what is left of it.
        epoch_s: expected seconds of an epoch and its share of evaluations.
        num_images: in an epoch.

    Raises:
        UsageError: there is no time for one epoch.
    """
    if epoch_s > left_s * (1 + SLACK):
        used = time_s - left_s
        fits = int(num_images * max(left_s, 0) / epoch_s)
        limit = f", limit={fits} images" if fits >= 1 else ""
        raise UsageError(
            f"time_s={time_s:g}: too short for one epoch of {num_images:,} images, which takes about "
            f"{human_seconds(epoch_s)} after {human_seconds(used)} of preparation; use "
            f"time_s={math.ceil(1.1 * (epoch_s + used))} or more{limit}, or a smaller network"
        )
    return max(1, min(MAX_EPOCHS, round(left_s / epoch_s)))


@dataclass(frozen=True)
class Revision:
    """A change of the number of epochs.

    Attributes:
        done: epochs that were done then.
        epochs: those of the whole run from then on.
    """

    done: int
    epochs: int


class Timetable:
    """What a run's loop asks: the learning rate of a step, the scale of an epoch's images, the number of epochs.

    Args:
        schedule: of the recipe.
        steps_per_epoch: of the recipe.
        left_s: time that is left for training and evaluation, seconds; None for no limit.
        evaluations_s: expected for all evaluations, seconds; until they are measured.
    """

    def __init__(
        self,
        recipe: Recipe,
        schedule: Schedule,
        steps_per_epoch: int,
        left_s: float | None = None,
        evaluations_s: float = 0.0,
    ) -> None:
        self.recipe, self.schedule, self.steps_per_epoch, self.left_s = recipe, schedule, steps_per_epoch, left_s
        self.evaluations_s = evaluations_s
        self.revisions: list[Revision] = []
        self.train_s = 0.0  # of the epochs so far
        self.area_s: float | None = None  # of an epoch at full size, the newest counting most

    @property
    def epochs(self) -> int:
        """Of the whole run, as far as it is known now."""
        return self.revisions[-1].epochs if self.revisions else self.recipe.schedule.epochs

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return self.schedule.lr(self._place(step)) if self.revisions else self.schedule.lr(step)

    def resets_momentum(self, step: int) -> bool:
        """Whether momentum starts from zero at this step."""
        if not self.revisions or step == 0:
            return self.schedule.resets_momentum(step)
        passed = range(self._place(step - 1) + 1, self._place(step) + 1)
        return any(map(self.schedule.resets_momentum, passed))

    def image_scale(self, epoch: int) -> float:
        """The scale of the images in an epoch (from 0)."""
        at = self._place(epoch * self.steps_per_epoch) // self.steps_per_epoch if self.revisions else epoch
        return image_scale(self.recipe, at)

    def _place(self, step: int) -> int:
        """Return the step of the recipe's schedule at which the run is in its own step."""
        whole = self.recipe.schedule.epochs * self.steps_per_epoch
        done, place, end = 0, 0.0, whole
        for revision in self.revisions:
            next_done = revision.done * self.steps_per_epoch
            if step < next_done:
                break
            place += (next_done - done) * (whole - place) / (end - done)
            done, end = next_done, revision.epochs * self.steps_per_epoch
        return min(whole - 1, int(place + (step - done) * (whole - place) / (end - done) + 1e-6))

    def revised(self, done: int, train_s: float, evaluation_s: float) -> int:
        """Return the number of epochs with which the run would end in time.

        Args:
            done: finished epochs, before the evaluation of the last one.
            train_s, evaluation_s: taken so far.
        """
        if self.left_s is None or done >= self.epochs:
            return self.epochs
        every = self.recipe.feed.eval_every
        evaluated = (done - 1) // every
        share = evaluation_s / evaluated / every if evaluated else self.evaluations_s / self.recipe.schedule.epochs
        newest_s = (train_s - self.train_s) / self.image_scale(done - 1) ** 2
        area_s = newest_s if self.area_s is None else (self.area_s + newest_s) / 2
        self.area_s, self.train_s = area_s, train_s
        areas = [self.image_scale(epoch) ** 2 for epoch in range(done, self.epochs)]
        epoch_s = area_s * sum(areas) / len(areas) + share
        left_s = self.left_s - train_s - evaluation_s
        if abs(left_s - epoch_s * len(areas)) <= max(SLACK * self.left_s, epoch_s / 2):
            return self.epochs
        return done + max(1, min(MAX_EPOCHS, round(left_s / epoch_s)))

    def revise(self, done: int, epochs: int) -> str:
        """Change the number of epochs after `done` of them; return what to say about it.

        Returns:
            "" if the number is within `TOLD` of the one that was told last.
        """
        if epochs == self.epochs:
            return ""
        before = self._told()
        self.revisions.append(Revision(done, epochs))
        if (told := self._told()) == before:
            return ""
        why = "slower" if told < before else "faster"
        return f"this is {why} than was measured: {told} epochs instead of {before}, to end in time"

    def _told(self) -> int:
        """The number of epochs that was told last; a resumed run knows it from the revisions."""
        told = self.recipe.schedule.epochs
        for revision in self.revisions:
            if abs(revision.epochs - told) > TOLD * told:
                told = revision.epochs
        return told

    def result(self) -> dict[str, Any]:
        """Return the result's fields about a time budget: the time, and the changes of the number of epochs."""
        if self.recipe.schedule.time_s is None:
            return {}
        return {"time_budget_s": self.recipe.schedule.time_s, "revised_epochs": self.to_json()["revisions"]}

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; `restore` is the inverse."""
        revisions = [[each.done, each.epochs] for each in self.revisions]
        return {"left_s": self.left_s, "revisions": revisions, "train_s": self.train_s, "area_s": self.area_s}

    def restore(self, values: dict[str, Any]) -> None:
        """Continue from what `to_json` returned."""
        self.left_s = values.get("left_s")
        self.revisions = [Revision(*pair) for pair in values.get("revisions", ())]
        self.train_s, self.area_s = values.get("train_s", 0.0), values.get("area_s")
