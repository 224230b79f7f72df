"""The device, and the precision that is fastest there."""

from __future__ import annotations

import os
import time

import torch
import torch.nn.functional as F

from wideresnet.base.errors import UsageError


def pick_device(wanted: str) -> str:
    """ "cpu" or "cuda"; "auto" takes cuda where there is one.

    Raises:
        UsageError: cuda is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise UsageError("device cuda: PyTorch sees no CUDA device here; use --device cpu")
    return "cuda" if has_cuda and wanted != "cpu" else "cpu"


def pick_precision(wanted: str, device: str) -> str:
    """ "fp32" or "bf16"; "auto" measures one wide convolution both ways and takes bf16 where it is 1.2 times as fast.

    A measurement, not a processor's name: bf16 loses on CPUs without matrix units for it, and wins on GPUs with them.

    Raises:
        UsageError: bf16 is asked for on a GPU that cannot.
    """
    if device == "cuda" and wanted == "bf16" and not torch.cuda.is_bf16_supported():
        raise UsageError("precision bf16: this GPU has no bf16; start with --precision fp32, or use another device")
    if wanted != "auto":
        return wanted
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    return "bf16" if _conv_seconds(torch.float32, device) > 1.2 * _conv_seconds(torch.bfloat16, device) else "fp32"


def _conv_seconds(dtype: torch.dtype, device: str) -> float:
    """Seconds of 3x3 convolutions of 160 channels, the best of six; enough of them to hide a GPU's launches."""
    num_images, side_px, num_convs = (128, 32, 10) if device == "cuda" else (8, 16, 1)
    images, weight = (
        torch.ones(*shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        for shape in ((num_images, 160, side_px, side_px), (160, 160, 3, 3))
    )
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):
            synchronise(device)
            start = time.perf_counter()
            for _ in range(num_convs):
                F.conv2d(images, weight, padding=1)
            synchronise(device)
            best = min(best, time.perf_counter() - start)
    return best


def make_deterministic(wanted: bool) -> None:
    """Let PyTorch take only algorithms whose bits do not depend on a GPU's timing, or any again."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product comes
    torch.use_deterministic_algorithms(wanted)


def synchronise(device: str) -> None:
    """Wait for the device, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()
