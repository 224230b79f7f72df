"""The device, and the precision that is fastest on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from wideresnet.base.errors import UsageError

CLEARLY_FASTER = 1.2
"""bf16 must be this many times as fast as fp32 to be chosen: below that, its rounding is not worth the gain. This
package's choice."""


def conv_seconds(dtype: torch.dtype, device: str) -> float:
    """Time 3x3 convolutions of 160 channels, the widest kind in WRN-28-10's first group.

    Args:
        dtype: of images and weights.
        device: "cpu" or "cuda".

    Returns:
        Seconds, the best of six runs; each run has enough convolutions to hide the cost of a GPU's launches.
    """
    num_images, side_px, num_convs = (128, 32, 10) if device == "cuda" else (8, 16, 1)
    images, weight = (
        torch.ones(*shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        for shape in ((num_images, 160, side_px, side_px), (160, 160, 3, 3))
    )
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(num_convs):
                F.conv2d(images, weight, padding=1)
            synchronize(device)
            best = min(best, time.perf_counter() - start)
    return best


def pick_device(wanted: str) -> str:
    """Pick the device to compute on.

    Args:
        wanted: "cpu", "cuda", or "auto" for cuda if there is a GPU.

    Returns:
        "cpu" or "cuda".

    Raises:
        UsageError: cuda is wanted and PyTorch sees no GPU.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise UsageError("device='cuda': PyTorch sees no CUDA device; use device='cpu'")
    return "cuda" if has_cuda and wanted != "cpu" else "cpu"


def pick_precision(wanted: str, device: str, measure: Callable[[torch.dtype, str], float] = conv_seconds) -> str:
    """Pick the precision to compute in.

    "auto" measures instead of looking at the processor's name: bf16 loses on CPUs without matrix units for it, and
    wins on most GPUs.

    Args:
        wanted: "fp32", "bf16", or "auto" for bf16 if it is clearly faster.
        device: "cpu" or "cuda".
        measure: returns the seconds that a piece of work takes, given its type and the device.

    Returns:
        "fp32" or "bf16".

    Raises:
        UsageError: bf16 is wanted on a GPU that does not support it.
    """
    if device == "cuda" and wanted == "bf16" and not torch.cuda.is_bf16_supported():
        raise UsageError("precision='bf16': this GPU does not support bf16; use precision='fp32' or another device")
    if wanted != "auto":
        return wanted
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    return "bf16" if measure(torch.float32, device) > CLEARLY_FASTER * measure(torch.bfloat16, device) else "fp32"


def make_deterministic(wanted: bool) -> None:
    """Restrict PyTorch to algorithms whose results do not depend on a GPU's timing, or lift that restriction."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at the first matrix product
    torch.use_deterministic_algorithms(wanted)


def synchronize(device: str) -> None:
    """Wait until the device has finished, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()
