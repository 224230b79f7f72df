"""The arithmetic of a run, told before its first step: steps, operations, time, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.format import human_bytes, human_count, human_seconds
from wideresnet.networks.cost import Cost, cost
from wideresnet.training.preflight.probe import Probe
from wideresnet.training.schedules import image_scale
from wideresnet.training.setup import Job


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        steps_per_epoch, num_steps: optimizer steps.
        params: parameters of the network.
        flops: forward and backward of the whole run, direct convolution, without evaluation.
        seconds: expected, from timing a few steps on this machine; evaluation included.
        part_images: images computed at once: the batch, or a part of it if gradients are accumulated.
        probe_images: size of the batch that was timed.
        memory_bytes: expected peak, of the whole process on a CPU, of PyTorch's tensors on a GPU.
        available_bytes: memory available now; 0 if the system does not say.
        peak_before_bytes: the peak before the first step, from loading the data.
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
        """Return rows for the table that is shown before the first step."""
        memory = f"{human_bytes(self.memory_bytes)} at the peak"
        if self.available_bytes:
            memory += f", {human_bytes(self.available_bytes)} more is available now"
        return [
            ("parameters", f"{self.params:,}"),
            ("steps", f"{self.num_steps:,} ({self.steps_per_epoch:,} per epoch)"),
            ("operations", f"{human_count(self.flops)}FLOP (2 x multiply-accumulate, forward + backward)"),
            ("expected time", f"{human_seconds(self.seconds)} (timed on batches of {self.probe_images})"),
            ("expected memory", memory),
        ]


def make_plan(job: Job, *, resumed: bool = False, make_probe: Callable[[Job, Cost], Probe] = Probe) -> Plan:
    """Count, time and measure a run by a few steps; the job's network, optimizer and seeds are left as they are.

    Args:
        resumed: the run has begun, so its batch cannot change anymore.
        make_probe: what runs the steps.

    Raises:
        UsageError: the batch does not fit into memory; only a few of its images were computed to find out.
    """
    recipe, feed, schedule = job.recipe, job.data.feed, job.recipe.schedule
    counted = cost(job.network, feed.size)
    # work grows with the area of the images
    areas = sum(image_scale(recipe, epoch) ** 2 for epoch in range(schedule.epochs))
    images = min(feed.num_images, feed.num_batches * feed.batch_size)
    probe = make_probe(job, counted)
    memory = probe.memory()
    sharing = 1 if schedule.batch_rule == "linear" else job.world.size
    memory.check(
        feed.batch_size * sharing // job.world.size, schedule.accumulate, 4 * counted.params,
        processes=sharing, resumed=resumed,
    )  # fmt: skip
    memory_bytes = memory.peak_bytes(probe.part)
    if job.execution.device == "cuda":  # which must be full to be timed
        memory_bytes = probe.run(probe.part, compile=job.execution.compile)
    evaluated = ceil_div(schedule.epochs, recipe.feed.eval_every) * len(job.data.validation) + len(job.data.test)
    return Plan(
        steps_per_epoch=feed.num_batches,
        num_steps=schedule.epochs * feed.num_batches,
        params=counted.params,
        flops=float(counted.training_flops) * images * areas,
        seconds=probe.image_s * (areas * images + evaluated / 3) / job.world.size,
        part_images=probe.part,
        probe_images=probe.num_images,
        memory_bytes=memory_bytes,
        available_bytes=memory.available_bytes,
        peak_before_bytes=probe.peak_before_bytes,
    )
