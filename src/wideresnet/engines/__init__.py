"""How a network runs: training by the Winograd kernels, optimized inference, 8 bits, evaluation of a whole set."""

from __future__ import annotations

from wideresnet.engines.description import can_train, why_no_kernels
from wideresnet.engines.int8 import quantize
from wideresnet.engines.optimized import optimize
from wideresnet.engines.winograd import accelerate

__all__ = ["accelerate", "can_train", "optimize", "quantize", "why_no_kernels"]
