"""One training step, and what it counts without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.distributed.gradients import GradientExchange
from wideresnet.spec.execution import Execution
from wideresnet.training.sharpness import perturbed


def training_loss(
    forward: nn.Module,
    images: Tensor,
    labels: Tensor,
    execution: Execution,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean cross entropy of a batch, float32, and the logits.

    Args:
        forward: the network's forward pass, see `configure.make_forward`.
        images: float32 (B, C, H, W), channels last as a feed yields them.
        labels: int64 (B,), or the share of each class, float32 (B, classes).
        class_weights: float32 (classes,), by which the loss of an image is multiplied; a mixed image has the mean of
            its classes by their shares. The sum is still divided by B, so that parts of a batch add up to it.
    """
    if execution.layout == "contiguous":
        images = images.contiguous()
    with torch.autocast(execution.device, torch.bfloat16, enabled=execution.precision == "bf16"):
        logits = forward(images)
    if class_weights is None:
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing), logits
    losses = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="none")
    weights = class_weights[labels] if labels.ndim == 1 else labels @ class_weights
    return (losses * weights).mean(), logits


def count_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the images whose highest logit is not their label's; of mixed labels the largest one counts."""
    return (logits.argmax(1) != (labels if labels.ndim == 1 else labels.argmax(1))).sum()


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

    def reset(self) -> None:
        """Start the next epoch, in the same memory: a captured step writes there."""
        self.sums.zero_()
        self.num_images = 0

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, step: int | Tensor) -> Tensor:
        """Count a batch; return float32 1.0 if this or an earlier loss is not finite, else 0.0."""
        return self.count(loss, count_errors(logits, labels), len(labels), step)

    @torch.no_grad()
    def count(self, loss: Tensor, errors: Tensor, num_images: int, step: int | Tensor) -> Tensor:
        """Count a batch by its mean loss and number of errors; return what `add` does."""
        self.sums += torch.stack((loss.double() * num_images, errors.double()))
        self.num_images += num_images
        fails_now = ~torch.isfinite(loss) & (self.failed_step < 0)
        self.failed_step.copy_(torch.where(fails_now, step, self.failed_step))
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
    step: int | Tensor,
    lr: float | Tensor,
    label_smoothing: float = 0.0,
    accumulate: int = 1,
    clip_grad_norm: float = 0.0,
    sam_rho: float = 0.0,
    class_weights: Tensor | None = None,
    seed: Callable[[], None] = lambda: None,
    together: GradientExchange | None = None,
    num_images: int = 0,
) -> None:
    """Run forward, backward and update. After a loss that is not finite no update is made, and `meter` knows the step.

    Args:
        step: counted from 0; a tensor on the device, int64 (), if steps are captured, see `captured`.
        lr: learning rate; likewise, float64 ().
        accumulate: parts in which the batch is computed; their gradients add up to the mean over all its images.
        clip_grad_norm: the largest norm of the whole gradient, without weight decay; 0 for no limit.
        sam_rho: take the gradient at weights that are perturbed by so much, see `sharpness`; 0 for none.
        class_weights: as for `training_loss`.
        seed: seeds dropout and stochastic depth; called before each pass over the batch, so that both draw the same.
        together: the exchange with other processes, which have the other images of the batch.
        num_images: images of the whole batch, if there are other processes.
    """
    num_parts = min(accumulate, len(labels))  # the last batch of an epoch may be small
    parts = list(zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True))

    def add_gradients(*, exchange: bool) -> list[tuple[Tensor, Tensor]]:
        """Add up the gradients of all parts; return the mean loss and the number of errors of each."""
        seed()
        found = []
        for index, (part, targets) in enumerate(parts):
            is_last = exchange and index == num_parts - 1
            with together.part(is_last=is_last) if together else nullcontext():
                loss, logits = training_loss(forward, part, targets, execution, label_smoothing, class_weights)
                # the shares of all parts and processes add up to the mean over the batch
                whole = num_images if together else len(labels)
                (loss if len(targets) == whole else loss * (len(targets) / whole)).backward()
            found.append((loss.detach(), count_errors(logits.detach(), targets)))
        return found

    if sam_rho:
        found = add_gradients(exchange=False)
        with perturbed(forward, sam_rho):
            second = add_gradients(exchange=True)
        # the loss is that of the weights themselves, but not finite if that of the perturbed ones is not
        found = [(loss + 0 * uphill, errors) for (loss, errors), (uphill, _) in zip(found, second, strict=True)]
    else:
        found = add_gradients(exchange=True)
    failed: Tensor | None = None
    if together is None:
        for (loss, errors), (_, targets) in zip(found, parts, strict=True):
            failed = meter.count(loss, errors, len(targets), step)
    else:
        shares = torch.zeros((), device=execution.device)
        for (loss, _), (_, targets) in zip(found, parts, strict=True):
            shares += loss * (len(targets) / num_images)
        errors = torch.stack([errors for _, errors in found]).sum()
        failed = meter.count(*together.finish(shares, errors), num_images, step)
    if clip_grad_norm:
        nn.utils.clip_grad_norm_(forward.parameters(), clip_grad_norm)
    for group in optimizer.param_groups:
        rate = lr * group.get("lr_scale", 1.0)
        group["lr"] = rate.float() if isinstance(rate, Tensor) else rate  # rounded once, as a number is
        for parameter in group["params"]:
            if parameter.grad is None:  # stochastic depth left its block out; decay and momentum apply, as in Torch 7
                parameter.grad = torch.zeros_like(parameter)
    # if this is 1, the fused SGD leaves everything as it is, without asking the host
    optimizer.found_inf = failed  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
