"""The table of C functions against the C sources, and what a wrong call does."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest
import torch

from wideresnet.engines import program
from wideresnet.kernels import abi
from wideresnet.kernels.compiler import FOLDER
from wideresnet.kernels.library import library, why_unavailable

PROTOTYPE = re.compile(r"^(?!static\b)((?:\w+ )+\**)(wrn_\w+)\(([^)]*)\)\s*\{", re.MULTILINE)
SCALARS = {
    "int": ctypes.c_int,
    "long": ctypes.c_long,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "_Bool": ctypes.c_bool,
}


def ctype(declaration: str) -> Any:
    """The ctypes type of a parameter or result: `const float *x`, `long num`, `void`."""
    words = declaration.replace("const", "").split()
    if "*" in declaration:
        return ctypes.c_void_p
    return None if words[0] == "void" else SCALARS[words[0]]


def prototypes() -> dict[str, tuple[Any, list[Any]]]:
    found = {}
    for path in FOLDER.glob("*.c"):
        for result, name, parameters in PROTOTYPE.findall(path.read_text()):
            listed = [] if parameters.strip() == "void" else [ctype(part) for part in parameters.split(",")]
            found[name] = (ctype(result), listed)
    return found


def test_every_exported_function_is_in_the_table_with_its_types() -> None:
    table = {name: (result, list(parameters)) for name, (result, parameters) in abi.FUNCTIONS.items()}
    assert prototypes() == table


def test_every_function_that_is_named_in_c_is_found() -> None:
    named = {name for path in FOLDER.glob("*.c") for name in re.findall(r"\bwrn_\w+(?=\()", path.read_text())}
    assert named == set(abi.FUNCTIONS)


def test_an_operation_has_the_fields_and_kinds_of_program_c() -> None:
    source = (FOLDER / "program.c").read_text()
    (body,), (kinds,) = (
        re.findall(r"typedef struct \{([^}]*)\} Op;", source),
        re.findall(r"enum Kind \{([^}]*)\}", source),
    )
    fields = []
    for declaration in body.split(";")[:-1]:
        words = declaration.replace("const", "").split()
        fields += [(name.strip("*, "), ctype(declaration)) for name in "".join(words[1:]).split(",")]
    named = {"in": "ins", "out": "outs"}  # `in` is a word of Python
    assert [(named.get(name, name), kind) for name, kind in fields] == list(abi.Op._fields_)
    assert [getattr(program, kind.strip()) for kind in kinds.split(",")] == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((3, 16), TypeError),
        ((3, 16, 16, 16), TypeError),  # which `argtypes` alone would accept
        ((3, 16, 16.0), ctypes.ArgumentError),
        ((3, 16, torch.ones(1)), ctypes.ArgumentError),
        ((3, 16, None), ctypes.ArgumentError),
    ],
)
def test_a_wrong_call_raises(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
    assert library().wrn_weight_size(3, 16, 16) >= 36 * 16 * 16
    with pytest.raises(error):
        library().wrn_weight_size(*arguments)


def test_a_tensor_is_no_pointer() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
    x, sums = torch.ones(2, 16), torch.zeros(2, 16, dtype=torch.float64)
    for pointer in (x, 1.0, [0]):
        with pytest.raises(ctypes.ArgumentError):
            library().wrn_statistics(pointer, 2, 16, sums.data_ptr(), 1)
    assert library().wrn_statistics(x.data_ptr(), 2, 16, sums.data_ptr(), 1) == 0
    assert (sums == 2).all()


def test_memory_that_runs_out_is_a_memory_error() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
    x, y = torch.zeros(16), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(MemoryError, match="scratch memory"):
        library().wrn_statistics(x.data_ptr(), 2**59, 16, y.data_ptr(), 1)  # needs 2^57 bytes before it reads x
