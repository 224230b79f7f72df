"""`fit_detection`: from a recipe to a run folder, in the stages of `training.fit`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.detection.metrics import pick_evaluator
from wideresnet.detection.plan import DetectionPlan, make_plan
from wideresnet.detection.run import DetectionRun
from wideresnet.detection.setup import DetectionJob, prepare
from wideresnet.detection.weights import write_detector
from wideresnet.distributed.world import World, join
from wideresnet.machine.device import algorithms_restored
from wideresnet.machine.threads import limit_threads
from wideresnet.spec.detection import FIELDS, MAY_CHANGE, DetectionFolder, DetectionRecipe
from wideresnet.spec.files import read_json
from wideresnet.training.folder import (
    begin,
    check_checkpoint_every,
    complete,
    draw_page,
    failures_told,
    held,
    nothing_to_resume,
    replaced_run_kept,
)
from wideresnet.weights.pretrained import weights_name

Announce = Callable[[DetectionJob, DetectionPlan], None]


def fit_detection(
    recipe: DetectionRecipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every_s: float = 60.0,
    announce: Announce | None = None,
    world: World | None = None,
    command: str | None = None,
    asked: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a detector and leave a record.

    Args:
        recipe: everything that decides the result.
        out: the run folder; must not exist, unless `resume` or `overwrite`.
        resume, overwrite, checkpoint_every_s, world, command, asked: as for `training.fit`.
        announce: called with what is about to run, before the first step.

    Returns:
        The content of `result.json`; `ap_pct` is COCO's mAP after the last epoch.

    Raises:
        UsageError, DataError, Diverged, WRNError, Interrupted: as for `training.fit`.
    """
    check_checkpoint_every(checkpoint_every_s)
    pick_evaluator()
    limit_threads()
    folder = DetectionFolder(out)
    with algorithms_restored(), join(world) as world, failures_told(folder, world, resume=resume), ExitStack() as stack:
        with world.first_alone():
            if world.is_first:
                stack.enter_context(held(folder, resume=resume, overwrite=overwrite))
        if resume:
            recipe = _resumed(folder, recipe, world.size)
        draw = functools.partial(_draw, folder)
        if resume and folder.result.is_file():
            result = folder.read_result()
            if world.is_first:
                complete(folder, draw)
            return result
        job = prepare(recipe, world, begun=folder if resume else None)
        with progress.status("timing a few steps: memory, time"):
            plan = make_plan(job, resumed=resume)
        if world.is_first and announce:
            announce(job, plan)
        with replaced_run_kept(folder) if world.is_first and not resume else nullcontext():
            if world.is_first:
                begin(
                    folder, job.recipe.to_json(), device=job.execution.device, params=plan.params,
                    num_processes=world.size, resume=resume, overwrite=overwrite, command=command, asked=asked,
                )  # fmt: skip
                write_detector(folder.path, job.detector(job.network), values=False)
            result = DetectionRun(job, plan, folder, checkpoint_every_s).train(resume)
        if world.is_first:
            draw_page(folder, draw)
        return result


def _resumed(folder: DetectionFolder, asked: DetectionRecipe, processes: int) -> DetectionRecipe:
    """Return the stored recipe with what may change on resuming.

    Raises:
        UsageError: there is no run, or anything else differs, the number of processes included.
    """
    if not folder.is_run():
        raise nothing_to_resume(folder)
    stored = folder.read_detection_recipe()
    for key in FIELDS:
        old, new = getattr(stored, key), getattr(asked, key)
        if key == "init_from" and new is not None:
            new = weights_name(new)
        if key not in (*MAY_CHANGE, "init_sha256") and new != old:
            raise UsageError(
                f"resume=True: {folder.path} has {key} {old}, asked for is {new}; leave out {key}=, or start a new run "
                "in another folder"
            )
    before = read_json(folder.env).get("num_processes", 1) if folder.env.is_file() else processes
    if before != processes and not folder.result.is_file():
        raise UsageError(
            f"resume=True: {folder.path} was trained by processes={before}, now {processes}: each process samples "
            "regions of its own share of a batch, so it would be another run"
        )
    return stored.replace(**{key: getattr(asked, key) for key in MAY_CHANGE})


def _draw(folder: DetectionFolder) -> None:
    from wideresnet.report.detection import write_detection_report  # drawing libraries: not needed before this

    write_detection_report(folder.path)
