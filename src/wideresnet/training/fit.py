"""`fit`: from a recipe to a run folder, new or gone on with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from wideresnet.base.console import console
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import human_bytes
from wideresnet.data import Dataset
from wideresnet.data.load import load_for
from wideresnet.distributed.world import LostProcess, World, join
from wideresnet.machine.description import describe
from wideresnet.spec.names import parse
from wideresnet.spec.recipe import ELSEWHERE, SETTLED, Recipe
from wideresnet.spec.recipes import overridden
from wideresnet.spec.record import RunFolder, read_json, remove_parts, write_json
from wideresnet.training.interrupt import Interrupted
from wideresnet.training.loop import Run
from wideresnet.training.preflight.plan import Plan, make_plan
from wideresnet.training.setup import Job, prepare


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    dataset: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every_s: float = 60.0,
    announce: Callable[[Job, Plan], None] | None = None,
    watch: Callable[[int, float, float], None] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Train a network and leave a record.

    Called in each of several processes that torchrun has started, they train one network together, see
    `training.distributed`.

    Args:
        recipe: everything that decides the result.
        out: the run folder; must not exist, unless `resume` or `overwrite`.
        dataset: the recipe's data, where it is loaded already.
        resume: go on from the newest checkpoint in `out`; on a CPU the weights come out bit-identical to those of a run
            that was never stopped.
        overwrite: replace a run that is in `out`.
        checkpoint_every_s: seconds of work that a kill may cost.
        announce: called with what is about to run, before the first step.
        watch: called about twice a second with the steps done, the epoch's loss so far and its training error so far,
            percent.
        world: the processes that train together, where they are together already.

    Returns:
        What `result.json` holds; `test_error_pct` is that of the last epoch.

    Raises:
        UsageError: recipe, data and folder do not fit each other, or data or batch do not fit into memory.
        WRNError: the loss is not finite, the disk is full, or another process has ended; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    check_checkpoint_every(checkpoint_every_s)
    folder = RunFolder(out)
    with join(world) as world:
        go_on = f"go on from the last checkpoint with: {folder.resume_command(world.size)}"
        try:
            return _fit(recipe, folder, dataset, resume, overwrite, checkpoint_every_s, announce, watch, world)
        except KeyboardInterrupt:  # a second Ctrl-C, or one outside the steps
            raise Interrupted(f"interrupted; {go_on}") from None
        except LostProcess as lost:
            raise LostProcess(f"{world.name_missing()}: the run has stopped; {go_on}") from lost


def _fit(
    recipe: Recipe,
    folder: RunFolder,
    dataset: Dataset | None,
    resume: bool,
    overwrite: bool,
    checkpoint_every_s: float,
    announce: Callable[[Job, Plan], None] | None,
    watch: Callable[[int, float, float], None] | None,
    world: World,
) -> dict[str, Any]:
    if resume:
        recipe = _recipe_to_resume(folder, recipe)
        if folder.result.is_file():
            console().print(f"{folder.path}: this run has finished; nothing to resume", markup=False)
            return folder.read_result()
        if _has_other_processes(folder, recipe, world.size):
            recipe = dataclasses.replace(recipe, threads=None)  # of a process, when there were more or fewer of them
    elif world.is_first:
        folder.check_free(overwrite=overwrite)
    if dataset is None:
        with world.first_alone():
            dataset = load_for(recipe)
    with console().status("trying a few steps: the fastest way, memory, time") if world.is_first else nullcontext():
        job = prepare(recipe, dataset, world)
        plan = make_plan(job, resumed=resume)
    if world.is_first:
        if announce:
            announce(job, plan)
        _open_folder(folder, job, plan, resume=resume, overwrite=overwrite)
    return Run(job, plan, folder, checkpoint_every_s, watch).train(resume)


def _open_folder(folder: RunFolder, job: Job, plan: Plan, *, resume: bool, overwrite: bool) -> None:
    """Write what is known before the first step."""
    if resume:
        for place in (folder.path, folder.checkpoint):
            remove_parts(place)
    else:
        folder.create(overwrite=overwrite)
        _check_space(folder, plan)
        write_json(folder.recipe, job.recipe.to_json())
    env = {**describe(job.device), "num_processes": job.world.size}
    if resume and folder.env.is_file():  # what it ends on, under the command that it began with
        env["command"] = read_json(folder.env).get("command", env["command"])
    write_json(folder.env, env)


def check_checkpoint_every(checkpoint_every_s: float) -> None:
    """Refuse a time that is none."""
    if not checkpoint_every_s >= 0:
        raise UsageError(f"checkpoint_every_s {checkpoint_every_s}: must be 0 or more seconds")


def _recipe_to_resume(folder: RunFolder, asked: Recipe) -> Recipe:
    if not folder.is_run():
        raise UsageError(f"--resume {folder.path}: no run there; leave out --resume to start one")
    return resumed_recipe(folder.path, folder.read_recipe(), asked)


def resumed_recipe(path: Path, stored: Recipe, asked: Recipe) -> Recipe:
    """The stored recipe, with the asked device.

    Raises:
        UsageError: anything else differs.
    """
    settled = dataclasses.replace(
        asked,
        **{name: getattr(stored, name) for name in SETTLED if getattr(asked, name) in ("auto", None)},
    )
    for name, (old, new) in overridden(settled, stored).items():
        if name == "network" and str(parse(old, stored.family)) == new:  # only spelt differently
            continue
        if name not in ELSEWHERE:
            raise UsageError(
                f"--resume {path}: that run has {name} {old}, asked for is {new}; leave the flag out, or start "
                "a new run with another --out"
            )
    return dataclasses.replace(stored, **{name: getattr(settled, name) for name in ELSEWHERE})


def _has_other_processes(folder: RunFolder, recipe: Recipe, now: int) -> bool:
    """Whether a run goes on with another number of processes; refuses to, unless that changes only the rounding.

    It does where batch and lr stay the same and normalisation does not depend on how a batch is split. Else what came
    out would be a run that no recipe and no number of processes describes.

    Raises:
        UsageError: the numbers would be those of another run.
    """
    before = read_json(folder.env).get("num_processes", 1) if folder.env.is_file() else now
    if now == before:
        return False
    if recipe.batch_rule == "linear":
        why = "under batch_rule linear its batch and lr would change"
    elif recipe.norm == "batch" and not recipe.sync_bn:
        why = "without sync_bn each process normalises by its own share of a batch, so it would be another run"
    else:
        masks = "; dropout draws other masks from here on" if recipe.dropout else ""
        console().print(f"the run had {before} and goes on with {now} processes: the same up to rounding{masks}")
        return True
    fix = f"with --processes {before}" if before > 1 else "without --processes"
    raise UsageError(f"--resume {folder.path}: the run has num_processes {before}, now {now}: {why}; go on {fix}")


def _check_space(folder: RunFolder, plan: Plan) -> None:
    """Refuse to start what cannot be saved: two checkpoints of weights, momentum, averages, and one being written."""
    needed, free = 3 * 3 * 4 * plan.params, shutil.disk_usage(folder.path).free
    if free < needed:
        raise WRNError(
            f"{folder.path}: no space left on the disk: checkpoints need {human_bytes(needed)}, free are "
            f"{human_bytes(free)}; make room or choose another --out"
        )
