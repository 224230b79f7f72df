"""The arithmetic of a run, told before its first step: steps, operations, time, memory."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from wideresnet.base.format import human_bytes, human_count, human_seconds
from wideresnet.machine.device import synchronise
from wideresnet.machine.memory import available_memory_bytes, memory_in_use_bytes, peak_memory_mib, reset_peak_memory
from wideresnet.networks import Network
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.cost import Cost, cost, saved_bytes
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.preflight.autotune import forward_of
from wideresnet.training.preflight.memory import Memory, fit_line
from wideresnet.training.schedules import image_scale
from wideresnet.training.setup import Job
from wideresnet.training.step import Meter, train_step, training_loss

PROBE_FLOPS = 80e9
"""What a step of the probe may cost: one to two seconds on two CPU cores, and WRN-16-2's whole batch of 128."""


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        steps_per_epoch, num_steps: optimiser steps.
        params: parameters of the network.
        flops: forward and backward of the whole run, direct convolution, without evaluation.
        seconds: expected, from timing a few steps on this machine; evaluation included.
        part_images: images computed at once: the batch, or a part of it where gradients are accumulated.
        probe_images: size of the batch that was timed.
        memory_bytes: expected peak, of the whole process on a CPU, of PyTorch's tensors on a GPU.
        available_bytes: memory that can be had now; 0 where the system does not say.
        peak_before_bytes: the peak before the first step: loading the data.
    """

    steps_per_epoch: int
    num_steps: int
    params: int
    flops: float
    seconds: float
    part_images: int
    probe_images: int
    memory_bytes: int
    available_bytes: int
    peak_before_bytes: int

    def lines(self) -> list[tuple[str, str]]:
        """Rows for the table that is shown before the first step."""
        memory = f"{human_bytes(self.memory_bytes)} at the peak"
        if self.available_bytes:
            memory += f", {human_bytes(self.available_bytes)} more can be had now"
        return [
            ("parameters", f"{self.params:,}"),
            ("steps", f"{self.num_steps:,} ({self.steps_per_epoch:,} an epoch)"),
            ("operations", f"{human_count(self.flops)}FLOP (2 x multiply-accumulate, forward + backward)"),
            ("expected time", f"{human_seconds(self.seconds)} (timed on batches of {self.probe_images})"),
            ("expected memory", memory),
        ]


def make_plan(job: Job, *, resumed: bool = False) -> Plan:
    """Count, time and measure a run by a few steps; the job's network, optimiser and seeds are left as they are.

    Args:
        resumed: the run has begun, so its batch cannot change any more.

    Raises:
        UsageError: the batch does not fit into memory; only a few of its images were computed to know.
    """
    recipe, feed = job.recipe, job.feed
    counted = cost(job.network, feed.size)
    # work grows with the area of the images
    areas = sum(image_scale(recipe, epoch) ** 2 for epoch in range(recipe.epochs))
    images = min(feed.num_images, feed.num_batches * feed.batch_size)
    probe = _Probe(job, counted)
    memory = probe.memory()
    sharing = 1 if recipe.batch_rule == "linear" else job.world.size
    memory.check(
        feed.batch_size * sharing // job.world.size, recipe.accumulate, 4 * counted.params,
        processes=sharing, resumed=resumed,
    )  # fmt: skip
    memory_bytes = memory.peak_bytes(probe.part)
    if job.device == "cuda":  # which must be full to be timed
        memory_bytes = probe.run(probe.part, compile=bool(recipe.compile))
    evaluated = -(-recipe.epochs // recipe.eval_every) * len(job.validation) + len(job.test)
    return Plan(
        steps_per_epoch=feed.num_batches,
        num_steps=recipe.epochs * feed.num_batches,
        params=counted.params,
        flops=float(counted.training_flops) * images * areas,
        seconds=probe.image_s * (areas * images + evaluated / 3) / job.world.size,
        part_images=probe.part,
        probe_images=probe.num_images,
        memory_bytes=memory_bytes,
        available_bytes=memory.available_bytes,
        peak_before_bytes=probe.peak_before_bytes,
    )


class _Probe:
    """Real steps on few images, on a copy of the network, timed and with their peaks of memory.

    Attributes:
        own_images: of a batch, a process's.
        part: those that it computes at once.
        num_images, image_s: the batch that was timed, and the training time of an image at full size.
        peak_before_bytes: the peak of memory before the first step: loading the data.
    """

    def __init__(self, job: Job, counted: Cost) -> None:
        self.job, recipe = job, job.recipe
        self.cuda = [torch.cuda.current_device()] if job.device == "cuda" else []
        self.scale = max(image_scale(recipe, epoch) for epoch in range(recipe.epochs))
        feed, world = job.feed, job.world
        self.own_images = -(-feed.batch_size // world.size)  # the largest share, for all to plan alike
        self.part = -(-self.own_images // recipe.accumulate)
        self.weights_bytes = 4 * counted.params
        self.averaged_bytes = self.weights_bytes if recipe.ema_decay else 0
        self.message_bytes = self.weights_bytes if world.size > 1 else 0  # to the other processes
        most = 32 if job.device == "cuda" else int(PROBE_FLOPS / (max(1, counted.training_flops) * self.scale**2))
        # at least two images, for batch normalisation
        self.large = min(self.part, max(4, most))
        self.small = min(self.part, max(2, self.large // 4))
        self.in_use_bytes = memory_in_use_bytes(job.device)
        self.available_bytes = available_memory_bytes(job.device) // (world.size if job.device == "cpu" else 1)
        self.peak_before_bytes = int(peak_memory_mib(job.device) * 2**20)
        self.image_s, self.num_images = 0.0, 0

    def memory(self) -> Memory:
        """A line through the peaks of two small batches; where the system keeps no peaks, what can be counted.

        The larger one is run only where it is expected to fit.
        """
        kept_image, kernels = self._kept_image_bytes(), self.job.recipe.kernels
        small = (self.small, self.run(self.small))
        if not reset_peak_memory(self.job.device):
            return self._memory(self.in_use_bytes + self.averaged_bytes + 2 * self.weights_bytes, kept_image)
        memory = self._memory(*fit_line(small, small, kept_image, self.weights_bytes, kernels))
        if not memory.fits(self.large):
            return memory
        large = (self.large, self.run(self.large))
        return self._memory(*fit_line(small, large, kept_image, self.weights_bytes, kernels))

    def _memory(self, fixed_bytes: int, image_bytes: float) -> Memory:
        floor = 0  # a GPU's run loads and writes in the host's memory
        if self.job.device == "cpu":  # writing a checkpoint takes its tensors in the file's order, and the file
            saved = 2 * self.weights_bytes + self.averaged_bytes
            # evaluation copies the network; for the kernels it also transforms the weights, to four times their memory
            evaluated = (5 if self.job.recipe.kernels == "winograd" else 1) * self.weights_bytes
            held = self.in_use_bytes + saved - self.weights_bytes
            floor = max(self.peak_before_bytes, held + max(2 * saved, evaluated))
        return Memory(fixed_bytes + self.message_bytes, image_bytes, floor, self.in_use_bytes, self.available_bytes)

    def run(self, num_images: int, *, compile: bool = False) -> int:
        """Time two steps whose parts have so many images, and return what their peak of memory is in a run, bytes."""
        device = self.job.device
        recipe = dataclasses.replace(self.job.recipe, accumulate=min(2, self.job.recipe.accumulate))
        reset_peak_memory(device)
        network = self._network()
        forward = forward_of(network, dataclasses.replace(recipe, compile=compile))
        optimizer, meter, best = make_optimizer(network, recipe), Meter(device), float("inf")
        images, labels = self._batch(num_images * recipe.accumulate)
        with torch.random.fork_rng(devices=self.cuda):
            for number in range(2):
                if number and device == "cuda":  # in the first step cuDNN tries its ways, in memory of their own
                    reset_peak_memory(device)
                synchronise(device)
                start = time.perf_counter()
                train_step(forward, optimizer, images, labels, meter, recipe, device, step=0, lr=0.0)
                synchronise(device)
                best = min(best, time.perf_counter() - start)
        peak = int(peak_memory_mib(device) * 2**20)
        if not recipe.ema_decay:  # a run has averages in place of this copy, or neither
            peak -= self.weights_bytes
        self.image_s, self.num_images = best / len(labels) / self.scale**2, len(labels)
        reset_peak_memory(device)
        return peak

    def _kept_image_bytes(self) -> float:
        """What autograd keeps of an image, from the difference of two batches: it may keep weights in bf16 too."""
        few, more = self._kept_bytes(2), self._kept_bytes(4)
        return (more - few) / 2 if self.part >= 4 else few / min(self.part, 2)

    def _kept_bytes(self, num_images: int) -> int:
        recipe, device = self.job.recipe, self.job.device
        network = self._network()
        forward = forward_of(network, dataclasses.replace(recipe, compile=False))
        images, labels = self._batch(min(num_images, self.part))
        with torch.random.fork_rng(devices=self.cuda):
            return saved_bytes(lambda: training_loss(forward, images, labels, recipe, device), network)

    def _network(self) -> Network:
        """A copy in which every block counts, as it may in any step."""
        network = copy.deepcopy(self.job.network)
        for module in network.modules():
            if isinstance(module, PreActBlock | PostActBlock):
                module.survival = 1.0
        return network

    def _batch(self, num_images: int) -> tuple[Tensor, Tensor]:
        """The first images of the run, at the largest of its scales, and never more than were asked for."""
        feed = copy.copy(self.job.feed)
        feed.batch_size, feed.rank, feed.num_ranks = min(num_images, self.own_images), 0, 1
        return next(feed.epoch(0, scale=self.scale))
