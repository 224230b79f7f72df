"""The C code of this folder as a shared library: compiled for this processor at first use, then cached.

Only the standard library is imported here, so that the compiler can run while PyTorch is still being imported.
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
from wideresnet.kernels import abi

SOURCES = ("winograd.c", "norm.c", "quantized.c", "scratch.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
COMPILERS = ("gcc", "cc", "clang")
FOLDER = Path(__file__).parent
LEFTOVER_S = 3600.0  # a build takes a second or two; a folder this old belongs to a process that was killed
PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")
"""The lines of /proc/cpuinfo that decide what -march=native means, on x86 and Arm."""


class Unavailable(Exception):
    """There is no library on this machine; the message, one line, says why."""


class Build:
    """A compiler that runs in the background, in a temporary folder.

    Args:
        compiler: the command.
        place: the folder for the finished library.
        key: the beginning of its name.
    """

    def __init__(self, compiler: tuple[str, ...], place: Path, key: str) -> None:
        self.of_process = os.getpid()  # a fork inherits this object but must not touch the compiler
        self.place, self.key = place, key
        for old in place.glob(".build-*"):
            with contextlib.suppress(OSError):
                if old.stat().st_mtime < time.time() - LEFTOVER_S:
                    shutil.rmtree(old)
        self.folder = Path(tempfile.mkdtemp(prefix=".build-", dir=place))
        sources = [os.fspath(FOLDER / name) for name in SOURCES]
        objects = [f"{Path(name).stem}.o" for name in SOURCES]
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        # Linked without -fopenmp: the library uses PyTorch's OpenMP, since two runtimes would compete for the cores.
        link = [*compiler, "-shared", *undefined, *objects, "-lm", "-o", "done.so"]
        self.process = subprocess.Popen(
            ["sh", "-c", f"{shlex.join([*compiler, *FLAGS, '-c', *sources])} && {shlex.join(link)}"],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C stops the run, not the compiler: the resumed run needs the library
            umask=0o077,
        )

    def finish(self) -> Path:
        """Wait for the compiler and move the library to its place.

        Raises:
            Unavailable: the compiler failed.
        """
        try:
            _, complaint = self.process.communicate()
            if self.process.returncode != 0:
                lines = complaint.decode(errors="replace").split("\n")
                reason = next((line for line in lines if "error" in line), lines[0]).strip()
                raise Unavailable(f"the C compiler failed ({reason or f'exit status {self.process.returncode}'})")
            done = self.folder / "done.so"
            # The name holds a digest, which is checked before loading: a truncated library would crash the process.
            return done.replace(self.place / f"{self.key}-{_digest(done.read_bytes())}.so")
        finally:
            self.stop()

    def stop(self) -> None:
        """Kill the compiler if it still runs, and remove its folder."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


class Loader:
    """Finds, builds and loads the library, once. The package has one loader per process.

    Args:
        processor: identifies the target of -march=native; None to read it from the system.

    Attributes:
        build: a compiler that `start_build` has started and whose library has not been asked for yet.
    """

    def __init__(self, processor: str | None = None) -> None:
        self.build: Build | None = None
        self._processor = processor
        self._found: ctypes.CDLL | str | None = None

    def start_build(self) -> None:
        """Compile the library in the background, about a second's work, unless it is in the cache."""
        with contextlib.suppress(Unavailable, OSError):  # `library` will give the reason
            if self.build is None and self._find() is None:
                self.build = self._start()
                atexit.register(self._leave)

    def library(self) -> ctypes.CDLL:
        """Return the library, compiled now if necessary. Its functions are those of `abi.FUNCTIONS`.

        Raises:
            Unavailable: there is no compiler, or it failed.
        """
        found = self._load()
        if isinstance(found, str):
            raise Unavailable(found)
        return found

    def why_unavailable(self) -> str | None:
        """Return in one line why there is no library on this machine, or None. Compiles it now if necessary."""
        found = self._load()
        return found if isinstance(found, str) else None

    def identity(self) -> str:
        """Return a digest of what decides the library's content: sources, compiler, processor; "" without compiler."""
        try:
            return self._key()
        except (Unavailable, OSError):
            return ""

    def _load(self) -> ctypes.CDLL | str:
        """Return the library or the reason for its absence; a failure is not retried in this process."""
        if self._found is None:
            try:
                self._found = self._find_or_build()
            except Unavailable as reason:
                self._found = str(reason)
            except OSError as error:
                self._found = f"the kernels cannot be used ({error})"
        return self._found

    def _find_or_build(self) -> ctypes.CDLL:
        _share_openmp()
        if place := self._find():
            try:
                return abi.bind(ctypes.CDLL(os.fspath(place)))
            except OSError:  # removed a moment ago, or built for another machine: compile again
                place.unlink(missing_ok=True)
        started = self.build if self.build and self.build.of_process == os.getpid() else None
        build, self.build = started or self._start(), None
        return abi.bind(ctypes.CDLL(os.fspath(build.finish())))

    def _start(self) -> Build:
        return Build(self._compiler, _folder_to_build_in(), self._key())

    def _find(self) -> Path | None:
        """Return the cached library if its content matches its name and only this user could have written it."""
        folder, key = kernels_folder(), self._key()
        if not _is_only_mine(folder):
            return None
        found = (path for path in sorted(folder.glob(f"{key}-*.so")) if _is_only_mine(path))
        return next((path for path in found if path.stem == f"{key}-{_digest(path.read_bytes())}"), None)

    def _key(self) -> str:
        """Return a digest of everything that decides the content of the library."""
        processor = _read_processor() if self._processor is None else self._processor
        parts = " ".join((*self._compiler, *FLAGS, *SOURCES, platform.machine(), processor)).encode()
        return _digest(parts + b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]"))))

    @functools.cached_property
    def _compiler(self) -> tuple[str, ...]:
        """The path of the compiler, with the options that CC may hold."""
        if sys.platform not in ("linux", "darwin"):
            raise Unavailable("the kernels are for Linux and macOS")
        wanted = shlex.split(os.environ.get("CC", ""))
        for command in [wanted] if wanted else [[name] for name in COMPILERS]:
            if found := shutil.which(command[0]):
                return (found, *command[1:])
        raise Unavailable(f"no C compiler here ({f'CC is {wanted[0]!r}' if wanted else 'gcc, cc or clang'})")

    def _leave(self) -> None:
        """At exit, cache a finished library that nobody asked for, or stop the compiler."""
        if self.build is None or self.build.of_process != os.getpid():
            return
        if self.build.process.poll() == 0:
            with contextlib.suppress(Unavailable, OSError, ValueError):  # ValueError: its output is already closed
                self.build.finish()
        else:
            self.build.stop()


_LOADER = Loader()
start_build, library, why_unavailable = _LOADER.start_build, _LOADER.library, _LOADER.why_unavailable
identity = _LOADER.identity


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _folder_to_build_in() -> Path:
    """Return the cache folder, or a private one for this process if it is read-only or others can write to it."""
    folder = kernels_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_only_mine(folder) and os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.mkdtemp(prefix="wideresnet-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_only_mine(path: Path) -> bool:
    """Return whether nobody else could have put code there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read_processor() -> str:
    """Return what decides the meaning of -march=native."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(next((line for line in lines if line.startswith(start)), "") for start in PROCESSOR)


def _share_openmp() -> None:
    """Make the OpenMP runtime that PyTorch has loaded visible to the library, before any other."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        maps = []
    loaded = {line.split(maxsplit=5)[-1] for line in maps if re.search(r"/lib(gomp|iomp|omp)[^/]*$", line)}
    for path in sorted(loaded, key=lambda path: (not re.search(r"/torch(/lib|\.libs)/", path), path)):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
