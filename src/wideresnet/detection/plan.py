"""What a detection run will take: time and memory of a real step on the run's first images, before it begins."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes, human_seconds
from wideresnet.detection.step import DetectionMeter, train_step
from wideresnet.machine.device import synchronize
from wideresnet.machine.memory import available_memory_bytes, memory_in_use_bytes, peak_memory_mib, reset_peak_memory
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.preflight.memory import Memory

if TYPE_CHECKING:
    from wideresnet.detection.setup import DetectionJob

MARGIN = 1.15
"""Of the memory of an image: others are larger when padded to a batch, and have more objects. Own choice."""


@dataclass(frozen=True)
class DetectionPlan:
    """What a run will take.

    Attributes:
        steps_per_epoch, num_steps: optimizer steps.
        params, trained: parameters of the detector, and those that are trained.
        seconds: expected for training, from one step on this machine; evaluation, a third of it per image, included.
        evaluation_s: expected for evaluation alone.
        probe_images: images in the step that was timed.
        memory_bytes: expected peak, of the whole process on a CPU, of PyTorch's tensors on a GPU.
        available_bytes: memory available now; 0 if the system does not say.
        peak_before_bytes: the peak before the first step.
    """

    steps_per_epoch: int
    num_steps: int
    params: int
    trained: int
    seconds: float
    evaluation_s: float
    probe_images: int
    memory_bytes: int
    available_bytes: int
    peak_before_bytes: int

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield rows for the table that is shown before the first step."""
        yield "parameters", f"{self.params:,}, {self.trained:,} of them trained"
        yield "steps", f"{self.num_steps:,} ({self.steps_per_epoch:,} per epoch)"
        evaluation = f"{human_seconds(self.evaluation_s)} of it for evaluation"
        yield "expected time", f"{human_seconds(self.seconds)}, {evaluation} (timed on batches of {self.probe_images})"
        memory = f"{human_bytes(self.memory_bytes)} at the peak"
        if self.available_bytes:
            memory += f", {human_bytes(self.available_bytes)} more is available now"
        yield "expected memory", memory


def make_plan(job: DetectionJob, *, resumed: bool = False) -> DetectionPlan:
    """Time and measure a step on one image and on a few; network, optimizer and seeds are left as they are.

    Args:
        resumed: the run has begun, so its batch cannot change anymore.

    Raises:
        UsageError: the batch does not fit into memory; only a few of its images were computed to find out.
    """
    recipe, feed, device = job.recipe, job.data.feed, job.execution.device
    own = ceil_div(feed.batch_size, job.world.size)
    peak_before = int(peak_memory_mib(device) * 2**20)
    in_use = memory_in_use_bytes(device)
    available = available_memory_bytes(device) // (job.world.size if device == "cpu" else 1)
    few, more = 1, min(own, 2 if device == "cpu" else 4)
    low, _ = _probe(job, few)
    high, seconds = _probe(job, more)
    params = sum(parameter.numel() for parameter in job.network.parameters())
    slope = max((high - low) / (more - few) if more > few else (high - in_use) / more, 1.0) * MARGIN
    copied = 4 * params  # the copy that was probed
    # a checkpoint, of weights and momentum, is put together and written while the heap still has the step's room
    written = 4 * 4 * params if device == "cpu" else 0
    memory = Memory(round(high - copied + written - slope * more), slope, in_use, in_use, available)
    if not memory.fits(own):
        raise _too_large(memory, feed.batch_size, own, job.world.size, resumed=resumed)
    image_s = seconds / more / job.world.size
    num_evaluations = ceil_div(recipe.epochs, recipe.eval_every)
    evaluation_s = num_evaluations * len(job.data.evaluated.images) * image_s / 3
    num_steps = recipe.epochs * feed.num_batches
    return DetectionPlan(
        steps_per_epoch=feed.num_batches,
        num_steps=num_steps,
        params=params,
        trained=sum(parameter.numel() for parameter in job.network.parameters() if parameter.requires_grad),
        seconds=num_steps * feed.batch_size * image_s + evaluation_s,
        evaluation_s=evaluation_s,
        probe_images=more,
        memory_bytes=memory.peak_bytes(own),
        available_bytes=available,
        peak_before_bytes=peak_before,
    )


def _too_large(memory: Memory, batch_size: int, own: int, processes: int, *, resumed: bool) -> UsageError:
    """Return the refusal of a batch: its memory, what is available, and the largest that fits."""
    needed, free = (human_bytes(num) for num in (memory.peak_bytes(own) - memory.in_use_bytes, memory.available_bytes))
    shared = f" shared by {processes} processes" if processes > 1 else ""
    most = memory.most_images() * processes
    if resumed:
        fix = "a run keeps its batch: free some memory, or resume on a machine with more"
    elif most >= processes:
        fix = f"use batch_size={most} or less, or a smaller min_size="
    else:
        fix = "too little for one image: use a smaller min_size= or backbone="
    return UsageError(f"batch_size={batch_size}{shared}: needs {needed} more memory, {free} is available; {fix}")


def _probe(job: DetectionJob, num_images: int) -> tuple[int, float]:
    """Run a step on the first images on a copy of the detector; return its peak of memory, bytes, and its seconds."""
    device = job.execution.device
    cuda = [torch.cuda.current_device()] if device == "cuda" else []
    reset_peak_memory(device)
    with torch.random.fork_rng(devices=cuda):
        network = copy.deepcopy(job.network).train()
        optimizer = make_optimizer(network, job.recipe.optimizer)
        meter = DetectionMeter(device, job.losses)
        images, targets = job.data.feed.first(num_images)
        step = functools.partial(
            train_step, network, optimizer, images, targets, meter, step=0, lr=0.0,
            clip_grad_norm=job.recipe.clip_grad_norm, seed=lambda: job.world.seed_step(job.recipe.seed, 0),
        )  # fmt: skip
        if device == "cuda":  # the first step also loads libraries
            step()
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds = time.perf_counter() - started
    return int(peak_memory_mib(device) * 2**20), seconds
