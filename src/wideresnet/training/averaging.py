"""Averaged weights: an exponential moving average over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_weights(network: nn.Module, decay: float) -> AveragedModel:
    """Return averages of a network's parameters and buffers, which `update_parameters` moves toward the newest.

    They start from the initial weights and move quickly at first, because those mean nothing: the decay of step n is at
    most n / (n + 10). Source: the warm-up of TensorFlow's ExponentialMovingAverage, (1 + n) / (10 + n) there.

    Args:
        decay: of each step, in (0, 1).
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], newest: Sequence[Tensor], _: object) -> None:
        if not averaged[0].is_floating_point():  # counters of batches
            torch._foreach_copy_(averaged, newest)  # type: ignore[arg-type]
            return
        step = int(averages.n_averaged)  # on the CPU; the argument is a copy on the device, to read it would wait
        kept = min(decay, step / (step + 10))
        torch._foreach_lerp_(averaged, newest, 1 - kept)  # type: ignore[arg-type]

    averages = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    averages.n_averaged += 1  # the initial weights count: else the first update would replace them
    return averages
