"""Messages between the processes of a world: sums, gathers, broadcasts. A process that is lost is noticed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from wideresnet.base.errors import WRNError


class LostProcess(WRNError):
    """Another process has ended or no longer answers."""


def all_reduce(tensor: Tensor) -> None:
    """Sum a tensor over the processes, in place; the result has the same bits in all of them.

    Raises:
        LostProcess: another process has ended.
    """
    with noticing_loss():
        dist.all_reduce(tensor)


def all_reduce_max(tensor: Tensor) -> None:
    """Take the maximum of a tensor over the processes, in place.

    Raises:
        LostProcess: another process has ended.
    """
    with noticing_loss():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def all_gather(tensor: Tensor) -> Tensor:
    """Return every process's tensor, stacked in order of rank.

    Raises:
        LostProcess: another process has ended.
    """
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with noticing_loss():
        dist.all_gather(parts, tensor)
    return torch.stack(parts)


def broadcast(tensor: Tensor, source: int = 0) -> None:
    """Overwrite a tensor with that of one process.

    Args:
        source: rank of that process.

    Raises:
        LostProcess: another process has ended.
    """
    with noticing_loss():
        dist.broadcast(tensor, source)


@contextmanager
def noticing_loss() -> Iterator[None]:
    """Turn an error of communication into LostProcess; the block must do nothing else."""
    try:
        yield
    except RuntimeError as error:  # raised by gloo and NCCL if the other end is gone, or after the timeout
        raise LostProcess(f"another process has ended or no longer answers ({error})") from error
