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
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wideresnet.base.paths import kernels_folder

SOURCES = ("winograd.c", "norm.c", "quantised.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
COMPILERS = ("gcc", "cc", "clang")
FOLDER = Path(__file__).parent
LEFTOVER_S = 3600.0  # a build takes a second or two: what is so old belongs to one that was killed
PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")
"""The lines of /proc/cpuinfo that -march=native depends on, of x86 and of Arm."""

_building: _Build | None = None


class Unavailable(Exception):
    """There is no such library on this machine, and why."""


class _Build:
    """The compiler at work in a folder of its own, beside whatever else happens."""

    def __init__(self) -> None:
        self.of_process = os.getpid()  # a fork of it has the object too, and nothing to do with the compiler
        compiler, self.place, self.key = _compiler(), _folder_to_build_in(), _key()
        for old in self.place.glob(".build-*"):
            with contextlib.suppress(OSError):
                if old.stat().st_mtime < time.time() - LEFTOVER_S:
                    shutil.rmtree(old)
        self.folder = Path(tempfile.mkdtemp(prefix=".build-", dir=self.place))
        sources = [os.fspath(FOLDER / name) for name in SOURCES]
        objects = [f"{Path(name).stem}.o" for name in SOURCES]
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        # linked without -fopenmp: PyTorch's own OpenMP is used, since two of them would fight for the cores
        link = [*compiler, "-shared", *undefined, *objects, "-lm", "-o", "done.so"]
        self.process = subprocess.Popen(
            ["sh", "-c", f"{shlex.join([*compiler, *FLAGS, '-c', *sources])} && {shlex.join(link)}"],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run, which can be resumed only if it finds its library
            umask=0o077,
        )

    def finish(self) -> Path:
        """Wait for the compiler and put the library in its place."""
        try:
            _, complaint = self.process.communicate()
            if self.process.returncode != 0:
                lines = complaint.decode(errors="replace").split("\n")
                reason = next((line for line in lines if "error" in line), lines[0]).strip()
                raise Unavailable(f"the C compiler failed ({reason or f'exit status {self.process.returncode}'})")
            done = self.folder / "done.so"
            # what is loaded is checked against this name first: a library cut short would end the process
            return done.replace(self.place / f"{self.key}-{_digest(done.read_bytes())}.so")
        finally:
            self.stop()

    def stop(self) -> None:
        """End the compiler where it is still at work, and remove its folder."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_build() -> None:
    """Have the library compiled beside whatever comes next; about a second's work, none if that was done before."""
    global _building
    with contextlib.suppress(Unavailable, OSError):  # `library` will say why
        if _building is None and _find() is None:
            _building = _Build()
            atexit.register(_leave)


def _leave() -> None:
    """Keep a library that nobody has asked for yet; end a compiler that is still at work."""
    if _building is None or _building.of_process != os.getpid():
        return
    if _building.process.poll() == 0:
        with contextlib.suppress(Unavailable, OSError, ValueError):  # ValueError: its output is closed already
            _building.finish()
    else:
        _building.stop()


def library() -> ctypes.CDLL:
    """The library, compiled now if need be.

    Raises:
        Unavailable: no compiler here, or it failed; the message is one line.
    """
    found = _load()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def why_unavailable() -> str | None:
    """Why there is no library on this machine, one line; None where there is one, compiled now if need be."""
    found = _load()
    return found if isinstance(found, str) else None


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none: what failed once is not tried again by the same process."""
    global _building
    try:
        _share_openmp()
        loaded = None
        if place := _find():
            try:
                loaded = ctypes.CDLL(os.fspath(place))
            except OSError:  # removed a moment ago, or of no use here: compiled anew
                place.unlink(missing_ok=True)
        if loaded is None:
            begun = _building if _building and _building.of_process == os.getpid() else None
            build, _building = begun or _Build(), None
            loaded = ctypes.CDLL(os.fspath(build.finish()))
    except Unavailable as reason:
        return str(reason)
    except OSError as error:
        return f"the kernels cannot be used ({error})"
    loaded.wrn_weight_size.restype = loaded.wrn_panel.restype = ctypes.c_long
    return loaded


def _key() -> str:
    """A name for all that decides what the library holds."""
    parts = " ".join((*_compiler(), *FLAGS, *SOURCES, platform.machine(), _processor())).encode()
    return _digest(parts + b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]"))))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _find() -> Path | None:
    """The library that was compiled before, where its content is what its name says and only this user could put it
    there."""
    folder, key = kernels_folder(), _key()
    if not _is_only_mine(folder):
        return None
    found = (path for path in sorted(folder.glob(f"{key}-*.so")) if _is_only_mine(path))
    return next((path for path in found if path.stem == f"{key}-{_digest(path.read_bytes())}"), None)


def _folder_to_build_in() -> Path:
    """The kernels' folder; where it cannot be written to, or others can, a private one for this process alone."""
    folder = kernels_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_only_mine(folder) and os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.mkdtemp(prefix="wideresnet-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_only_mine(path: Path) -> bool:
    """Whether nobody else could have put code there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _compiler() -> tuple[str, ...]:
    """The compiler's path, with the options that CC may bring along."""
    if sys.platform not in ("linux", "darwin"):
        raise Unavailable("the kernels are for Linux and macOS")
    wanted = shlex.split(os.environ.get("CC", ""))
    for command in [wanted] if wanted else [[name] for name in COMPILERS]:
        if found := shutil.which(command[0]):
            return (found, *command[1:])
    raise Unavailable(f"no C compiler here ({f'CC is {wanted[0]!r}' if wanted else 'gcc, cc or clang'})")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(next((line for line in lines if line.startswith(start)), "") for start in PROCESSOR)


def _share_openmp() -> None:
    """Let the library find the OpenMP that PyTorch has loaded, before any that others brought along."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        maps = []
    loaded = {line.split(maxsplit=5)[-1] for line in maps if re.search(r"/lib(gomp|iomp|omp)[^/]*$", line)}
    for path in sorted(loaded, key=lambda path: (not re.search(r"/torch(/lib|\.libs)/", path), path)):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
