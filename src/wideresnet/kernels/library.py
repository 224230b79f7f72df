"""The C code of this folder as a shared library: compiled for this processor at first use, then cached.

Code that others could have written is never loaded. The library is opened once. Owner, mode and digest are checked on
that descriptor, and the same descriptor is loaded, so that nothing can be exchanged in between.

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
import stat
import sys
import tempfile
from pathlib import Path

from wideresnet.base.paths import is_private, is_private_chain, kernels_folder, private_folder, private_temporary_folder
from wideresnet.kernels import abi
from wideresnet.kernels.compiler import BUILD_LIMIT_S, FLAGS, FOLDER, SOURCES, Build, Unavailable, find_compiler

DESCRIPTORS = Path("/proc/self/fd")  # of Linux
PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")
"""The lines of /proc/cpuinfo that decide what -march=native means, on x86 and Arm."""


class Loader:
    """Finds, builds and loads the library, once. The package has one loader per process.

    Args:
        processor: identifies the target of -march=native; None to read it from the system.
        limit_s: how long the compiler may take, in seconds.

    Attributes:
        build: a compiler that `start_build` has started and whose library has not been asked for yet.
    """

    def __init__(self, processor: str | None = None, limit_s: float = BUILD_LIMIT_S) -> None:
        self.build: Build | None = None
        self._processor, self._limit_s = processor, limit_s
        self._found: ctypes.CDLL | str | None = None

    def start_build(self) -> None:
        """Compile the library in the background, about a second's work, unless it is in the cache."""
        with contextlib.suppress(Unavailable, OSError):  # `library` will give the reason
            if self.build is not None:
                return
            if found := self._find():
                os.close(found[1])
            else:
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
                _compute_on_one_thread_after_a_fork()
            except Unavailable as reason:
                self._found = str(reason)
            except OSError as error:
                self._found = f"the kernels cannot be used ({error})"
        return self._found

    def _find_or_build(self) -> ctypes.CDLL:
        if found := self._find():
            path, descriptor = found
            try:
                return self._bind(path, descriptor)
            except OSError:  # built for another machine: compile again
                path.unlink(missing_ok=True)
        started = self.build if self.build and self.build.of_process == os.getpid() else None
        build, self.build = started or self._start(), None
        try:
            return self._bind(*self._keep(build))
        finally:
            build.stop()

    def _start(self) -> Build:
        compiler = self._compiler
        return Build(compiler, _places()[-1], self._limit_s)

    def _find(self) -> tuple[Path, int] | None:
        """Return the cached library, opened, if its content matches its name and only this user can have written it."""
        key = self._key()
        for place in _places():
            for path in sorted(place.glob(f"{key}-*.so")):
                with contextlib.suppress(OSError):  # removed a moment ago, or a link
                    descriptor, digest = _open_private(path)
                    if path.stem == f"{key}-{digest}":
                        return path, descriptor
                    os.close(descriptor)
        return None

    def _key(self) -> str:
        """Return a digest of everything that decides the content of the library."""
        processor = _read_processor() if self._processor is None else self._processor
        parts = " ".join((*self._compiler, *FLAGS, *SOURCES, platform.machine(), processor)).encode()
        return _digest(parts + b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]"))))

    def _keep(self, build: Build) -> tuple[Path, int]:
        """Wait for a build and move its library to the cache; returns it, opened."""
        done = build.finish()
        descriptor, digest = _open_private(done)
        # The name holds the digest, which is checked before loading: a truncated library would crash the process.
        return done.replace(build.place / f"{self._key()}-{digest}.so"), descriptor

    def _bind(self, path: Path, descriptor: int) -> ctypes.CDLL:
        """Load the library behind a descriptor, which stays open: its number is the name that the loader knows."""
        try:
            if DESCRIPTORS.is_dir():
                return abi.bind(ctypes.CDLL(os.fspath(DESCRIPTORS / str(descriptor))))
            with tempfile.TemporaryDirectory(prefix="wideresnet-") as folder:  # no such names here: a private copy
                copy = Path(folder) / path.name
                copy.write_bytes(_read(descriptor))
                return abi.bind(ctypes.CDLL(os.fspath(copy)))
        except OSError:
            os.close(descriptor)
            raise

    @functools.cached_property
    def _compiler(self) -> tuple[str, ...]:
        return find_compiler()

    def _leave(self) -> None:
        """At exit, cache a finished library that nobody asked for, or stop the compiler."""
        if self.build is None or self.build.of_process != os.getpid():
            return
        if self.build.process.poll() == 0:
            with contextlib.suppress(Unavailable, OSError):
                self._keep(self.build)
        self.build.stop()


_LOADER = Loader()
start_build, library, why_unavailable = _LOADER.start_build, _LOADER.library, _LOADER.why_unavailable
identity = _LOADER.identity


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _places() -> list[Path]:
    """Return the folders to look for the library in; the last one is for builds.

    It is the cache folder. If that one is read-only, or others can put code there, a private temporary folder takes its
    place, which all processes of this user share.
    """
    folder = kernels_folder()
    with contextlib.suppress(OSError):
        private_folder(folder)
    places = [folder] if is_private_chain(folder) else []
    if not places or not os.access(folder, os.W_OK):
        places.append(private_folder(private_temporary_folder() / "kernels"))
    return places


def _open_private(path: Path) -> tuple[int, str]:
    """Open a file; return the descriptor and the digest of the content.

    Raises:
        OSError: it is no regular file, or others can have written it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would block
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not is_private(descriptor):
            raise PermissionError(f"{path} is not only this user's")
        return descriptor, _digest(_read(descriptor))
    except OSError:
        os.close(descriptor)
        raise


def _read(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _read_processor() -> str:
    """Return what decides the meaning of -march=native."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(next((line for line in lines if line.startswith(start)), "") for start in PROCESSOR)


@functools.cache
def _compute_on_one_thread_after_a_fork() -> None:
    """Make the child of a later fork compute on one thread, as PyTorch's DataLoader does in its workers.

    PyTorch's threads do not survive a fork, and it waits for them forever. The kernels start new ones.
    """

    def limit_threads() -> None:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)

    os.register_at_fork(after_in_child=limit_threads)
