"""`fit`: from a recipe to a run folder, new or gone on with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wideresnet.config import ELSEWHERE, Recipe
from wideresnet.data import Dataset
from wideresnet.errors import UsageError, WRNError
from wideresnet.names import parse
from wideresnet.progress import console
from wideresnet.recipes import overridden
from wideresnet.record import RunFolder, read_json, remove_parts, write_json
from wideresnet.text import human_bytes
from wideresnet.training.interrupt import Interrupted
from wideresnet.training.loop import Run
from wideresnet.training.machine import describe
from wideresnet.training.plan import Plan, make_plan
from wideresnet.training.prepare import Job, load_for, prepare


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    dataset: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every_s: float = 60.0,
    announce: Callable[[Job, Plan], None] | None = None,
) -> dict[str, Any]:
    """Train a network and leave a record.

    Args:
        recipe: everything that decides the result.
        out: the run folder; must not exist, unless `resume` or `overwrite`.
        dataset: the recipe's data, where it is loaded already.
        resume: go on from the newest checkpoint in `out`; on a CPU the weights come out bit-identical to those of a run
            that was never stopped.
        overwrite: replace a run that is in `out`.
        checkpoint_every_s: seconds of work that a kill may cost.
        announce: called with what is about to run, before the first step.

    Returns:
        What `result.json` holds; `test_error_pct` is that of the last epoch.

    Raises:
        UsageError: recipe, data and folder do not fit each other, or data or batch do not fit into memory.
        WRNError: the loss is not finite, or the disk is full; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    if not checkpoint_every_s >= 0:
        raise UsageError(f"checkpoint_every_s {checkpoint_every_s}: must be 0 or more seconds")
    folder = RunFolder(out)
    if resume:
        recipe = _recipe_to_resume(folder, recipe)
        for place in (folder.path, folder.checkpoint):
            remove_parts(place)
        if folder.result.is_file():
            console().print(f"{folder.path}: this run has finished; nothing to resume", markup=False)
            return folder.read_result()
    else:
        folder.check_free(overwrite=overwrite)
    job = prepare(recipe, dataset or load_for(recipe))
    plan = make_plan(job)
    if announce:
        announce(job, plan)
    if not resume:
        folder.create(overwrite=overwrite)
        _check_space(folder, plan)
        write_json(folder.recipe, job.recipe.to_json())
    env = describe(job.device)
    if resume and folder.env.is_file():  # what it ends on, under the command that it began with
        env["command"] = read_json(folder.env).get("command", env["command"])
    write_json(folder.env, env)
    try:
        return Run(job, plan, folder, checkpoint_every_s).train(resume)
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside the steps
        raise Interrupted(f"interrupted; go on from the last checkpoint with: {folder.resume_command()}") from None


def _recipe_to_resume(folder: RunFolder, asked: Recipe) -> Recipe:
    """The stored recipe, with the asked device; anything else that differs is an error."""
    if not folder.is_run():
        raise UsageError(f"--resume {folder.path}: no run there; leave out --resume to start one")
    stored = folder.read_recipe()
    settled = dataclasses.replace(
        asked,
        **{name: getattr(stored, name) for name in ("precision", "family") if getattr(asked, name) in ("auto", None)},
    )
    for name, (old, new) in overridden(settled, stored).items():
        if name == "network" and str(parse(old, stored.family)) == new:  # only spelt differently
            continue
        if name not in ELSEWHERE:
            raise UsageError(
                f"--resume {folder.path}: that run has {name} {old}, asked for is {new}; leave the flag out, or start "
                "a new run with another --out"
            )
    return dataclasses.replace(stored, **{name: getattr(asked, name) for name in ELSEWHERE})


def _check_space(folder: RunFolder, plan: Plan) -> None:
    """Refuse to start what cannot be saved: two checkpoints of weights, momentum, averages, and one being written."""
    needed, free = 3 * 3 * 4 * plan.params, shutil.disk_usage(folder.path).free
    if free < needed:
        raise WRNError(
            f"{folder.path}: no space left on the disk: checkpoints need {human_bytes(needed)}, free are "
            f"{human_bytes(free)}; make room or choose another --out"
        )
