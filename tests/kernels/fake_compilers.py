"""What tests of the build and of the cache share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wideresnet.kernels import library

GCC = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
MakeCompiler = Callable[..., Path]


def num_calls(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def python(code: str) -> subprocess.Popen[str]:
    """Another process, with the same compiler and folder."""
    root = Path(library.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", f"from wideresnet.kernels import library\n{code}"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
