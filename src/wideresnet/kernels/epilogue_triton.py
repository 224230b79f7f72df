"""`finish` for GPUs, in Triton: memory-bound, so each map is read and written once.

This is the only module that imports Triton, which PyTorch brings along on Linux alone; see `epilogue.why_unavailable`.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # on Linux alone
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from wideresnet.kernels.epilogue import Epilogue

TILE, SMALL_TILE = 4096, 1024
"""Values that a program of four warps computes. Small maps have more programs instead. Own choice."""

SMALL_MAP = 1 << 20  # values

MOST_COLUMNS = 128  # channels of a tile


def finish(y: Tensor, added: Tensor | None, epilogue: Epilogue) -> tuple[Tensor | None, Tensor | None]:
    """Compute what `epilogue.finish_slowly` does. The result of the convolution, `y`, is overwritten."""
    y = y.contiguous(memory_format=torch.channels_last)
    if added is not None:
        added = added.contiguous(memory_format=torch.channels_last)
    channels = y.shape[1]
    rows = y.numel() // channels
    changes = added is not None or epilogue.bias is not None or epilogue.relu
    activates = epilogue.scale is not None
    activated = (torch.empty_like(y) if epilogue.keep else y) if activates else None
    tile = SMALL_TILE if y.numel() < SMALL_MAP else TILE
    columns = num_columns(channels)
    switches: dict[str, Any] = {"ADD": added is not None, "BIAS": epilogue.bias is not None, "RELU": epilogue.relu}
    switches |= {"STORE": epilogue.keep and changes, "ACTIVATE": activates}
    switches |= {"ROWS": tile // columns, "COLUMNS": columns}
    grid = (triton.cdiv(rows, tile // columns) * triton.cdiv(channels, columns),)
    # Where there is nothing to read or to write, `y` is a placeholder.
    _finish[grid](
        y,
        y if added is None else added,
        y if epilogue.bias is None else epilogue.bias,
        y if epilogue.scale is None else epilogue.scale,
        y if epilogue.shift is None else epilogue.shift,
        y if activated is None else activated,
        rows,
        channels,
        **switches,
    )
    return y if epilogue.keep else None, activated


def num_columns(channels: int) -> int:
    """Return how many channels a tile has: a power of two that divides them, if there is one of 16 or more."""
    divisor = min(channels & -channels, MOST_COLUMNS)
    return divisor if divisor >= 16 else min(MOST_COLUMNS, triton.next_power_of_2(channels))


@triton.jit(do_not_specialize=["rows"])
def _finish(
    y_at,
    added_at,
    bias_at,
    scale_at,
    shift_at,
    activated_at,
    rows,
    channels,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    STORE: tl.constexpr,
    ACTIVATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    across = tl.cdiv(channels, COLUMNS)  # programs next to each other share rows, and so pages of memory
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % across) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < channels
    inside = (row < rows)[:, None] & is_column[None, :]
    at = row[:, None] * channels + column[None, :]
    value = tl.load(y_at + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(added_at + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias_at + column, mask=is_column, other=0.0)[None, :]
    if RELU:
        value = tl.where(value < 0.0, 0.0, value)  # NaN stays
    if STORE:
        tl.store(y_at + at, value.to(y_at.dtype.element_ty), mask=inside)
    if ACTIVATE:
        scale = tl.load(scale_at + column, mask=is_column, other=0.0)
        shift = tl.load(shift_at + column, mask=is_column, other=0.0)
        value = value * scale[None, :] + shift[None, :]
        value = tl.where(value < 0.0, 0.0, value)
        tl.store(activated_at + at, value.to(activated_at.dtype.element_ty), mask=inside)
