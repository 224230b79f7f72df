"""From an exhibit of the paper to its runs, trained wherever there is room."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.errors import WRNError
from wideresnet.experiments.estimate import Work
from wideresnet.experiments.lines import Lines
from wideresnet.experiments.plan import Cell, Expansion
from wideresnet.experiments.process import Worker
from wideresnet.experiments.store import Store, Task
from wideresnet.experiments.worker import DIVERGED, IN_USE
from wideresnet.training import Interrupted
from wideresnet.training.interrupt import StopRequest
from wideresnet.training.schedules import share_done

POLL_S = 0.2
"""How often workers are looked at."""

MAX_ATTEMPTS = 3
"""A run whose worker was killed from outside is started again, from its last checkpoint, up to this many times in all.
This package's choice."""

PATIENCE_S = 30.0
"""How long runs that another process trains are waited for at the end: the workers of a process that was killed need a
moment to save and end. This package's choice."""

StartWorker = Callable[[int, dict[str, Any], Path, int | None], Worker]
"""Starts a process, given the run's seed, its job (see `worker.main`), its log and its number of threads."""


@dataclass(frozen=True)
class Todo:
    """The runs of an exhibit.

    Attributes:
        expansion: the exhibit.
        tasks: for each cell, its runs by seed.
    """

    expansion: Expansion
    tasks: tuple[tuple[Cell, tuple[Task, ...]], ...]

    def all(self) -> list[Task]:
        """Return every run once, seed by seed, so that early results are of all cells."""
        by_seed = zip(*(tasks for _, tasks in self.tasks), strict=True)
        return list({task.name: task for tasks in by_seed for task in tasks}.values())


def list_tasks(expansion: Expansion, digests: Mapping[str, str], num_seeds: int) -> Todo:
    """Name the runs of an exhibit.

    Args:
        expansion: the exhibit.
        digests: data set -> digest of its images.
        num_seeds: seeds 0 to n-1 of each cell.
    """
    tasks = (
        (cell, tuple(Task.of(cell.recipe, cell.dataset, digests[cell.dataset], seed) for seed in range(num_seeds)))
        for cell in expansion.cells
    )
    return Todo(expansion, tuple(tasks))


def train_all(
    store: Store,
    tasks: Sequence[Task],
    work: Mapping[str, Work],
    *,
    at_once: int = 1,
    num_threads: int | None = None,
    checkpoint_every_s: float = 60.0,
    track: str | None = None,
    command: str | None = None,
    patience_s: float = PATIENCE_S,
    start_worker: StartWorker = Worker,
) -> None:
    """Train what is missing, each run in its own process; what another process is training is left to it.

    Args:
        store: where the runs are.
        tasks: the runs, in the order in which they are trained; finished and failed ones are skipped.
        work: name of a run -> what it consists of.
        at_once: runs that train at the same time.
        num_threads: threads of each; None for all.
        checkpoint_every_s: seconds of work that a kill may cost.
        track: name of a tracker, as for `fit`; each run is one of its runs.
        command: the command line, for the record.
        patience_s: seconds to wait at the end for runs that another process trains.
        start_worker: what starts a process, see `StartWorker`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; running runs have saved a checkpoint.
        WRNError: runs ended for a reason that is not their own, such as a full disk; the others have been trained.
    """
    waiting = deque(task for task in tasks if store.state(task.name) not in ("finished", "failed"))
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    running: dict[Worker, tuple[Task, ExitStack]] = {}
    ended = {task.name for task in tasks} - {task.name for task in waiting}
    attempts, problems, elsewhere = dict[str, int](), list[str](), list[Task]()

    def start(task: Task) -> None:
        held, lease = ExitStack(), store.lease(task.name)
        if not lease.acquire():
            elsewhere.append(task)
            return
        held.callback(lease.release)
        store.intend(task, owner)
        attempts[task.name] = attempts.get(task.name, 0) + 1
        run = store.run(task.name)
        job = {
            "recipe": task.recipe.to_json(),
            "out": str(run.path),
            "resume": run.is_begun(),
            "checkpoint_every_s": checkpoint_every_s,
            "track": track,
            "command": command,
            "asked": None,
            "data_digest": task.data_digest,
        }
        worker = start_worker(task.recipe.seed, job, store.log(task.name), num_threads)
        running[worker] = task, held
        progress.report(f"{task.name}: {worker.began}, log in {store.log(task.name)}")

    def end(worker: Worker, code: int) -> None:
        """Note how a worker has ended."""
        task, held = running.pop(worker)
        try:
            if code == 0:
                result = store.run(task.name).read_result()
                progress.report(f"{task.name}: test error {result['test_error_pct']:.2f} %")
                ended.add(task.name)
            elif code == DIVERGED:
                store.fail(task.name, worker.problem(code))
                progress.report(f"{task.name}: failed: {worker.problem(code)}")
                ended.add(task.name)
            elif code == IN_USE:
                elsewhere.append(task)
            elif code < 0 and attempts[task.name] < MAX_ATTEMPTS and not stop.asked:
                progress.report(f"{task.name}: {worker.problem(code)}; it will be continued from its last checkpoint")
                waiting.append(task)
            elif code != Interrupted.exit_code:
                problems.append(f"{task.name}: {worker.problem(code)} (log: {store.log(task.name)})")
                progress.report(problems[-1])
        finally:
            held.close()

    total = sum(work[task.name].flops for task in tasks)
    store.path.mkdir(parents=True, exist_ok=True)
    with StopRequest() as stop, progress.task("all runs", total=total, fields=("what",)) as bar, Lines() as lines:
        try:
            until = None
            while running or ((waiting or elsewhere) and not stop.asked):
                if running or waiting:
                    until = None
                else:  # only what others train is left
                    until = until or time.monotonic() + patience_s
                    if time.monotonic() >= until:
                        break
                    waiting.extend(elsewhere)
                    elsewhere.clear()
                while waiting and len(running) < at_once and not stop.asked:
                    start(waiting.popleft())
                done = sum(work[name].flops for name in ended)
                for worker, (task, _) in running.items():
                    of_run = work[task.name]
                    lines.show(worker, task.name, task.recipe, of_run.num_steps)
                    if worker.report:
                        done += of_run.flops * share_done(task.recipe, worker.report.step / of_run.num_steps)
                bar.update(completed=done, what=f"{len(ended)} of {len(tasks)} runs")
                time.sleep(POLL_S)
                for worker in list(running):
                    if stop.asked:
                        worker.stop()
                    if (code := worker.poll()) is not None:
                        lines.remove(worker)
                        end(worker, code)
        finally:  # some run only after a second Ctrl-C, or after an error here
            for worker, (_, held) in running.items():
                worker.kill()
                held.close()
    if stop.asked:
        raise Interrupted(
            f"stopped; {len(ended)} of {len(tasks)} runs have ended, the running ones are saved; repeat the command to "
            "continue"
        )
    if problems:
        raise WRNError(f"{len(problems)} runs could not be trained; repeat the command to continue. {problems[0]}")
    if elsewhere:
        progress.report(f"{len(elsewhere)} runs are being trained by another process; repeat the command later")
