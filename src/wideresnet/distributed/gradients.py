"""The exchange of gradients in a step of several processes.

Each process has its share of a batch and weights it by its number of images, so that the gradients of all processes
*add up* to that of the batch's mean loss. There are two ways to exchange them, with the same result up to rounding:

- `FlatExchange`, this package's own, sends one message after the backward pass. What counts is `parameter.grad`, not
  how it was computed, so that it works with every backward pass, including the hand-written ones of the CPU kernels.
- `OverlappedExchange` is PyTorch's DistributedDataParallel, which sends gradients while the backward pass still runs.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wideresnet.distributed.collectives import LostProcess, all_reduce


class GradientExchange(Protocol):
    """What a training step needs to exchange gradients.

    Attributes:
        forward: computes the network's forward pass in a training step.
    """

    forward: nn.Module

    def part(self, is_last: bool) -> AbstractContextManager[None]:
        """Enter around forward and backward of each part of a batch that is computed in several parts.

        Args:
            is_last: whether it is the batch's last part.
        """
        ...

    def finish(self, loss: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """End the exchange: each parameter's `grad` is then the sum over all parts and processes.

        A parameter that no process has used may have no gradient.

        Args:
            loss: this process's share of the loss, a scalar.
            errors: number of this process's errors, a scalar.

        Returns:
            Both summed over the processes.

        Raises:
            LostProcess: another process has ended.
        """
        ...


def make_exchange(
    forward: nn.Module,
    network: nn.Module,
    *,
    device: str,
    is_compiled: bool = False,
    is_deterministic: bool = False,
    skips_blocks: bool = False,
) -> GradientExchange:
    """Choose the exchange of a run.

    DistributedDataParallel is used on GPUs. It regroups its messages after the first step, which changes the order of
    summation and so the rounding: a resumed run would differ from one that was never stopped. The flat message stays

    - on a CPU, where resuming is exact to the last bit, and where gloo and the kernels share the same cores, so that
      there is little to overlap;
    - for deterministic runs on a GPU;
    - for compiled networks, whose gradients all arrive at the end of one compiled backward pass.

    Args:
        forward: computes the network's forward pass: the network itself, or a compiled one.
        network: its parameters, on one device.
        device: "cpu" or "cuda".
        is_compiled: whether `forward` is compiled.
        is_deterministic: whether a GPU must give the same bits every time.
        skips_blocks: whether a step may leave out blocks (stochastic depth), whose parameters then have no gradient.
    """
    if device == "cuda" and not is_compiled and not is_deterministic:
        return OverlappedExchange(forward, skips_blocks=skips_blocks)
    return FlatExchange(forward, network)


class FlatExchange:
    """Sums gradients, loss and number of errors of all processes in one flat message after the backward pass.

    The price is that nothing is sent while the backward pass runs, and one more copy of the gradients.

    Args:
        forward: computes the network's forward pass.
        network: its parameters, on one device.
    """

    def __init__(self, forward: nn.Module, network: nn.Module) -> None:
        self.forward = forward
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in self.parameters]
        self.message = self.parameters[0].new_zeros(sum(sizes) + 2, requires_grad=False)
        starts = itertools.accumulate(sizes, initial=0)
        self.gradients = [  # views in the parameters' own memory layout, which the optimizer can use without a copy
            self.message.as_strided(parameter.shape, parameter.stride(), start)
            for parameter, start in zip(self.parameters, starts, strict=False)
        ]

    def part(self, is_last: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Do nothing: gradients add up in `parameter.grad` until all parts are done."""
        return nullcontext()

    @torch.no_grad()
    def finish(self, loss: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Send everything; see `GradientExchange`."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:  # in every process, because stochastic depth draws the same blocks in all
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        self.message[-2], self.message[-1] = loss, errors
        all_reduce(self.message)
        loss, errors = self.message[-2:].clone()
        return loss, errors


class OverlappedExchange:
    """Sums gradients with PyTorch's DistributedDataParallel, during the backward pass.

    Args:
        forward: computes the network's forward pass; a module that has the parameters.
        skips_blocks: whether a step may leave out blocks, so that unused parameters must be looked for in each one.
    """

    def __init__(self, forward: nn.Module, *, skips_blocks: bool = False) -> None:
        parallel: Any = nn.parallel.DistributedDataParallel
        options = inspect.signature(parallel).parameters
        # without sync_bn, each process keeps its own running statistics; newer versions of PyTorch renamed the option
        settings: Any = {"forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers": False}
        self.parallel = parallel(
            forward,
            find_unused_parameters=skips_blocks,
            gradient_as_bucket_view=True,  # no second copy of the gradients
            **settings,
        )
        # by default it averages over processes; here the shares are weighted by images already and must be added
        self.parallel.register_comm_hook(None, _sum)
        self.forward: nn.Module = self.parallel

    @contextmanager
    def part(self, is_last: bool) -> Iterator[None]:
        """Exchange only in the last part, which sends the sums of all parts."""
        try:
            with nullcontext() if is_last else self.parallel.no_sync():
                yield
        except dist.DistBackendError as error:  # not every RuntimeError: the block also computes
            raise LostProcess(f"another process has ended or no longer answers ({error})") from error

    @torch.no_grad()
    def finish(self, loss: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Sum loss and errors; the gradients have been summed. See `GradientExchange`."""
        sums = torch.stack((loss, errors.to(loss.dtype)))
        all_reduce(sums)
        loss, errors = sums
        return loss, errors


def _sum(_, bucket):  # without annotations, which DistributedDataParallel would compare with its own
    """Communication hook of DistributedDataParallel: the sum over processes instead of the mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])
