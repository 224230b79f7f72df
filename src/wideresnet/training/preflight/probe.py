"""Real training steps on a few images: their time and their peak of memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wideresnet.base.arithmetic import ceil_div
from wideresnet.machine.device import synchronize
from wideresnet.machine.memory import (
    available_memory_bytes,
    memory_in_use_bytes,
    peak_memory_mib,
    reset_peak_memory,
)
from wideresnet.networks import Network
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.cost import Cost, saved_bytes
from wideresnet.training.captured import EAGER_STEPS, Step, make_step
from wideresnet.training.configure import evaluates_by_kernels, make_forward
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.preflight.memory import Memory, fit_line
from wideresnet.training.schedules import image_scale
from wideresnet.training.setup import Job
from wideresnet.training.step import Meter, training_loss

PROBE_FLOPS = 80e9
"""What a step of the probe may cost: one to two seconds on two CPU cores, and WRN-16-2's whole batch of 128."""


@dataclass(frozen=True)
class Gauge:
    """How memory is read: the process's on a CPU, PyTorch's tensors on a GPU."""

    in_use_bytes: Callable[[str], int] = memory_in_use_bytes
    available_bytes: Callable[[str], int] = available_memory_bytes
    peak_mib: Callable[[str], float] = peak_memory_mib
    reset_peak: Callable[[str], bool] = reset_peak_memory


class Probe:
    """Real steps on a few images, on a copy of the network, timed and with their peaks of memory.

    Args:
        counted: cost of the network at the size of the run's images.
        gauge: how memory is read.
        make: makes the training step.
        flops: what a step may cost.

    Attributes:
        own_images: of a batch, those of one process.
        part: those that it computes at once.
        num_images, image_s: the batch that was timed, and the training time of an image at full size.
        peak_before_bytes: the peak of memory before the first step, from loading the data.
    """

    def __init__(
        self,
        job: Job,
        counted: Cost,
        *,
        gauge: Gauge = Gauge(),  # frozen
        make: Callable[..., Step] = make_step,
        flops: float = PROBE_FLOPS,
    ) -> None:
        self.job, recipe, self.device = job, job.recipe, job.execution.device
        self.gauge, self.make = gauge, make
        self.cuda = [torch.cuda.current_device()] if self.device == "cuda" else []
        self.scale = max(image_scale(recipe, epoch) for epoch in range(recipe.schedule.epochs))
        feed, world = job.data.feed, job.world
        self.own_images = ceil_div(feed.batch_size, world.size)  # the largest share, so that all plan alike
        self.part = ceil_div(self.own_images, recipe.schedule.accumulate)
        self.weights_bytes = 4 * counted.params
        self.averaged_bytes = self.weights_bytes if recipe.optimizer.ema_decay else 0
        self.message_bytes = self.weights_bytes if world.size > 1 else 0  # to the other processes
        step_flops = max(1, counted.training_flops) * self.scale**2 * recipe.optimizer.passes
        most = 32 if self.device == "cuda" else int(flops / step_flops)
        # at least two images, for batch normalization
        self.large = min(self.part, max(4, most))
        self.small = min(self.part, max(2, self.large // 4))
        self.in_use_bytes = gauge.in_use_bytes(self.device)
        self.available_bytes = gauge.available_bytes(self.device) // (world.size if self.device == "cpu" else 1)
        self.peak_before_bytes = int(gauge.peak_mib(self.device) * 2**20)
        self.image_s, self.num_images = 0.0, 0

    def memory(self) -> Memory:
        """Return a line through the peaks of two small batches; if the system keeps no peaks, what can be counted.

        The larger batch is run only if it is expected to fit.
        """
        kept_image, kernels = self._kept_image_bytes(), self.job.execution.kernels
        small = (self.small, self.run(self.small))
        if not self.gauge.reset_peak(self.device):
            held = (2 if self.job.recipe.optimizer.passes == 1 else 3) * self.weights_bytes  # SAM keeps the weights
            return self._memory(self.in_use_bytes + self.averaged_bytes + held, kept_image)
        memory = self._memory(*fit_line(small, small, kept_image, self.weights_bytes, kernels))
        if not memory.fits(self.large):
            return memory
        large = (self.large, self.run(self.large))
        return self._memory(*fit_line(small, large, kept_image, self.weights_bytes, kernels))

    def _memory(self, fixed_bytes: int, image_bytes: float) -> Memory:
        floor = self.peak_before_bytes  # of loading; a GPU's run writes and evaluates in less, or on the host
        if self.device == "cpu":  # writing a checkpoint takes its tensors in the file's order, and the file
            saved = 2 * self.weights_bytes + self.averaged_bytes
            # evaluation copies the network; for the kernels it also transforms the weights, to four times their size
            by_kernels = evaluates_by_kernels(self.job.network, self.job.execution)
            evaluated = (5 if by_kernels else 1) * self.weights_bytes
            held = self.in_use_bytes + saved - self.weights_bytes
            floor = max(floor, held + max(2 * saved, evaluated))
        return Memory(fixed_bytes + self.message_bytes, image_bytes, floor, self.in_use_bytes, self.available_bytes)

    def run(self, num_images: int, *, compile: bool = False) -> int:
        """Time steps with this many images per part, and return the peak of memory that a run has with them, bytes.

        Args:
            compile: run the compiled network.
        """
        device, recipe = self.device, self.job.recipe
        accumulate = min(2, recipe.schedule.accumulate)
        self.gauge.reset_peak(device)
        network = self._network()
        forward = make_forward(network, replace(self.job.execution, compile=compile))
        optimizer, options, best = make_optimizer(network, recipe.optimizer), recipe.optimizer, float("inf")
        take_step = self.make(
            network, forward, optimizer, Meter(device), self.job.execution, label_smoothing=options.label_smoothing,
            accumulate=accumulate, clip_grad_norm=options.clip_grad_norm, sam_rho=options.sam_rho,
            class_weights=self.job.class_weights,
        )  # fmt: skip
        images, labels = self._batch(num_images * accumulate)
        with torch.random.fork_rng(devices=self.cuda):
            for number in range(EAGER_STEPS + 2 if device == "cuda" else 2):  # on a GPU the last one is a replay
                if number == 1 and device == "cuda":  # cuDNN's search in the first step took extra memory
                    self.gauge.reset_peak(device)
                synchronize(device)
                start = time.perf_counter()
                take_step(images, labels, step=0, lr=0.0)
                synchronize(device)
                best = min(best, time.perf_counter() - start)
        peak = int(self.gauge.peak_mib(device) * 2**20)
        if not recipe.optimizer.ema_decay:  # a run has averages in place of this copy, or neither
            peak -= self.weights_bytes
        self.image_s, self.num_images = best / len(labels) / self.scale**2, len(labels)
        self.gauge.reset_peak(device)
        return peak

    def _kept_image_bytes(self) -> float:
        """Return what autograd keeps of an image, by the difference of two batches: it may keep weights in bf16 too."""
        few, more = self._kept_bytes(2), self._kept_bytes(4)
        return (more - few) / 2 if self.part >= 4 else few / min(self.part, 2)

    def _kept_bytes(self, num_images: int) -> int:
        network, execution = self._network(), replace(self.job.execution, compile=False)
        forward = make_forward(network, execution)
        images, labels = self._batch(min(num_images, self.part))
        with torch.random.fork_rng(devices=self.cuda):
            return saved_bytes(lambda: training_loss(forward, images, labels, execution), network)

    def _network(self) -> Network:
        """Return a copy in which every block counts, as it may in any step."""
        network = copy.deepcopy(self.job.network)
        for module in network.modules():
            if isinstance(module, PreActBlock | PostActBlock):
                module.survival = 1.0
        return network

    def _batch(self, num_images: int) -> tuple[Tensor, Tensor]:
        """Return the first images of the run, at the largest of its scales, and never more than were asked for."""
        return self.job.data.feed.first(min(num_images, self.own_images), scale=self.scale)
