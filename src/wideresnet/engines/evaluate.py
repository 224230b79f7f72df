"""Evaluation of a network on a whole set: every image exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.base.arithmetic import ceil_div
from wideresnet.data.feeds.resident import evaluation_batches, share_of
from wideresnet.data.preprocess import Preprocessing
from wideresnet.distributed.world import World

EVALUATION_BATCH = {"cpu": 64, "cuda": 500}
"""Images at once. On a CPU both give the same bits; 64 takes 0.73 of the time of 500 (WRN-16-2, own measurement)."""


@dataclass(frozen=True)
class Evaluation:
    """The result of a network on a set.

    Attributes:
        num_images: number of images, all of the set.
        num_errors: images whose highest logit is not that of the label.
        loss: mean cross entropy, which is the negative log likelihood, nats.
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

    @classmethod
    def of(cls, logits: Tensor, labels: np.ndarray) -> Evaluation:
        """Compare logits, float32 (N, classes) on the CPU, with labels, int64 (N,)."""
        targets = torch.from_numpy(labels)
        num_errors = int((logits.argmax(1) != targets).sum())
        return cls(len(logits), num_errors, float(F.cross_entropy(logits.double(), targets)), logits)


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
    """Run a network in evaluation mode over a whole set; its mode is restored afterwards.

    Several processes share the batches. These are the batches of a single process, so the logits have the same bits.

    Args:
        network: takes what `preprocessing` returns.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        preprocessing: converts a batch of images.
        device: "cpu" or "cuda"; where the network is.
        precision: "fp32", or "bf16" for autocast.
        batch_size: images at once; None for the fastest on the device.
        advance: called after each batch with its number of images, for a progress bar.
        world: the processes that share the set; each returns the whole result.
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
    parts = [part.cpu() for part in parts]  # after the loop: each copy waits for the device
    return Evaluation.of(world.gather_rows(parts, [len(share) for share in shares]), labels)


def _images_of(rank: int, num_ranks: int, num_images: int, batch_size: int) -> range:
    """Return the images of a process's share of the batches."""
    share = share_of(ceil_div(num_images, batch_size), rank, num_ranks)
    return range(num_images)[share.start * batch_size : share.stop * batch_size]
