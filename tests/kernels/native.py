"""Compiles a C driver of this folder with sources of the kernels, and runs it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from wideresnet.kernels.compiler import FOLDER

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
STRICT = ("-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


def compile_driver(
    tmp_path: Path, compiler: str, driver: str, sources: Sequence[str], *flags: str, source_flags: Sequence[str] = ()
) -> Path:
    """Compile sources of the package, with more flags, and then a driver of this folder; returns the program."""
    objects = [tmp_path / f"{name}.o" for name in sources]
    commands = [
        [compiler, *STRICT, *flags, *source_flags, "-c", str(FOLDER / name), "-o", str(place)]
        for name, place in zip(sources, objects, strict=True)
    ]
    program, inputs = tmp_path / "driver", [str(Path(__file__).parent / driver), *map(str, objects)]
    for command in (*commands, [compiler, *STRICT, *flags, f"-I{FOLDER}", *inputs, "-lm", "-o", str(program)]):
        run(command)
    return program


def run(command: Sequence[str]) -> None:
    """Run a command, which has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def sanitize(tmp_path: Path, compiler: str, sanitizer: str) -> str:
    """Return the compiler's flag, or skip the test if there is no such sanitizer on this machine."""
    flag, empty = f"-fsanitize={sanitizer}", tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    subprocess.run([compiler, flag, str(empty), "-o", str(tmp_path / "empty")], capture_output=True, check=False)
    made = (tmp_path / "empty").exists()
    if not made or subprocess.run([str(tmp_path / "empty")], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} has no {flag} here")
    return flag
