"""The C code of this folder as a shared library: compiled for this processor at first use, kept for the next time.

Only the standard library is imported here, so that the compiler can be at work while PyTorch is still being imported.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from wideresnet.places import data_root

SOURCES = ("winograd.c", "norm.c", "quantised.c")
HEADERS = ("vector.h", "tiles.h")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
COMPILERS = ("gcc", "cc", "clang")
FOLDER = Path(__file__).parent

_building: _Build | None = None


class Unavailable(Exception):
    """There is no such library on this machine, and why."""


class _Build:
    """The compiler at work in a folder of its own, beside whatever else happens."""

    def __init__(self) -> None:
        self.place, compiler = _place(), _compiler()
        self.folder = Path(tempfile.mkdtemp(prefix=".build-", dir=self.place.parent))
        sources = [os.fspath(FOLDER / name) for name in SOURCES]
        objects = [f"{Path(name).stem}.o" for name in SOURCES]
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        # linked without -fopenmp: PyTorch's own OpenMP is used, since two of them would fight for the cores
        link = [compiler, "-shared", *undefined, *objects, "-lm", "-o", "done.so"]
        self.process = subprocess.Popen(
            ["sh", "-c", f"{shlex.join([compiler, *FLAGS, '-c', *sources])} && {shlex.join(link)}"],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run, which can be resumed only if it finds its library
        )

    def finish(self) -> Path:
        """Wait for the compiler and put the library in its place."""
        try:
            _, complaint = self.process.communicate()
            if self.process.returncode != 0:
                lines = complaint.decode(errors="replace").split("\n")
                reason = next((line for line in lines if "error" in line), lines[0])
                raise Unavailable(f"the C compiler failed ({reason.strip()})")
            (self.folder / "done.so").replace(self.place)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.place


def start_build() -> None:
    """Have the library compiled beside whatever comes next; about a second's work, none if that was done before."""
    global _building
    with contextlib.suppress(Unavailable, OSError):  # `library` will say why
        if _building is None and not _place().is_file():
            _building = _Build()
            atexit.register(_abandon)


def _abandon() -> None:
    if _building is not None:
        _building.process.kill()
        shutil.rmtree(_building.folder, ignore_errors=True)


@functools.cache
def library() -> ctypes.CDLL:
    """The library, compiled now if need be.

    Raises:
        Unavailable: no compiler here, or it failed; the message is one line.
    """
    global _building
    try:
        place = _place()
        if not place.is_file():
            build, _building = _building or _Build(), None
            place = build.finish()
        _share_openmp()
        loaded = ctypes.CDLL(os.fspath(place))
    except OSError as error:
        raise Unavailable(f"the kernels cannot be used ({error})") from None
    loaded.wrn_weight_size.restype = loaded.wrn_panel.restype = ctypes.c_long
    return loaded


def _place() -> Path:
    """Where the library is kept: a name for what decides its content, in a folder that only this user can write to."""
    digest = hashlib.sha256(" ".join((_compiler(), *FLAGS, platform.machine(), _processor())).encode())
    for name in (*HEADERS, *SOURCES):
        digest.update((FOLDER / name).read_bytes())
    folder = data_root() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        safe = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    except OSError:
        safe = False
    if not safe:  # somebody else could put code there
        folder = _private_folder()
    return folder / f"{digest.hexdigest()[:32]}.so"


@functools.cache
def _private_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="wideresnet-kernels-"))


@functools.cache
def _compiler() -> str:
    wanted = os.environ.get("CC")
    for name in (wanted,) if wanted else COMPILERS:
        if found := shutil.which(name):
            return found
    raise Unavailable("no C compiler here (gcc, cc or clang)")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(next((line for line in lines if line.startswith(start)), "") for start in ("model name", "flags"))


def _share_openmp() -> None:
    """Let the library find the OpenMP that PyTorch has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        maps = []
    loaded = {line.split()[-1] for line in maps if "/libgomp" in line or "/libiomp" in line or "/libomp" in line}
    for path in sorted(loaded):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
