"""Several processes on this machine: `wrn train --processes N`.

The processes find each other through a file in a private folder, and nothing is unpickled. torchrun's own launcher is
not used: it opens two stores on all network interfaces, without authentication, and unpickles what it reads from one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from wideresnet.base.errors import UsageError, WRNError

STORE = "WRN_STORE"
"""Environment variable: the file through which processes that `launch` has started find each other."""

LOOPBACK = {"darwin": "lo0"}.get(sys.platform, "lo")

GRACE_S = 15.0
"""How long the others may take to notice that a process has failed, to report it, and to end by themselves."""

POLL_S = 0.05


def is_launched(num_processes: int) -> bool:
    """Tell whether this process is one of the `num_processes` already, or is alone as requested.

    Raises:
        UsageError: the number is below 1, or torchrun has started another number.
    """
    if num_processes < 1:
        raise UsageError(f"processes={num_processes}: must be at least 1")
    if STORE in os.environ:
        return True
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started not in (None, num_processes):
        raise UsageError(f"processes={num_processes}: torchrun has started {started}; leave out processes=")
    return started is not None or num_processes == 1


def launch(num_processes: int, argv: Sequence[str]) -> int:
    """Run `wrn` in several processes of this machine, and wait for them.

    Args:
        num_processes: number of processes.
        argv: the words of the command line after `wrn`.

    Returns:
        0, or the exit code of the process that failed, which has reported why.

    Raises:
        WRNError: a process was killed, and none could report it.
    """
    with tempfile.TemporaryDirectory(prefix="wideresnet-") as private:  # only this user may enter it
        store = Path(private) / "store"
        processes = [_start(rank, num_processes, store, argv) for rank in range(num_processes)]
        try:
            with _signals_passed_on(processes):
                codes = _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        has_reported = reported_file(store).exists()
    killed = {rank: -code for rank, code in enumerate(codes) if code < 0}
    if killed and not has_reported:
        own = {rank: number for rank, number in killed.items() if number not in (signal.SIGTERM, signal.SIGKILL)}
        rank, number = next(iter((own or killed).items()))
        raise WRNError(
            f"process {rank} of {num_processes} (counted from 0) was ended by {signal.Signals(number).name}: the run "
            "has stopped; continue from its last checkpoint, if there is one, with resume=True"
        )
    return next((code for code in codes if code > 0), 1 if killed else 0)


def reported_file(store: Path) -> Path:
    """Return the file that says that a process has reported its failure."""
    return store.with_name("reported")


def _start(rank: int, num_processes: int, store: Path, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
        **os.environ,
        STORE: str(store),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    command = [sys.executable, "-m", "wideresnet", *argv]
    # in a new session, Ctrl-C in the terminal reaches only the launcher, which passes it on once
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


@contextmanager
def _signals_passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the processes, which save their work and end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until all have ended, and end those that remain long after one has failed; return the exit codes."""
    failed_at: float | None = None
    while any(process.poll() is None for process in processes):
        if failed_at is None and any(process.returncode for process in processes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            for process in processes:
                process.kill()
        time.sleep(POLL_S)
    return [process.returncode for process in processes]
