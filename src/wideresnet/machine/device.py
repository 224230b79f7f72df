"""The device, and the precision to compute in on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wideresnet.base.errors import UsageError


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


def pick_precision(wanted: str, device: str) -> str:
    """Pick the precision to compute in, without measuring: the same machine always gives the same answer.

    On a CPU "auto" is fp32. Whether bf16 is worth its rounding in training is for whole steps to tell, see
    `training.preflight.autotune`.

    Args:
        wanted: "fp32", "bf16", or "auto" for bf16 on a GPU with instructions for it, else fp32.
        device: "cpu" or "cuda".

    Returns:
        "fp32" or "bf16".

    Raises:
        UsageError: there is no such precision, or bf16 is wanted on a GPU that does not support it.
    """
    if wanted not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision={wanted!r}: must be one of auto, fp32, bf16")
    if device == "cuda" and wanted == "bf16" and not torch.cuda.is_bf16_supported():
        raise UsageError("precision='bf16': this GPU does not support bf16; use precision='fp32' or another device")
    if wanted != "auto":
        return wanted
    # emulated bf16, on GPUs before Ampere, is slower than fp32
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def visible_gpus() -> list[str]:
    """Return the names by which a child process can be given one of this process's GPUs, in CUDA_VISIBLE_DEVICES."""
    num, names = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[:num] if names[0] else [str(index) for index in range(num)]


def make_deterministic(wanted: bool) -> None:
    """Restrict PyTorch to algorithms whose results do not depend on a GPU's timing, or lift that restriction."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at the first matrix product
    torch.use_deterministic_algorithms(wanted)


@contextmanager
def algorithms_restored() -> Iterator[None]:
    """Give the caller back PyTorch's choice of algorithms, deterministic or searched for, as it was before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    searched = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        if torch.are_deterministic_algorithms_enabled() != before[0]:  # setting it imports PyTorch's compiler
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = searched


def synchronize(device: str) -> None:
    """Wait until the device has finished, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()
