"""One training step, and what is counted along the way without waiting for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.distributed.world import GradientSum
from wideresnet.spec.recipe import Recipe


def training_loss(
    network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, device: str
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of a batch, float32, and the logits."""
    if recipe.layout == "contiguous":  # a feed yields channels_last
        images = images.contiguous()
    with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = network(images)
    return F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing), logits


def count_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images' highest logit is not their label's."""
    return (logits.argmax(1) != labels).sum()


class Meter:
    """Sums over the epoch under way, kept on the device; float64, so that no order or pause changes them.

    Attributes:
        sums: float64 (2,): loss summed over images, and number of errors.
        num_images: images seen.
        failed_step: int64, the first step whose loss was not finite; -1 while there is none.
    """

    def __init__(self, device: str) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.num_images = 0
        self.failed_step = torch.full((), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, step: int) -> Tensor:
        """Count a batch; returns float32 1.0 when this or an earlier loss is not finite, else 0.0."""
        return self.count(loss, count_errors(logits, labels), len(labels), step)

    @torch.no_grad()
    def count(self, loss: Tensor, errors: Tensor, num_images: int, step: int) -> Tensor:
        """Count a batch by its mean loss and number of errors; returns what `add` does."""
        self.sums += torch.stack((loss.double() * num_images, errors.double()))
        self.num_images += num_images
        fails_now = ~torch.isfinite(loss) & (self.failed_step < 0)
        self.failed_step = torch.where(fails_now, step, self.failed_step)
        return (self.failed_step >= 0).float()

    def read(self) -> tuple[float, float]:
        """Mean loss and error in percent so far; waits for the device."""
        if self.num_images == 0:
            return float("nan"), float("nan")
        loss, errors = self.sums.tolist()
        return loss / self.num_images, 100 * errors / self.num_images

    def to_json(self) -> dict[str, float]:
        """For a checkpoint; float64 survives JSON exactly."""
        loss, errors = self.sums.tolist()
        return {"loss_sum": loss, "num_errors": errors, "num_images": self.num_images}

    def restore(self, values: dict[str, float]) -> None:
        """The inverse of `to_json`."""
        self.sums.copy_(torch.tensor([values["loss_sum"], values["num_errors"]], dtype=torch.float64))
        self.num_images = int(values["num_images"])


def train_step(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    meter: Meter,
    recipe: Recipe,
    device: str,
    *,
    step: int,
    lr: float,
    together: GradientSum | None = None,
    num_images: int = 0,
) -> None:
    """Forward, backward, update. Once a loss is not finite no update is made any more, and `meter` knows since when.

    With `recipe.accumulate` the batch goes through in parts, whose gradients add up to the mean over all its images.

    Args:
        together: the exchange with other processes, which have the other images of the batch.
        num_images: images of the whole batch, where there are other processes.
    """
    failed: Tensor | None = None
    shares, errors = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    num_parts = min(recipe.accumulate, len(labels))  # the last batch of an epoch may be small
    for part, targets in zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True):
        loss, logits = training_loss(network, part, targets, recipe, device)
        if together is None:
            failed = meter.add(loss.detach(), logits.detach(), targets, step)
            (loss if num_parts == 1 else loss * (len(targets) / len(labels))).backward()
        else:
            share = loss * (len(targets) / num_images)  # those of all parts and processes add up to the batch's mean
            share.backward()
            shares += share.detach()
            errors += count_errors(logits.detach(), targets)
    if together is not None:
        failed = meter.count(*together.exchange(shares, errors), num_images, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        for parameter in group["params"]:
            if parameter.grad is None:  # stochastic depth left its block out; decay and momentum go on, as in Torch 7
                parameter.grad = torch.zeros_like(parameter)
    # the fused SGD leaves everything as it is where this is 1, without asking the host
    optimizer.found_inf = failed  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
