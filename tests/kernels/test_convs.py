"""The convolutions in C alone: against the definition, under sanitizers, and on an emulated Arm processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from native import COMPILERS, compile_driver, run, sanitize

from wideresnet.kernels.compiler import SOURCES

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_random_layers_are_the_definition_and_sanitizers_have_no_complaints(
    compiler: str, sanitizer: str, tmp_path: Path
) -> None:
    flag = sanitize(tmp_path, compiler, sanitizer)
    program = compile_driver(tmp_path, compiler, "conv_driver.c", SOURCES, "-march=native", flag)
    run([str(program), "40"])


@pytest.mark.skipif(not (shutil.which(CROSS) and shutil.which(EMULATOR)), reason=f"needs {CROSS} and {EMULATOR}")
@pytest.mark.parametrize("processor", ["armv8-a", "armv8.6-a"])  # without and with products of bytes
def test_arm_computes_the_same(processor: str, tmp_path: Path) -> None:
    program = compile_driver(tmp_path, CROSS, "conv_driver.c", SOURCES, "-static", f"-march={processor}")
    run([EMULATOR, str(program), "60"])
