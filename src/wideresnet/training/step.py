"""One training step, and what it counts without waiting for the device."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.distributed.gradients import GradientExchange
from wideresnet.spec.execution import Execution


def training_loss(
    forward: nn.Module, images: Tensor, labels: Tensor, execution: Execution, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the mean cross entropy of a batch, float32, and the logits.

    Args:
        forward: the network's forward pass, see `configure.make_forward`.
        images: float32 (B, C, H, W), channels last as a feed yields them.
        labels: int64 (B,).
    """
    if execution.layout == "contiguous":
        images = images.contiguous()
    with torch.autocast(execution.device, torch.bfloat16, enabled=execution.precision == "bf16"):
        logits = forward(images)
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing), logits


def count_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the images whose highest logit is not their label's."""
    return (logits.argmax(1) != labels).sum()


class Meter:
    """Sums over the current epoch, kept on the device; float64, so that neither order nor a pause changes them.

    Attributes:
        sums: float64 (2,): loss summed over images, and number of errors.
        num_images: images seen.
        failed_step: int64, the first step whose loss was not finite; -1 if there is none.
    """

    def __init__(self, device: str) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.num_images = 0
        self.failed_step = torch.full((), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, step: int) -> Tensor:
        """Count a batch; return float32 1.0 if this or an earlier loss is not finite, else 0.0."""
        return self.count(loss, count_errors(logits, labels), len(labels), step)

    @torch.no_grad()
    def count(self, loss: Tensor, errors: Tensor, num_images: int, step: int) -> Tensor:
        """Count a batch by its mean loss and number of errors; return what `add` does."""
        self.sums += torch.stack((loss.double() * num_images, errors.double()))
        self.num_images += num_images
        fails_now = ~torch.isfinite(loss) & (self.failed_step < 0)
        self.failed_step = torch.where(fails_now, step, self.failed_step)
        return (self.failed_step >= 0).float()

    def read(self) -> tuple[float, float]:
        """Return mean loss and error in percent so far; this waits for the device."""
        if self.num_images == 0:
            return float("nan"), float("nan")
        loss, errors = self.sums.tolist()
        return loss / self.num_images, 100 * errors / self.num_images

    def to_json(self) -> dict[str, float]:
        """Return the sums for a checkpoint; float64 survives JSON exactly."""
        loss, errors = self.sums.tolist()
        return {"loss_sum": loss, "num_errors": errors, "num_images": self.num_images}

    def restore(self, values: dict[str, float]) -> None:
        """Load what `to_json` returned."""
        self.sums.copy_(torch.tensor([values["loss_sum"], values["num_errors"]], dtype=torch.float64))
        self.num_images = int(values["num_images"])


def train_step(
    forward: nn.Module,
    optimizer: torch.optim.SGD,
    images: Tensor,
    labels: Tensor,
    meter: Meter,
    execution: Execution,
    *,
    step: int,
    lr: float,
    label_smoothing: float = 0.0,
    accumulate: int = 1,
    together: GradientExchange | None = None,
    num_images: int = 0,
) -> None:
    """Run forward, backward and update. After a loss that is not finite no update is made, and `meter` knows the step.

    Args:
        accumulate: parts in which the batch is computed; their gradients add up to the mean over all its images.
        together: the exchange with other processes, which have the other images of the batch.
        num_images: images of the whole batch, if there are other processes.
    """
    device = execution.device
    failed: Tensor | None = None
    shares, errors = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    num_parts = min(accumulate, len(labels))  # the last batch of an epoch may be small
    parts = zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True)
    for index, (part, targets) in enumerate(parts):
        with together.part(is_last=index == num_parts - 1) if together else nullcontext():
            loss, logits = training_loss(forward, part, targets, execution, label_smoothing)
            if together is None:
                failed = meter.add(loss.detach(), logits.detach(), targets, step)
                (loss if num_parts == 1 else loss * (len(targets) / len(labels))).backward()
            else:
                share = loss * (len(targets) / num_images)  # the shares of all parts and processes add up to the mean
                share.backward()
                shares += share.detach()
                errors += count_errors(logits.detach(), targets)
    if together is not None:
        failed = meter.count(*together.finish(shares, errors), num_images, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        for parameter in group["params"]:
            if parameter.grad is None:  # stochastic depth left its block out; decay and momentum apply, as in Torch 7
                parameter.grad = torch.zeros_like(parameter)
    # if this is 1, the fused SGD leaves everything as it is, without asking the host
    optimizer.found_inf = failed  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
