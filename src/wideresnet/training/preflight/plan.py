"""The arithmetic of a run, told before its first step: steps, operations, time, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.format import counted, human_bytes, human_count, human_seconds
from wideresnet.networks.cost import Cost, cost
from wideresnet.spec import recipes
from wideresnet.spec.recipe import Recipe
from wideresnet.training.preflight.probe import Probe
from wideresnet.training.schedules import area_of_run
from wideresnet.training.setup import Job
from wideresnet.training.timetable import epochs_in, with_epochs

LONG_RUN_S = 600.0  # longer than anyone waits in front of a terminal: a shorter choice is named


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        steps_per_epoch, num_steps: optimizer steps.
        params: parameters of the network.
        passes: forward and backward passes per step.
        flops: forward and backward of the whole run, direct convolution, without evaluation.
        seconds: expected, from timing a few steps on this machine; evaluation included.
        evaluation_s: expected for evaluation alone.
        shorter: for a long run, how to train in less time, in words; "" otherwise.
        part_images: images computed at once: the batch, or a part of it if gradients are accumulated.
        probe_images: size of the batch that was timed.
        memory_bytes: expected peak, of the whole process on a CPU, of PyTorch's tensors on a GPU.
        available_bytes: memory available now; 0 if the system does not say.
        peak_before_bytes: the peak before the first step, from loading the data.
        recipe: with the number of epochs that its time budget allows, if it has one.
        left_s: what is left of the budget for training and evaluation; None without one.
    """

    steps_per_epoch: int
    num_steps: int
    passes: int
    params: int
    flops: float
    seconds: float
    evaluation_s: float
    shorter: str
    part_images: int
    probe_images: int
    memory_bytes: int
    available_bytes: int
    peak_before_bytes: int
    recipe: Recipe
    left_s: float | None = None

    def lines(self) -> list[tuple[str, str]]:
        """Return rows for the table that is shown before the first step."""
        memory = f"{human_bytes(self.memory_bytes)} at the peak"
        if self.available_bytes:
            memory += f", {human_bytes(self.available_bytes)} more is available now"
        evaluation = f"{human_seconds(self.evaluation_s)} of it for evaluation"
        steps = f"{self.num_steps:,} ({self.steps_per_epoch:,} per epoch)"
        steps += f", each of {self.passes} passes over its batch (sam_rho)" if self.passes > 1 else ""
        return [
            ("parameters", f"{self.params:,}"),
            ("steps", steps),
            ("operations", f"{human_count(self.flops)}FLOP (2 x multiply-accumulate, forward + backward)"),
            ("expected time", f"{human_seconds(self.seconds)}, {evaluation} (timed on batches of {self.probe_images})"),
            *([("in less time", self.shorter)] if self.shorter else ()),
            ("expected memory", memory),
        ]


def make_plan(
    job: Job, *, resumed: bool = False, make_probe: Callable[[Job, Cost], Probe] = Probe, began: float | None = None
) -> Plan:
    """Count, time and measure a run by a few steps; the job's network, optimizer and seeds are left as they are.

    Args:
        resumed: the run has begun, so its batch cannot change anymore.
        make_probe: what runs the steps.
        began: when the time of the recipe's budget began, by `time.monotonic`; None: now.

    Raises:
        UsageError: the time budget is too short for one epoch, or the batch does not fit into memory; only a few of
            its images were computed to find out.
    """
    recipe, feed, schedule = job.recipe, job.data.feed, job.recipe.schedule
    counts = cost(job.network, feed.size)
    images = min(feed.num_images, feed.num_batches * feed.batch_size)
    probe = make_probe(job, counts)
    memory = probe.memory()
    sharing = 1 if schedule.batch_rule == "linear" else job.world.size
    memory.check(
        feed.batch_size * sharing // job.world.size, schedule.accumulate, 4 * counts.params,
        processes=sharing, resumed=resumed,
    )  # fmt: skip
    memory_bytes = memory.peak_bytes(probe.part)
    if job.execution.device == "cuda":  # which must be full to be timed
        memory_bytes = probe.run(probe.part, compile=job.execution.compile)

    def seconds_of(other: Recipe) -> tuple[float, float]:
        """Return the expected seconds of a recipe on these data: for training, for evaluation."""
        num = ceil_div(other.schedule.epochs, other.feed.eval_every) * len(job.data.validation)
        num += len(job.data.test) if recipe.feed.holdout else 0  # else the last evaluation is the result's
        pass_s = probe.image_s / recipe.optimizer.passes / job.world.size
        # a forward pass is a third of forward and backward
        return pass_s * other.optimizer.passes * images * area_of_run(other), pass_s * num / 3

    left_s = None
    if (time_s := schedule.time_s) is not None:
        left_s = time_s - (0.0 if began is None else time.monotonic() - began)
        if not resumed:
            epoch_s = sum(seconds_of(recipe)) / schedule.epochs
            chosen = epochs_in(time_s, left_s, epoch_s, images) if job.world.is_first else None
            epochs = job.world.agree(chosen)
            recipe = with_epochs(recipe, epochs)
    schedule, areas = recipe.schedule, area_of_run(recipe)
    training_s, evaluation_s = seconds_of(recipe)
    seconds, shorter = training_s + evaluation_s, ""
    if seconds > LONG_RUN_S and not resumed and left_s is None:
        for other in _shorter(recipe, job.data.name, feed.num_images):
            if not shorter and (took := sum(seconds_of(other))) < seconds / 2:
                shorter = f"recipe {other.name}, {counted(other.schedule.epochs, 'epoch')}: {human_seconds(took)}"
    return Plan(
        steps_per_epoch=feed.num_batches,
        num_steps=schedule.epochs * feed.num_batches,
        passes=recipe.optimizer.passes,
        params=counts.params,
        flops=float(counts.training_flops - _spared_flops(counts, job.network.frozen))
        * recipe.optimizer.passes
        * images
        * areas,
        seconds=seconds,
        evaluation_s=evaluation_s,
        shorter=shorter,
        part_images=probe.part,
        probe_images=probe.num_images,
        memory_bytes=memory_bytes,
        available_bytes=memory.available_bytes,
        peak_before_bytes=probe.peak_before_bytes,
        recipe=recipe,
        left_s=left_s,
    )


def _spared_flops(counts: Cost, frozen: Collection[str]) -> int:
    """Return the operations of the backward pass that frozen stages do not need."""
    return 2 * sum(2 * stage.macs for stage in counts.stages if stage.name in frozen)


def _shorter(recipe: Recipe, known_as: str, num_train: int) -> Iterator[Recipe]:
    """Yield recipes that may take much less time, the one with the best result first."""
    if recipe.schedule.kind != "one_cycle":  # made for long runs; drops of lr cannot even be shortened by a factor
        recipe = recipes.fast(recipe.network, recipe.data, known_as, num_train)
        yield recipe
    yield recipe.replace(epochs=max(1, recipe.schedule.epochs // 4), eval_every=max(1, recipe.feed.eval_every // 4))
