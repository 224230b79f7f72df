"""The C functions of this folder as Python may call them: one table of argument and result types.

With the types declared, a call with too few, too many or wrong arguments raises; without them it would corrupt memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

INT, LONG, FLOAT, POINTER, BOOL = ctypes.c_int, ctypes.c_long, ctypes.c_float, ctypes.c_void_p, ctypes.c_bool

FUNCTIONS: dict[str, tuple[type | None, Sequence[type]]] = {
    # winograd.c
    "wrn_weight_size": (LONG, [INT, LONG, LONG]),
    "wrn_transform_weight": (None, [POINTER, INT, INT, LONG, LONG, INT, POINTER, INT]),
    "wrn_conv": (INT, [POINTER, *[LONG] * 5, INT, INT, *[POINTER] * 7, INT]),
    # backward.c
    "wrn_conv_backward": (INT, [POINTER, POINTER, *[LONG] * 5, INT, INT, *[POINTER] * 8, INT]),
    # norm.c
    "wrn_statistics": (INT, [POINTER, LONG, LONG, POINTER, INT]),
    "wrn_normalize": (None, [POINTER, LONG, LONG, POINTER, POINTER, FLOAT, FLOAT, *[POINTER] * 6]),
    "wrn_activate": (None, [POINTER, LONG, LONG, POINTER, POINTER, POINTER, INT]),
    "wrn_activate_backward": (INT, [POINTER, POINTER, LONG, LONG, *[POINTER] * 4, INT]),
    "wrn_normalize_backward": (None, [*[POINTER] * 5, LONG, LONG, LONG, *[POINTER] * 7, INT]),
    # quantized.c
    "wrn_panel": (LONG, []),
    "wrn_quantized_conv": (INT, [POINTER, *[LONG] * 7, *[POINTER] * 8, INT, INT]),
    # direct.c
    "wrn_direct_is_fast": (BOOL, []),
    "wrn_direct_conv": (INT, [POINTER, *[LONG] * 7, *[POINTER] * 8, INT, INT]),
    # stem.c
    "wrn_stem": (INT, [POINTER, POINTER, *[LONG] * 7, INT, *[POINTER] * 6, INT, INT]),
    # program.c
    "wrn_run": (INT, [POINTER, LONG, POINTER, POINTER, LONG, POINTER, POINTER, INT]),
    # scratch.c
    "wrn_scratch": (POINTER, [LONG]),
}
"""By name: the type of the result and those of the arguments. An INT result is a status: 1 means "out of memory"."""


class Op(ctypes.Structure):
    """An operation of a program: `Op` of program.c."""

    _fields_ = (
        *((name, LONG) for name in ("kind", "first", "num", "kernel", "H", "W", "ins", "outs", "stride")),
        *((name, LONG) for name in ("reads", "adds", "values", "bytes", "halves")),
        *((name, POINTER) for name in ("weight", "rescale", "bias", "scale", "shift")),
    )


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give a loaded library its functions, with checked arguments. Tensors are passed as `data_ptr()`, NULL as None.

    Raises:
        AttributeError: the library lacks one of the functions.
    """
    for name, (result, arguments) in FUNCTIONS.items():
        prototype = ctypes.CFUNCTYPE(result, *arguments)
        # Parameter flags (1: input) make ctypes refuse extra arguments too; `argtypes` alone accepts them.
        function = prototype((name, library), tuple((1,) for _ in arguments))
        if result is INT:
            function.errcheck = _check_status  # type: ignore[assignment]
        setattr(library, name, function)
    return library


def _check_status(status: int, function: Any, arguments: Any) -> int:
    del function, arguments
    if status:
        raise MemoryError("a kernel could not allocate its scratch memory")
    return status
