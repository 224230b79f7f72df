"""One training step of a detector, and its sums over an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wideresnet.distributed.collectives import all_reduce
from wideresnet.distributed.gradients import GradientExchange
from wideresnet.training.schedules import Schedule

WARMUP_START = 1e-3
"""Of the learning rate, at the first step. Source: torchvision's references/detection, engine.py."""

LOSSES = {
    "faster_rcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "retinanet": ("classification", "bbox_regression"),
}
"""The parts of torchvision's losses, which are added."""


@dataclass(frozen=True)
class WarmedUp:
    """A schedule whose first steps are scaled, linearly from `WARMUP_START` to 1.

    Attributes:
        schedule: of the steps after it.
        warmup_steps: how many.
    """

    schedule: Schedule
    warmup_steps: int

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        share = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return self.schedule.lr(step) * (WARMUP_START + (1 - WARMUP_START) * share)

    def resets_momentum(self, step: int) -> bool:
        """Never, as in the source."""
        del step
        return False


class DetectionMeter:
    """Sums of the losses over the current epoch, on the device, in float64; see `training.step.Meter`.

    Attributes:
        sums: float64 (parts,), each summed over steps, weighted by images.
        num_images: images seen.
        failed_step: int64, the first step whose loss was not finite; -1 if there is none.
    """

    def __init__(self, device: str, parts: Sequence[str]) -> None:
        self.parts = tuple(parts)
        self.sums = torch.zeros(len(self.parts), dtype=torch.float64, device=device)
        self.num_images = 0
        self.failed_step = torch.full((), -1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Start the next epoch."""
        self.sums.zero_()
        self.num_images = 0

    @torch.no_grad()
    def count(self, losses: Tensor, num_images: int, step: int) -> Tensor:
        """Count a step by the mean of each part; return float32 1.0 if this or an earlier one failed, else 0.0."""
        self.sums += losses.double() * num_images
        self.num_images += num_images
        fails_now = ~torch.isfinite(losses).all() & (self.failed_step < 0)
        self.failed_step.copy_(torch.where(fails_now, step, self.failed_step))
        return (self.failed_step >= 0).float()

    def read(self) -> dict[str, float]:
        """Return the mean of each part so far; this waits for the device."""
        means = (self.sums / max(1, self.num_images)).tolist()
        return dict(zip(self.parts, means, strict=True))

    def to_json(self) -> dict[str, float]:
        """Return the sums for a checkpoint; float64 survives JSON exactly."""
        return {**dict(zip(self.parts, self.sums.tolist(), strict=True)), "num_images": self.num_images}

    def restore(self, values: dict[str, float]) -> None:
        """Load what `to_json` returned."""
        self.sums.copy_(torch.tensor([values[part] for part in self.parts], dtype=torch.float64))
        self.num_images = int(values["num_images"])


def train_step(
    forward: nn.Module,
    optimizer: torch.optim.SGD,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
    meter: DetectionMeter,
    *,
    step: int,
    lr: float,
    clip_grad_norm: float = 0.0,
    seed: Callable[[], None] = lambda: None,
    together: GradientExchange | None = None,
    num_images: int = 0,
) -> None:
    """Run forward, backward and update. After a loss that is not finite no update is made, and `meter` knows the step.

    Args:
        images: float32 (3, H, W) in 0..1 each, on the device.
        targets: `boxes` and `labels` of each.
        step, lr: of this step.
        clip_grad_norm: the largest norm of the whole gradient; 0 for no limit.
        seed: seeds the sampling of anchors and regions.
        together: the exchange with other processes, which have the other images of the batch.
        num_images: images of the whole batch.
    """
    seed()
    with together.part(is_last=True) if together else nullcontext():
        losses = forward(images, targets)
        parts = torch.stack([losses[part].float() for part in meter.parts])
        share = len(images) / num_images if together else 1.0  # each process's mean counts by its images
        (parts.sum() * share).backward()
    parts = parts.detach() * share
    if together:
        first, second = together.finish(parts[0], parts[1])  # it has places for two numbers
        others = parts[2:].clone()
        if len(others):
            all_reduce(others)
        parts = torch.cat((torch.stack((first, second)), others))
    failed = meter.count(parts, num_images or len(images), step)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if clip_grad_norm:
        nn.utils.clip_grad_norm_(trained, clip_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.found_inf = failed  # type: ignore[attr-defined]  # the fused SGD then leaves everything as it is
    optimizer.step()
    optimizer.zero_grad()
