"""The C compiler: which one it is, and a build of this folder's sources by it.

Only the standard library is imported here: see `library`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCES = (
    "winograd.c", "backward.c", "norm.c", "quantized.c", "direct.c", "stem.c", "program.c", "scratch.c", "pool.c"
)  # fmt: skip
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-fPIC")
COMPILERS = ("gcc", "cc", "clang")
FOLDER = Path(__file__).parent
BUILD_LIMIT_S = 120.0  # a build takes a second or two, ten on a busy machine; a compiler may wait for a license forever
LEFTOVER_S = 3600.0  # a folder of a build this old belongs to a process that was killed


class Unavailable(Exception):
    """There is no library on this machine; the message, one line, says why."""


def find_compiler() -> tuple[str, ...]:
    """Return the path of the C compiler, with the options that CC may hold.

    Raises:
        Unavailable: there is none, or the kernels are not for this platform.
    """
    if sys.platform not in ("linux", "darwin"):
        raise Unavailable("the kernels are for Linux and macOS")
    given = os.environ.get("CC", "")
    try:
        wanted = shlex.split(given)
    except ValueError as error:
        reason = str(error).lower()
        raise Unavailable(f"no C compiler here (CC is {given!r}: {reason})") from None
    for command in [wanted] if wanted else [[name] for name in COMPILERS]:
        if found := shutil.which(command[0]):
            return (os.fspath(Path(found).absolute()), *command[1:])  # it runs in another folder
    raise Unavailable(f"no C compiler here ({f'CC is {wanted[0]!r}' if wanted else 'gcc, cc or clang'})")


class Build:
    """A compiler that runs in the background, in a separate folder.

    Args:
        compiler: the command.
        place: the folder where the build gets its folder; builds that were killed there long ago are removed.
        limit_s: when to give up, in seconds from now.
    """

    def __init__(self, compiler: tuple[str, ...], place: Path, limit_s: float = BUILD_LIMIT_S) -> None:
        self.of_process = os.getpid()  # a fork inherits this object but must not touch the compiler
        self.compiler, self.place, self.limit_s = compiler, place, limit_s
        self.deadline = time.monotonic() + limit_s
        _sweep(place)
        self.folder = Path(tempfile.mkdtemp(prefix=".build-", dir=place))
        sources = [os.fspath(FOLDER / name) for name in SOURCES]
        objects = [f"{Path(name).stem}.o" for name in SOURCES]
        link = [*compiler, "-shared", "-pthread", *objects, "-lm", "-o", "done.so"]
        try:
            # Complaints go to a file: a pipe could be full, or kept open by a server that the compiler has started.
            with (self.folder / "complaints").open("wb") as complaints:
                self.process = subprocess.Popen(
                    ["sh", "-c", f"{shlex.join([*compiler, *FLAGS, '-c', *sources])} && {shlex.join(link)}"],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    start_new_session=True,  # Ctrl-C stops the run, not the compiler: the resumed run needs the library
                    umask=0o077,
                )
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def finish(self) -> Path:
        """Wait for the compiler.

        Returns:
            The library, in the folder of the build, which exists until `stop`.

        Raises:
            Unavailable: the compiler failed or was too slow.
        """
        try:
            status = self.process.wait(max(0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Unavailable(f"the C compiler did not finish within {self.limit_s:g} s") from None
        complaints = (self.folder / "complaints").read_bytes()
        if status != 0:
            lines = complaints.decode(errors="replace").split("\n")
            reason = next((line for line in lines if "error" in line), lines[0]).strip()
            raise Unavailable(f"the C compiler failed ({reason or f'exit status {status}'})")
        done = self.folder / "done.so"
        if not done.is_file():
            raise Unavailable(f"the C compiler made no library (CC is {shlex.join(self.compiler)!r})")
        return done

    def stop(self) -> None:
        """Kill the compiler if it still runs, and remove its folder."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove the folders of builds that were killed."""
    for old in place.glob(".build-*"):
        with contextlib.suppress(OSError):
            if old.stat().st_mtime < time.time() - LEFTOVER_S:
                shutil.rmtree(old)
