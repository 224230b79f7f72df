"""The arithmetic of a run, told before its first step: steps, operations, time, memory."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch

from wideresnet.data.feed import share_of
from wideresnet.networks.cost import cost
from wideresnet.text import human_bytes, human_count, human_seconds
from wideresnet.training.machine import available_memory_bytes, memory_in_use_bytes, synchronise
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.prepare import Job
from wideresnet.training.schedules import image_scale
from wideresnet.training.step import Meter, train_step

PROBE_FLOPS = 60e9
"""What the timing probe may cost: under a second on two CPU cores."""


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        steps_per_epoch, num_steps: optimiser steps.
        params: parameters of the network.
        flops: forward and backward of the whole run, direct convolution, without evaluation.
        seconds: expected, from timing a few steps on this machine; evaluation included.
        probe_images: size of the batch that was timed.
        available_bytes: memory that can be had now; 0 where the system does not say.
        memory_bytes: expected peak of a process: what is held now (data, weights; on a CPU the whole process), and what
            is still to come: gradients, momentum, activations.
    """

    steps_per_epoch: int
    num_steps: int
    params: int
    flops: float
    seconds: float
    probe_images: int
    memory_bytes: int
    available_bytes: int

    def lines(self) -> list[tuple[str, str]]:
        """Rows for the table that is shown before the first step."""
        memory = human_bytes(self.memory_bytes)
        if self.available_bytes:
            memory += f" of {human_bytes(self.available_bytes)} free"
        return [
            ("parameters", f"{self.params:,}"),
            ("steps", f"{self.num_steps:,} ({self.steps_per_epoch:,} an epoch)"),
            ("operations", f"{human_count(self.flops)}FLOP (2 x multiply-accumulate, forward + backward)"),
            ("expected time", f"{human_seconds(self.seconds)} (timed on batches of {self.probe_images})"),
            ("expected memory", memory),
        ]


def make_plan(job: Job) -> Plan:
    """Count and time a run; the job's network, optimiser and seeds are left as they are."""
    recipe, feed = job.recipe, job.feed
    own_images = len(range(feed.batch_size)[share_of(feed.batch_size, feed.rank, feed.num_ranks)])
    counted = cost(job.network, feed.size, own_images)
    # work grows with the area of the images
    areas = sum(image_scale(recipe, epoch) ** 2 for epoch in range(recipe.epochs))
    images = min(feed.num_images, feed.num_batches * feed.batch_size)
    probe_images = own_images  # a GPU must be full to be timed
    if job.device == "cpu":
        probe_images = max(1, min(own_images, 32, int(PROBE_FLOPS / max(1, counted.training_flops))))
    image_s = _seconds_per_image(job, probe_images)
    evaluated = -(-recipe.epochs // recipe.eval_every) * len(job.validation) + len(job.test)
    num_copies = 2 + bool(recipe.ema_decay) + (job.world.size > 1)  # gradients, momentum, averaged weights, message
    still_to_come = 4 * counted.params * num_copies
    return Plan(
        steps_per_epoch=feed.num_batches,
        num_steps=recipe.epochs * feed.num_batches,
        params=counted.params,
        flops=float(counted.training_flops) * images * areas,
        seconds=image_s * (areas * images + evaluated / 3) / job.world.size,
        probe_images=probe_images,
        memory_bytes=memory_in_use_bytes(job.device) + still_to_come + counted.activation_bytes,
        available_bytes=available_memory_bytes(job.device),
    )


def _seconds_per_image(job: Job, num_images: int) -> float:
    """Training time of an image at full size: the best of three steps on a copy of the network."""
    network = copy.deepcopy(job.network)
    optimizer = make_optimizer(network, job.recipe)
    images, labels = next(job.feed.epoch(0))
    images, labels = images[:num_images], labels[:num_images]
    meter, best = Meter(job.device), float("inf")
    with torch.random.fork_rng(devices=[]):
        for _ in range(4):
            synchronise(job.device)
            start = time.perf_counter()
            train_step(network, optimizer, images, labels, meter, job.recipe, job.device, step=0, lr=0.0)
            synchronise(job.device)
            best = min(best, time.perf_counter() - start)
    return best / num_images
