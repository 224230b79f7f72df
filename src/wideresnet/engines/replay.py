"""Inference on a GPU as CUDA graphs: a few images take less time than the host needs to launch their kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_IMAGES = 32
"""Larger batches keep a GPU busy for longer than they take to launch. Own choice."""

MOST_GRAPHS = 8
"""Shapes that are kept: each has memory for all its feature maps."""

EAGER_CALLS = 2
"""Calls with a shape before its capture, in which cuDNN searches for its fastest algorithms."""


class Replay:
    """Calls a function of one tensor; small batches of a shape that comes again are captured and replayed.

    The function must depend on its argument alone, and on weights that stay where they are.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.calls: dict[Any, int] = {}
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function returns."""
        if not x.is_cuda or len(x) > MOST_IMAGES or torch.compiler.is_compiling():
            return self.function(x)
        if torch.cuda.is_current_stream_capturing():
            return self.function(x)
        arithmetic = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (x.shape, x.dtype, x.device, arithmetic, torch.is_inference_mode_enabled())
        if key not in self.graphs:
            self.calls[key] = self.calls.get(key, 0) + 1
            if self.calls[key] <= EAGER_CALLS or len(self.graphs) == MOST_GRAPHS:
                return self.function(x)
            self.graphs[key] = self._capture(x)
        graph, given, result = self.graphs[key]
        given.copy_(x)
        graph.replay()
        return result.clone()

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        graph, given = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            result = self.function(given)
        return graph, given, result
