"""What follows a convolution in inference, in one pass over the map: addition, bias, activation, and the next input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What is done with the result of a convolution, `y`: value = y + added + bias, activated or not.

    Attributes:
        bias: (C,), or None.
        relu: whether the value is activated.
        scale, shift: (C,), the normalization through which the next convolution reads the value; None for none. The
            second result is relu(value * scale + shift).
        keep: whether the value itself is needed.
    """

    bias: Tensor | None = None
    relu: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None
    keep: bool = True


def finish_slowly(y: Tensor, added: Tensor | None, epilogue: Epilogue) -> tuple[Tensor | None, Tensor | None]:
    """Apply an epilogue in plain PyTorch: the twin of the kernels.

    Args:
        y: (B, C, H, W), the result of a convolution.
        added: of the same shape and type, or None.
        epilogue: its vectors are float32, or float64 if `y` is.

    Returns:
        The value if it is kept, and what the next convolution reads if that is something else; in the type of `y`.
        Between them nothing is rounded.
    """
    value = y.to(torch.promote_types(y.dtype, torch.float32))
    if added is not None:
        value = value + added
    if epilogue.bias is not None:
        value = value + epilogue.bias[:, None, None]
    if epilogue.relu:
        value = value.relu()
    activated = None
    if epilogue.scale is not None and epilogue.shift is not None:
        activated = (value * epilogue.scale[:, None, None] + epilogue.shift[:, None, None]).relu().to(y.dtype)
    return value.to(y.dtype) if epilogue.keep else None, activated


@cache
def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return in one line why Triton's kernel does not run here, or None. It is tried on a small map, once."""
    try:
        from wideresnet.kernels.epilogue_triton import finish
    except ImportError:
        return "there is no Triton"
    try:
        y = torch.linspace(-2, 2, 2 * 32 * 15, device=device).to(dtype).view(2, 3, 5, 32).permute(0, 3, 1, 2)
        bias, scale = torch.linspace(-1, 1, 32, device=device), torch.linspace(0.5, 2, 32, device=device)
        epilogue = Epilogue(bias=bias, scale=scale, shift=bias.flip(0))
        with torch.cuda.device_of(y):  # Triton launches on the current device
            results = finish(y.clone(), y, epilogue)
        for found, expected in zip(results, finish_slowly(y, y, epilogue), strict=True):
            torch.testing.assert_close(found, expected)
    except Exception as reason:  # no compiler, no place to write, an old GPU: Triton has many errors, of all kinds
        return f"Triton fails here ({str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason)})"
    return None
