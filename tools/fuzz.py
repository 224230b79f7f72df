"""Feed damaged files to every reader: anything but a result or one line of error, in bounded time and memory, fails.

    python tools/fuzz.py images npz --seconds 60              # several readers share the time; none named: all
    python tools/fuzz.py images --count 10000 --seed 7 --record images.json
    python tools/fuzz.py images --seed 7 --first 4711 --count 1   # one input again

Input number i of a reader and a seed is always the same. The readers, with their valid files and the ways to damage
them, are in `fuzzing/`. Inputs are read one after another in a worker process under a watchdog: an alarm after 55 s
tells where the reader was; later the worker is killed and replaced. What fails is kept in a folder, with the command
that reproduces it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from wideresnet.base.errors import WRNError

TIMEOUT_S = 60
EXTRA_S = 10  # between the alarm within the worker and the end of the worker
MEMORY_MIB = 1024  # above what an input declares and what the worker had before
INPUTS_PER_WORKER = 5000  # so that what libraries leak does not add up
LIBRARIES = ("numpy", "Pillow", "pyarrow", "safetensors", "torch")
OK = frozenset({"result", "DataError", "UsageError", "WRNError"})
HERE = Path(__file__).resolve().parent
TABLE = HERE / "fuzzing/table.py"


class _TooLongError(BaseException):
    """The alarm; no reader catches it."""


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        kind: "result", the name of a WRNError, or what failed: the name of another error, "hang", "crash", "memory",
            "noise" (lines on stdout or stderr), "several lines".
        detail: the message, the traceback or the lines.
        seconds: time to read it.
        peak_mib: memory at the peak, above that before.
    """

    kind: str
    detail: str
    seconds: float
    peak_mib: float


# The worker: reads one input at a time.


def main_of_worker(table: Path) -> NoReturn:
    """Read "reader seed index" from stdin and answer with an `Outcome` as JSON, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    readers = load_table(table)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryFile() as noise, tempfile.TemporaryDirectory(dir=_fast_folder()) as scratch:
        for stream in (1, 2):
            os.dup2(noise.fileno(), stream)
        signal.signal(signal.SIGALRM, _alarm)
        os.chdir(scratch)
        for number, line in enumerate(sys.stdin):
            name, seed, index = line.split()
            folder = Path(scratch, str(number))
            readers[name].write(folder, random_of(name, seed, index))
            outcome = _read(readers[name], folder, noise)
            print(json.dumps(vars(outcome)), file=answers, flush=True)
            readers[name].remove(folder)
    sys.exit()


def _fast_folder() -> str | None:
    """A folder in memory, if the system has one: an input can have hundreds of folders."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _alarm(*_: object) -> NoReturn:
    raise _TooLongError


def _read(reader: Any, folder: Path, noise: Any) -> Outcome:
    noise.seek(0)
    noise.truncate()
    before, start = _reset_peak_mib(), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S - 5)
    try:
        reader.read(folder)
        kind, detail = "result", ""
    except WRNError as error:
        kind, detail = type(error).__name__, str(error)
        if len(detail.splitlines()) != 1:
            kind = "several lines"
    except _TooLongError:
        kind, detail = "hang", traceback.format_exc()
    except BaseException as error:  # SystemExit fails, too
        kind, detail = type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, peak = time.monotonic() - start, _peak_mib() - before
    noise.seek(0)
    if kind in OK and (lines := noise.read()):
        kind, detail = "noise", lines.decode(errors="replace")
    if kind in OK and peak > MEMORY_MIB + reader.declared_mib:
        kind = "memory"
    return Outcome(kind, detail[-4000:], round(seconds, 3), round(peak, 1))


def _reset_peak_mib() -> float:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak starts again
    return _peak_mib()


def _peak_mib() -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return 0.0


# The parent: asks workers, watches them, counts.


class Worker:
    """A process that reads inputs until it hangs or dies, and is then replaced."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._process: subprocess.Popen[str] | None = None
        self._asked = 0

    def ask(self, name: str, seed: int, index: int) -> Outcome:
        """Read one input."""
        if self._asked == INPUTS_PER_WORKER:
            self.stop()
        process = self._process = self._process or self._start()
        self._asked += 1
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{name} {seed} {index}\n")
        process.stdin.flush()
        start = time.monotonic()
        limit = TIMEOUT_S + EXTRA_S + (60 if self._asked == 1 else 0)  # the first one waits for the imports
        ready, _, _ = select.select([process.stdout], [], [], limit)
        if answer := process.stdout.readline() if ready else "":
            return Outcome(**json.loads(answer))
        self.stop()
        kind = "crash" if ready else "hang"
        return Outcome(kind, f"the worker ended with {process.returncode}", round(time.monotonic() - start, 3), 0.0)

    def _start(self) -> subprocess.Popen[str]:
        self._asked = 0
        command = [sys.executable, str(HERE / "fuzz.py"), "--worker", "--table", str(self._table)]
        environment = os.environ | {"WRN_DATA": "/dev/null/none", "OMP_NUM_THREADS": "1", "WRN_AUTOTUNE": "off"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
            self._asked = 0


def random_of(name: str, seed: int | str, index: int | str) -> Random:
    """Return the source of all choices for an input."""
    return Random(f"{name} {seed} {index}")


def load_table(path: Path) -> Mapping[str, Any]:
    """Import the table `READERS` of a module."""
    if path == TABLE:
        return importlib.import_module("fuzzing.table").READERS
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.READERS


def fuzz(worker: Worker, reader: Any, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Feed inputs to a reader until the time or the count is over. Return the record."""
    kinds: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    slowest, highest = (0.0, args.first), (0.0, args.first)
    start = shown = time.monotonic()
    index = args.first
    while time.monotonic() - start < seconds and (args.count is None or index < args.first + args.count):
        outcome = worker.ask(reader.name, args.seed, index)
        kinds[outcome.kind] += 1
        slowest, highest = max(slowest, (outcome.seconds, index)), max(highest, (outcome.peak_mib, index))
        if outcome.kind not in OK:
            failures.append({"index": index, "kind": outcome.kind, "detail": outcome.detail})
            _keep(reader, args, index, outcome)
        index += 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{reader.name}: {index - args.first:,} inputs, {len(failures)} failures", file=sys.stderr)
    inputs, passed = index - args.first, time.monotonic() - start
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    print(
        f"{reader.name}: {inputs:,} inputs in {passed:.0f} s: {counts}; slowest {slowest[0]:.1f} s "
        f"(input {slowest[1]}), at most {highest[0]:,.0f} MiB (input {highest[1]}); {len(failures)} failures"
    )
    return {
        "reader": reader.name,
        "seed": args.seed,
        "first": args.first,
        "inputs": inputs,
        "seconds": round(passed, 1),
        "outcomes": dict(kinds.most_common()),
        "slowest": {"index": slowest[1], "seconds": slowest[0]},
        "highest": {"index": highest[1], "peak_mib": highest[0]},
        "failures": failures,
    }


def _keep(reader: Any, args: argparse.Namespace, index: int, outcome: Outcome) -> None:
    """Write a failing input, what happened, and the command that reproduces it."""
    folder = args.keep / f"{reader.name}-{args.seed}-{index}"
    if folder.exists():
        reader.remove(folder / "input")
    reader.write(folder / "input", random_of(reader.name, args.seed, index))
    command = ["python", "tools/fuzz.py", reader.name, "--seed", str(args.seed), "--first", str(index), "--count", "1"]
    (folder / "command.txt").write_text(shlex.join(command) + "\n")
    (folder / "outcome.txt").write_text(f"{outcome.kind}\n{outcome.detail}\n", errors="backslashreplace")
    reason = outcome.detail.strip().splitlines()[-1:] or [""]
    print(f"{reader.name}: input {index} fails: {outcome.kind}: {reason[0][:200]!r}, kept in {folder}", file=sys.stderr)


def versions() -> dict[str, str]:
    """Return what the outcome may depend on."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "system": platform.system(), **libraries}


def parser(names: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(names)}; default all")
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together (60)")
    parser.add_argument("--count", type=int, help="inputs for each reader at most")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (0)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for failing inputs (runs/fuzz)")
    parser.add_argument("--record", type=Path, help="JSON file for what happened")
    parser.add_argument("--table", type=Path, default=TABLE, help="the module with the readers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


@contextlib.contextmanager
def _stopped(worker: Worker) -> Iterator[Worker]:
    try:
        yield worker
    finally:
        worker.stop()


def main() -> int:
    """Fuzz the readers that the command line names. Return 1 if an input failed."""
    args = parser({}).parse_known_args()[0]
    table = args.table.resolve()
    if args.worker:
        main_of_worker(table)
    readers = load_table(table)
    args = parser(readers).parse_args()
    if unknown := [name for name in args.readers if name not in readers]:
        parser(readers).error(f"no reader {unknown[0]}; one of {', '.join(readers)}")
    names = args.readers or list(readers)
    with _stopped(Worker(table)) as worker:
        records = [fuzz(worker, readers[name], args, args.seconds / len(names)) for name in names]
    if args.record:
        args.record.write_text(json.dumps({"versions": versions(), "readers": records}, indent=1) + "\n")
    return int(any(record["failures"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
