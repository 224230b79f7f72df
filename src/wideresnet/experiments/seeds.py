"""`fit_seeds`: from a recipe to one run folder per seed and one summary."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import human_seconds
from wideresnet.data import Dataset
from wideresnet.data.load import load_for
from wideresnet.experiments.concurrency import Pace, make_pace
from wideresnet.experiments.lines import Lines
from wideresnet.experiments.process import Worker
from wideresnet.experiments.summary import seeds_document, seeds_text
from wideresnet.report.pages import write_comparison
from wideresnet.spec.files import read_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import asked_of_machine
from wideresnet.spec.record import SeedsFolder
from wideresnet.training import Interrupted, Job, Plan
from wideresnet.training.fit import prepare
from wideresnet.training.folder import check_checkpoint_every
from wideresnet.training.interrupt import StopRequest
from wideresnet.training.resolve import resumed_recipe
from wideresnet.training.track import check_tracker

STOPPED = Interrupted.exit_code


def fit_seeds(
    recipe: Recipe,
    out: str | Path,
    num_seeds: int,
    *,
    at_once: int | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 60.0,
    autotune: str | None = None,
    announce: Callable[[Job, Plan], None] | None = None,
    command: str | None = None,
    track: str | None = None,
    start_worker: Callable[[int, dict[str, Any], Path, int | None], Worker] = Worker,
) -> dict[str, Any]:
    """Train several seeds of a recipe, each in its own process, and summarize them.

    The folder `out/seedS` holds what `fit` with seed S would leave there. On a CPU, with the same number of threads,
    its weights have the same bits. Precision and family are decided once, for all seeds.

    Args:
        recipe: of the first seed, `recipe.seed`; the others have the seeds that follow.
        out: the folder for all seeds; must not exist unless `resume`.
        num_seeds: number of seeds. With `resume`, a higher number than before adds seeds, and a lower one leaves the
            others as they are.
        at_once: number of seeds that train at the same time. On a CPU they share the threads evenly; the default is
            one, because the last bits of a run depend on its threads. On a GPU the default is measured during training,
            see `Pace`.
        dataset: the data of the recipe, if it is loaded already; each worker loads it again.
        resume: continue what is in `out`: finished seeds stay as they are, the others are finished or started.
        checkpoint_every_s: seconds of work that a kill may cost.
        autotune: as for `fit`.
        announce: called with what is about to run, before the first seed.
        command: the command line that was typed, for `env.json`; None if there was none.
        track: name of a tracker, as for `fit`; each seed is a run of its own.
        start_worker: starts the process of a seed, given the seed, its job (see `worker.main`), its log and its number
            of threads.

    Returns:
        What `out/seeds.json` holds, see `seeds_document`. Two finished seeds also get `out/comparison.html`.

    Raises:
        UsageError: recipe, data and folder do not fit each other.
        WRNError: seeds failed; all others have been trained.
        Interrupted: Ctrl-C or SIGTERM; each running seed has saved a checkpoint.
    """
    for name, number in (("seeds", num_seeds), ("at_once", at_once)):
        if number is not None and number < 1:
            raise UsageError(f"{name}={number}: must be at least 1")
    check_checkpoint_every(checkpoint_every_s)
    if track:
        check_tracker(track)
    folder = SeedsFolder(out)
    check = folder.check_begun if resume else folder.check_free
    check()
    with folder.held():
        check()  # another process may have been faster
        stored: dict[str, Any] = {}
        if resume:
            recipe, stored = resumed_recipe(folder.path, folder.read_recipe(), recipe), folder.read_summary()
        seeds = range(recipe.seed, recipe.seed + num_seeds)
        _name_others(folder, seeds)
        waiting = [seed for seed in seeds if not _is_done(folder, seed)]
        seconds, most = stored.get("seconds", 0.0), stored.get("at_once", 1)
        rates = stored.get("images_per_s_at_once", {})
        failed: list[int] = []
        stopped = False
        if waiting:
            dataset = dataset or load_for(recipe)
            first = folder.run(recipe.seed) if resume else None
            job, plan = prepare(recipe, dataset, begun=first, autotune=autotune)
            begun = folder.run(recipe.seed).env
            asked = read_json(begun).get("asked", []) if begun.is_file() else asked_of_machine(job.recipe)
            # a time budget decides the number of epochs once, so that all seeds have as many
            settled, device = {**job.execution.settled(), "time_s": None}, job.execution.device
            recipe = job.recipe.replace(**settled)
            if announce:
                announce(job, plan)
            del job, dataset  # their memory is for the workers
            if device == "cpu" and resume:  # so that each run has as many threads as it began with
                at_once = at_once or most
            pace, num_threads = make_pace(device, plan, recipe.schedule.batch_size, num_seeds, at_once, progress.report)

            def start(seed: int) -> Worker:
                run = folder.run(seed)
                job = {
                    "recipe": recipe.replace(seed=seed).to_json(),
                    "out": str(run.path),
                    "resume": run.is_run(),
                    "checkpoint_every_s": checkpoint_every_s,
                    "command": command,
                    "asked": asked,
                    "track": track,
                }
                return start_worker(seed, job, folder.log(seed), num_threads)

            folder.write_summary(seeds_document(folder, recipe, seeds, seconds, pace.at_once, rates))
            started = time.monotonic()
            try:
                failed, stopped = _train(folder, recipe, waiting, plan, pace, start)
            except KeyboardInterrupt:  # a second Ctrl-C
                again = folder.resume_command(num_seeds)
                raise Interrupted(f"interrupted; continue from the last checkpoints with: {again}") from None
            seconds, most, rates = seconds + time.monotonic() - started, pace.at_once, pace.rates or rates
        else:
            progress.report(f"{folder.path}: all {num_seeds} seeds have finished; nothing to train")
        summary = seeds_document(folder, recipe, seeds, seconds, most, rates)
        folder.write_summary(summary)
        if summary["n"] > 1:
            write_comparison([folder.path / run["folder"] for run in summary["runs"]], folder.page)
        done = f"{summary['n']} of {num_seeds} seeds have finished"
        if stopped and summary["unfinished"]:
            again = folder.resume_command(num_seeds)
            raise Interrupted(f"stopped; {done}, the running ones are saved; continue with: {again}")
        if failed:
            logs = ", ".join(str(folder.log(seed)) for seed in failed)
            again = folder.resume_command(num_seeds)
            raise WRNError(f"{seeds_text(failed)} failed, {done}; see {logs}; try again with: {again}")
        return summary


def _is_done(folder: SeedsFolder, seed: int) -> bool:
    run = folder.run(seed)
    return run.result.is_file() and run.report.is_file() and not run.has_leftovers()


def _name_others(folder: SeedsFolder, seeds: Sequence[int]) -> None:
    """Name the runs in the folder that are not asked for, so that nobody believes they are in the mean."""
    asked = {folder.run(seed).path for seed in seeds}
    if others := sorted(path.name for path in folder.path.glob("seed*") if path.is_dir() and path not in asked):
        progress.report(f"left as they are and not counted: {', '.join(others)}")


def _train(
    folder: SeedsFolder,
    recipe: Recipe,
    seeds: Sequence[int],
    plan: Plan,
    pace: Pace,
    start: Callable[[int], Worker],
) -> tuple[list[int], bool]:
    """Keep as many workers running as the pace allows, until all seeds have ended.

    Returns:
        The seeds that failed, and whether training was stopped before the end.
    """
    waiting, failed = deque(seeds), list[int]()
    running = set[Worker]()
    with StopRequest() as stop, Lines() as lines:
        try:
            while running or (waiting and not stop.asked):
                while waiting and len(running) < pace.at_once and not stop.asked:
                    seed = waiting.popleft()
                    running.add(start(seed))
                    progress.report(f"seed {seed}: started, log in {folder.log(seed)}")
                time.sleep(0.1)
                for worker in sorted(running, key=lambda worker: worker.seed):
                    if stop.asked:
                        worker.stop()
                    lines.show(worker, f"seed {worker.seed}", recipe, plan.num_steps)
                    if (code := worker.poll()) is not None:
                        running.remove(worker)
                        lines.remove(worker)
                        _say_end(folder, worker, code)
                        if code and not (code == STOPPED and stop.asked):
                            failed.append(worker.seed)
                pace.observe({worker.seed: worker.report for worker in running})
        finally:  # some run only after a second Ctrl-C, or after an error here
            for worker in running:
                worker.kill()
    return sorted(failed), stop.asked


def _say_end(folder: SeedsFolder, worker: Worker, code: int) -> None:
    if code == 0:
        result = folder.run(worker.seed).read_result()
        error, seconds = result["test_error_pct"], result["seconds"]
        progress.report(f"seed {worker.seed}: test error {error:.2f} %, {human_seconds(seconds)}")
    elif code == STOPPED:
        progress.report(f"seed {worker.seed}: stopped{' and saved' if worker.message else ''}")
    else:
        progress.report(f"seed {worker.seed} failed: {worker.problem(code)} (log: {folder.log(worker.seed)})")
