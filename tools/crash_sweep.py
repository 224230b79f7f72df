"""Kill runs at every file operation, resume them, and compare the results with those of runs that were never stopped.

python tools/crash_sweep.py                                          try all configurations
python tools/crash_sweep.py --record results/reliability/sweep.json  and write what was found

A kill is simulated in this process: at the Nth file operation, or half-way through it if it is a write, everything is
abandoned, and nothing that runs afterward changes a file anymore. Runs of two processes are killed by SIGKILL.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from wideresnet.experiments import fit_seeds
from wideresnet.report import pages
from wideresnet.spec.files import read_json, write_atomic, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder, SeedsFolder
from wideresnet.training import Job, Plan, fit
from wideresnet.training.preflight.plan import make_plan

OPERATIONS = ("write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
"""Functions of `os` that change what is on the disk, or make sure that it is there."""

MEASURED = ("seconds", "train_s", "images_per_s", "peak_memory_mib", "predicted_memory_mib", "at_once", "date")
"""Numbers that two equal runs do not share."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs after it changes a file."""


@contextmanager
def killed_at(point: int | None) -> Iterator[list[str]]:
    """Kill this process, as far as files are concerned, at one of its file operations within the block.

    Args:
        point: which one, counted from 0; a write counts twice, before it and half-way through. None only counts.

    Yields:
        The points so far.
    """
    passed: list[str] = []
    is_dead = False

    def at(what: str) -> bool:
        nonlocal is_dead
        passed.append(what)
        is_dead = len(passed) - 1 == point
        return is_dead

    def replacement(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def operation(*args: Any, **options: Any) -> Any:
            if is_dead or at(name):
                raise Killed
            if name == "write" and at("half a write"):
                original(args[0], args[1][: len(args[1]) // 2])
                raise Killed
            return original(*args, **options)

        return operation

    with ExitStack() as patches:
        for name in OPERATIONS:
            patches.enter_context(mock.patch.object(os, name, replacement(name)))
        yield passed


def short_page(run: str | Path, *_: Any) -> None:
    """Stand for `write_report` and `write_comparison`, which take longer than the run."""
    path = Path(run)
    write_atomic(path if path.suffix else RunFolder(path).report, b"page")


class InProcess:
    """Stands for the process of a seed: trains when it is asked whether it has ended."""

    def __init__(self, seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> None:
        del log, num_threads
        self.seed, self.job, self.report, self.message = seed, job, None, ""

    def poll(self) -> int:
        names = ("resume", "checkpoint_every_s")
        fit(Recipe.from_json(self.job["recipe"]), self.job["out"], **{name: self.job[name] for name in names})
        return 0

    def stop(self) -> None: ...

    def kill(self) -> None: ...


def contents(folder: Path) -> dict[str, Any]:
    """Return what a folder holds: bytes of files, values of documents without times, digests of files with times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name, run = str(path.relative_to(folder)), RunFolder(path.parent)
        if path == run.metrics:
            found[name] = [_without_times(record) for record in run.read_metrics()]
        elif path == run.result:
            found[name] = _without_times(run.read_result())
        elif path == run.env:
            found[name] = _without_times(read_json(path))
        elif path.name == "seeds.json":
            summary = SeedsFolder(path.parent).read_summary()
            found[name] = {**_without_times(summary), "runs": [_without_times(run) for run in summary["runs"]]}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def _without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in MEASURED}


@dataclass(frozen=True)
class Case:
    """A way to train, to be killed.

    Attributes:
        name: what is special about it.
        values: of the recipe.
        seeds: how many are trained.
        overwrites: whether the folder holds a run before.
        every: the distance of the points that are tried.
    """

    name: str
    values: dict[str, Any]
    seeds: int = 1
    overwrites: bool = False
    every: int = 1


CASES = (
    Case("plain", {}),
    Case("averaged weights, dropout, accumulation", {"ema_decay": 0.9, "dropout": 0.2, "accumulate": 2}),
    Case("Winograd kernels", {"kernels": "winograd"}, every=3),
    Case("an old run is overwritten", {"seed": 5}, overwrites=True, every=2),
    Case("two seeds", {}, seeds=2, every=7),
)


def make_data(folder: Path) -> Path:
    """Write random images of four classes."""
    random, arrays = np.random.default_rng(0), {}
    for split, num in (("train", 32), ("test", 8)):
        arrays[f"x_{split}"] = random.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % 4
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def make_recipe(data: Path, **values: Any) -> Recipe:
    """Return two epochs of two steps."""
    defaults = {
        "epochs": 2,
        "batch_size": 16,
        "crop_padding": 1,
        "device": "cpu",
        "precision": "fp32",
        "kernels": "pytorch",
    }
    return Recipe.flat(network="WRN-10-1", data=str(data), **{**defaults, "lr_drop_epochs": (2,), **values})


@functools.cache
def plan_once(network: str) -> Any:
    """Return a stand-in for `make_plan` that plans a network's first run: planning takes longer than training here."""
    known: list[Plan] = []

    def plan(job: Job, *, resumed: bool = False, began: float | None = None) -> Plan:
        if not known:
            known.append(make_plan(job, resumed=resumed, began=began))
        return known[0]

    del network
    return plan


def train(case: Case, recipe: Recipe, out: Path) -> None:
    """Begin, or continue what a kill has left, as the messages of the package say."""
    with (
        mock.patch.object(pages, "write_report", short_page),
        mock.patch("wideresnet.training.fit.make_plan", plan_once(recipe.network)),
    ):
        if case.seeds > 1:
            resume = SeedsFolder(out).is_begun()
            with mock.patch("wideresnet.experiments.seeds.write_comparison", lambda _, page: short_page(page)):
                fit_seeds(
                    recipe, out, case.seeds, resume=resume, checkpoint_every_s=0, start_worker=InProcess,  # type: ignore[arg-type]
                )  # fmt: skip
            return
        folder = RunFolder(out)
        is_begun = folder.is_run() and folder.read_recipe().seed == recipe.seed
        fit(recipe, out, resume=is_begun, overwrite=case.overwrites and not is_begun, checkpoint_every_s=0)


def sweep(case: Case, work: Path, data: Path) -> dict[str, Any]:
    """Kill a case at its points and continue it.

    Args:
        case: what to train.
        work: an empty folder.
        data: see `make_data`.

    Returns:
        Values for JSON: the case's name and values, the number of points that it passes, how many were tried, how many
        ended with the same files, and the others by number and operation.
    """
    recipe, old = make_recipe(data, **case.values), work / "old"
    if case.overwrites:
        train(Case("old", {}), make_recipe(data), old)
    before = contents(old) if case.overwrites else {}

    def begin(out: Path) -> None:
        if case.overwrites:
            shutil.copytree(old, out)

    whole = work / "whole"
    begin(whole)
    with killed_at(None) as passed:
        train(case, recipe, whole)
    expected, differ = contents(whole), []
    points = range(0, len(passed), case.every)
    for point in points:
        out = work / f"killed-{point}"
        begin(out)
        with killed_at(point) as seen, suppress(Killed):
            train(case, recipe, out)
        if case.overwrites:
            check_nothing_lost(RunFolder(out), before, recipe.seed)
        train(case, recipe, out)
        if contents(out) != expected:
            differ.append(f"{point}: {seen[-1]}")
        shutil.rmtree(out)
    return {
        "case": case.name,
        "values": case.values,
        "points": len(passed),
        "tried": len(points),
        "identical": len(points) - len(differ),
        "differ": differ,
    }


def check_nothing_lost(folder: RunFolder, old: dict[str, Any], seed: int) -> None:
    """Check that the old run is whole until the new one can be resumed."""
    if list(folder.checkpoint.glob("step-*")) and folder.read_recipe().seed == seed:
        return
    if folder.result.is_file() and folder.is_run() and folder.read_recipe().seed == seed:
        return
    with folder.held():
        folder.settle_replaced()
    place = folder.replaced if folder.replaced.is_dir() else folder.path
    found = {name: value for name, value in contents(place).items() if name in old}
    assert found == old, f"{place}: the old run is not whole"


def sweep_processes(work: Path, data: Path, num_kills: int) -> dict[str, Any]:
    """Kill runs of two processes, all at once, when they have written one checkpoint, two, three and so on."""
    command = [sys.executable, "-m", "wideresnet", "train", "--processes", "2", "--checkpoint-every", "0"]
    values = {"epochs": 4, "sync_bn": True, "dropout": 0.2}
    write_json(work / "recipe.json", make_recipe(data, **values).to_json())
    begin = [*command, "--recipe", str(work / "recipe.json"), "--out"]

    def run(out: Path, *words: str, num_checkpoints: int = 0) -> None:
        seen: set[str] = set()
        with subprocess.Popen([*words, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None:
                seen |= {path.name for path in (out / "checkpoint").glob("step-*")}
                if num_checkpoints and len(seen) >= num_checkpoints:
                    for pid in (*children(process.pid), process.pid):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                time.sleep(0.002)
            assert process.stderr is not None
            said = process.stderr.read().decode()
        assert process.returncode == 0 or num_checkpoints, said

    run(work / "whole", *begin)
    expected, differ = contents(work / "whole"), []
    for kill in range(1, num_kills + 1):
        out = work / f"killed-{kill}"
        run(out, *begin, num_checkpoints=kill)
        if not RunFolder(out).result.is_file():
            run(out, *command, "--resume", "--out")
        if _without_pages(contents(out)) != _without_pages(expected):
            differ.append(f"after {kill} checkpoints")
    return {
        "case": "two processes, SIGKILL", "values": values, "points": None, "tried": num_kills,
        "identical": num_kills - len(differ), "differ": differ,
    }  # fmt: skip


def _without_pages(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what shows times or the command that was typed."""
    return {
        name: value
        for name, value in found.items()
        if Path(name).suffix not in (".html", ".png", "") and name != "env.json"
    }


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, on Linux."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def main() -> int:
    """Sweep all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="file to write")
    args = parser.parse_args()
    os.environ["WRN_AUTOTUNE"] = "off"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name))
        for number, case in enumerate((*CASES, None)):
            work = Path(name) / str(number)
            work.mkdir()
            started = time.monotonic()
            results.append(sweep(case, work, data) if case else sweep_processes(work, data, num_kills=5))
            found = results[-1]
            seconds = time.monotonic() - started
            print(f"{found['case']}: {found['identical']} of {found['tried']} identical, {seconds:.0f} s", flush=True)
            for name in found["differ"]:
                print(f"  {name}", flush=True)
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "command": "python tools/crash_sweep.py --record " + args.record.as_posix(),
            "cases": results,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            **{package: version(package) for package in ("wideresnet", "torch", "safetensors")},
        }
        write_json(args.record, document)
    return int(any(found["differ"] for found in results))


if __name__ == "__main__":
    sys.exit(main())
