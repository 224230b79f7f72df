"""Evaluation: every image once, none left out and none twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.data.feeds.resident import evaluation_batches, share_of
from wideresnet.data.preprocess import Preprocessing
from wideresnet.distributed.world import World
from wideresnet.engines.optimized import Optimized
from wideresnet.machine.device import pick_precision

EVALUATION_BATCH = {"cpu": 64, "cuda": 500}
"""Images at once. Logits on a CPU are the same bit for bit; 64 took 0.73 of the time of 500 there (WRN-16-2)."""


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a set.

    Attributes:
        num_images: images counted, all of the set.
        num_errors: images whose highest logit is not the label's.
        loss: mean cross entropy, nats.
        logits: float32 (N, classes), on the CPU, in the order of the set.
    """

    num_images: int
    num_errors: int
    loss: float
    logits: Tensor

    @property
    def error_pct(self) -> float:
        """Top-1 error, percent."""
        return 100 * self.num_errors / self.num_images


def pick_inference_precision(wanted: str, network: nn.Module, device: str) -> str:
    """ "fp32" or "bf16"; "auto" is exact where this package's kernels make that fast, else what is faster.

    Raises:
        UsageError: as for `pick_precision`.
    """
    exact = wanted == "auto" and isinstance(network, Optimized) and network.has_kernels
    return "fp32" if exact else pick_precision(wanted, device)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    preprocessing: Preprocessing,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    batch_size: int | None = None,
    advance: Callable[[int], object] | None = None,
    world: World | None = None,
) -> Evaluation:
    """Run a network in evaluation mode over a whole set; its mode is put back afterwards.

    Several processes share the batches, which are those of one process, so that the logits have the same bits.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        precision: "fp32", or "bf16" for autocast.
        batch_size: images at once; None for what is fast on the device.
        advance: called with the number of images of each batch that is done, for a progress bar.
        world: the processes that share the set; each gets the whole result.
    """
    batch_size = batch_size or EVALUATION_BATCH[device]
    was_training = network.training
    network.eval()
    parts = []
    world = world or World.single()
    shares = [_images_of(rank, world.size, len(images), batch_size) for rank in range(world.size)]
    own = images[shares[world.rank].start : shares[world.rank].stop]
    for batch in evaluation_batches(own, preprocessing, batch_size=batch_size, device=device):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(network(batch).float())
        if advance:
            advance(len(batch))
    network.train(was_training)
    parts = [part.cpu() for part in parts]  # not sooner: each would be waited for
    logits, targets = world.gather_rows(parts, [len(share) for share in shares]), torch.from_numpy(labels)
    return Evaluation(
        num_images=len(logits),
        num_errors=int((logits.argmax(1) != targets).sum()),
        loss=float(F.cross_entropy(logits.double(), targets)),
        logits=logits,
    )


def _images_of(rank: int, num_ranks: int, num_images: int, batch_size: int) -> range:
    """The images of a process's share of the batches."""
    share = share_of(-(-num_images // batch_size), rank, num_ranks)
    return range(num_images)[share.start * batch_size : share.stop * batch_size]
