"""Training steps as CUDA graphs: the host launches one graph per step instead of hundreds of kernels.

The kernels of a small network are shorter than the time that the host takes to launch them, so most of a GPU would
wait. A captured step runs the same kernels in the same order, so it computes the same numbers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wideresnet.distributed.gradients import GradientExchange
from wideresnet.networks import Network
from wideresnet.spec.execution import Execution
from wideresnet.training.step import Meter, train_step

EAGER_STEPS = 2
"""Steps of a shape before its capture: in them cuDNN searches, the compiler compiles and momentum gets its memory."""

Step = Callable[..., None]
"""What `make_step` returns."""

log = logging.getLogger(__name__)


def make_step(
    network: Network,
    forward: nn.Module,
    optimizer: torch.optim.SGD,
    meter: Meter,
    execution: Execution,
    *,
    sam_rho: float = 0.0,
    together: GradientExchange | None = None,
    **settings: Any,
) -> Step:
    """Return `train_step` as a function `(images, labels, *, step, lr, seed, num_images)`.

    On a GPU its steps are captured, unless they differ from each other (stochastic depth), seed twice (SAM), or are
    shared with other processes.

    Args:
        network: whose forward pass `forward` computes.
        forward, optimizer, meter, execution, sam_rho, together, settings: as for `train_step`.
    """
    step = functools.partial(
        train_step, forward, optimizer, meter=meter, execution=execution, sam_rho=sam_rho, together=together, **settings
    )
    is_alike = network.options["stochastic_depth"] is None and not sam_rho and together is None
    return CapturedSteps(step, optimizer, meter) if execution.device == "cuda" and is_alike else step


@dataclass(frozen=True)
class _Captured:
    """A graph, and the batch that it reads."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor


class CapturedSteps:
    """Runs the first steps with each shape of batch kernel by kernel, then captures one and replays it."""

    def __init__(self, step: Step, optimizer: torch.optim.SGD, meter: Meter) -> None:
        self.step, self.optimizer, self.meter = step, optimizer, meter
        self.stream = _stream(torch.cuda.current_device())
        self.pool = torch.cuda.graph_pool_handle()  # of all shapes together: one graph runs at a time
        self.number = torch.zeros((), dtype=torch.int64, device="cuda")
        self.lr = torch.zeros((), dtype=torch.float64, device="cuda")  # as exact as the number that it stands for
        self.eager_steps: dict[torch.Size, int] = {}
        self.captured: dict[torch.Size, _Captured] = {}
        self.is_possible = True

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        step: int,
        lr: float,
        seed: Callable[[], None] = lambda: None,
        num_images: int = 0,
    ) -> None:
        """Run a step; the arguments are those of `train_step`."""
        self.number.fill_(step)
        self.lr.fill_(lr)
        if not self.optimizer.state:  # momentum starts over, in other memory than that of the graphs
            self.captured.clear()
            self.eager_steps.clear()
        shape = images.shape
        if self.is_possible and shape not in self.captured and self.eager_steps.get(shape, 0) >= EAGER_STEPS:
            seed()
            self._capture(images, labels)
        if shape in self.captured:
            seed()  # sets what the graph's random numbers are drawn from
            self._replay(self.captured[shape], images, labels)
            return
        self.eager_steps[shape] = self.eager_steps.get(shape, 0) + 1
        with _on(self.stream):
            self.step(images, labels, step=self.number, lr=self.lr, seed=seed, num_images=num_images)

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Record a step; nothing is computed."""
        captured = _Captured(torch.cuda.CUDAGraph(), images.clone(), labels.clone())
        num_images = self.meter.num_images
        try:
            with torch.cuda.graph(captured.graph, pool=self.pool, stream=self.stream):
                self.step(captured.images, captured.labels, step=self.number, lr=self.lr)
            self.captured[images.shape] = captured
        except RuntimeError as error:
            self.is_possible = False
            self.optimizer.zero_grad()
            log.warning(f"steps run kernel by kernel, not as a CUDA graph: {' '.join(str(error).split())[:200]}")
        self.meter.num_images = num_images

    def _replay(self, captured: _Captured, images: Tensor, labels: Tensor) -> None:
        """Compute a step."""
        captured.images.copy_(images)
        captured.labels.copy_(labels)
        captured.graph.replay()
        self.meter.num_images += len(labels)  # the host's part of the step


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """Return the stream of all captured steps: cuBLAS keeps a workspace for each stream, 32 MiB on Hopper."""
    return torch.cuda.Stream(device)


@contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run a block on a stream, after what the current one has been given and before what it will be given."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
