"""What runs will cost, before any of them starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from wideresnet.base import progress
from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.data import Dataset
from wideresnet.experiments.store import Task
from wideresnet.networks import create
from wideresnet.networks.cost import cost
from wideresnet.spec.recipe import Recipe
from wideresnet.training.fit import prepare

MEASURING_S = 15.0
"""Networks are timed for this long, the smallest first; others are extrapolated by operations. On a GPU, searching
for algorithms and capturing take about 10 s per network, as long as a short run. This package's choice."""

BYTES_PER_PARAMETER = 4 * 4
"""Of disk: the weights, a checkpoint of weights and momentum, and room for what is being written."""

BYTES_PER_LOGIT = 4


@dataclass(frozen=True)
class Work:
    """What a run consists of.

    Attributes:
        num_steps: optimizer steps.
        flops: forward and backward of all, direct convolution, without evaluation.
        disk_bytes: of its folder.
    """

    num_steps: int
    flops: float
    disk_bytes: int


@dataclass(frozen=True)
class Estimate:
    """The cost of several runs.

    Attributes:
        num_runs: how many.
        flops: of all, see `Work`.
        seconds: on this machine, one after the other.
        disk_bytes: of all folders.
        how: what was timed.
    """

    num_runs: int
    flops: float
    seconds: float
    disk_bytes: int
    how: str


def count_work(tasks: Sequence[Task], datasets: Mapping[str, Dataset]) -> dict[str, Work]:
    """Count steps and operations of runs.

    Args:
        tasks: the runs.
        datasets: data set -> its images, for all that the runs need.

    Returns:
        Name of a run -> its work.
    """
    counted: dict[tuple[str, str], tuple[float, int]] = {}
    work = {}
    for task in tasks:
        kind, dataset = (task.recipe.network, task.dataset), datasets[task.dataset]
        if kind not in counted:
            counted[kind] = _count(task.recipe, dataset)
        flops, params = counted[kind]
        schedule, num = task.recipe.schedule, len(dataset.train)
        drop_last, size = task.recipe.feed.drop_last, schedule.batch_size
        steps = num // size if drop_last else ceil_div(num, size)
        images = min(num, steps * size) * schedule.epochs
        logits = BYTES_PER_LOGIT * len(dataset.test) * len(dataset.class_names)
        work[task.name] = Work(steps * schedule.epochs, flops * images, BYTES_PER_PARAMETER * params + logits)
    return work


def estimate(
    tasks: Sequence[Task],
    datasets: Mapping[str, Dataset],
    work: Mapping[str, Work],
    *,
    time_run: Callable[[Recipe, Dataset], float] | None = None,
) -> Estimate:
    """Time a few steps of some networks, and add up what runs will take.

    Args:
        tasks: the runs, at least one.
        datasets: as for `count_work`.
        work: what that returned.
        time_run: returns the expected seconds of a run, from a short measurement.

    Raises:
        UsageError: recipe and data do not fit each other.
    """
    time_run = time_run or _time_run
    kinds: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        kinds.setdefault((task.recipe.network, task.dataset), []).append(task)
    seconds, timed_flops, timed_s, problem = dict[str, float](), 0.0, 0.0, ""
    until = time.monotonic() + MEASURING_S
    for kind in progress.track(sorted(kinds, key=lambda kind: work[kinds[kind][0].name].flops), "timing networks"):
        if seconds and time.monotonic() > until:
            break
        first = kinds[kind][0]
        try:
            expected = time_run(first.recipe, datasets[first.dataset])
        except UsageError as error:  # too large for this machine; smaller ones may be trained
            problem = problem or str(error)
            continue
        timed_flops, timed_s = timed_flops + work[first.name].flops, timed_s + expected
        seconds |= dict.fromkeys((task.name for task in kinds[kind]), expected)
    if not seconds:
        raise UsageError(problem)
    rate = timed_flops / timed_s
    num_timed = len({(task.recipe.network, task.dataset) for task in tasks if task.name in seconds})
    some = f"{num_timed} of {len(kinds)} networks timed, the others by operations"
    return Estimate(
        num_runs=len(tasks),
        flops=sum(work[task.name].flops for task in tasks),
        seconds=sum(seconds.get(task.name, work[task.name].flops / rate) for task in tasks),
        disk_bytes=sum(work[task.name].disk_bytes for task in tasks),
        how="timed" if num_timed == len(kinds) else some,
    )


def _time_run(recipe: Recipe, dataset: Dataset) -> float:
    return prepare(recipe, dataset)[1].seconds


def _count(recipe: Recipe, dataset: Dataset) -> tuple[float, int]:
    """Return the operations of a training step per image, and the parameters of the network."""
    with torch.device("meta"):
        network = create(
            recipe.network, len(dataset.class_names), family="cifar", in_channels=dataset.train.images.shape[3]
        )
    counted = cost(network, dataset.train.images.shape[1])
    return float(counted.training_flops), counted.params
