"""`fit`: from a recipe to a run folder, in eight stages: load, resolve, feed, network, autotune, plan, run, report."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.format import counted, human_seconds
from wideresnet.data import Dataset
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.load import load_for
from wideresnet.distributed.sync_norm import synchronize_norms
from wideresnet.distributed.world import World, join
from wideresnet.machine.device import algorithms_restored, make_deterministic, pick_device
from wideresnet.machine.threads import limit_threads
from wideresnet.networks.blocks import draw_depth_from
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import asked_of_machine
from wideresnet.spec.record import RunFolder
from wideresnet.training.classification import Run, Watch
from wideresnet.training.configure import configure, make_forward
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
from wideresnet.training.initial import load_initial, read_initial
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.preflight.autotune import autotune_together, check_mode
from wideresnet.training.preflight.plan import Plan, make_plan
from wideresnet.training.preflight.trial import StepShape
from wideresnet.training.resolve import check_processes, resolve_network, resumed_recipe
from wideresnet.training.schedules import make_schedule, shared_batch
from wideresnet.training.setup import Job, build_feed, build_network, check_smallest_part, notes_on
from wideresnet.training.track import Tracker, Tracking, check_tracker
from wideresnet.weights.hub import write_config

Announce = Callable[[Job, Plan], None]


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    dataset: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every_s: float = 60.0,
    autotune: str | None = None,
    announce: Announce | None = None,
    watch: Watch | None = None,
    world: World | None = None,
    command: str | None = None,
    asked: Sequence[str] | None = None,
    track: str | Tracker | None = None,
    began: float | None = None,
) -> dict[str, Any]:
    """Train a network and leave a record.

    If torchrun has started several processes and each of them calls this, they train one network together, see
    `distributed.world`.

    Args:
        recipe: everything that decides the result.
        out: the run folder; must not exist, unless `resume` or `overwrite`.
        dataset: the recipe's data, if it is loaded already.
        resume: continue from the newest checkpoint in `out`; on a CPU the weights are bit-identical to those of a run
            that was never stopped.
        overwrite: replace the run that is in `out`.
        checkpoint_every_s: seconds of work that a kill may cost.
        autotune: "cached": time the configurations that the recipe leaves open unless that was done before; "again":
            time them; "off": take the one that is usually fastest. None for the environment variable WRN_AUTOTUNE, else
            "cached".
        announce: called with what is about to run, before the first step.
        watch: called about twice a second with the steps done, the epoch's loss so far and its training error so far,
            percent.
        world: the processes that train together, if they have joined already.
        command: the command line, for the record.
        asked: for the record, the fields that the user asked for and the machine could have decided; None: those of
            `recipe`, unless it already holds decisions of the machine.
        track: "tensorboard", "trackio", "wandb" or a tracker, which is given every epoch and the result, see `track`; a
            run that is resumed keeps the one that it had.
        began: when the time of a budget (`time_s`) began, by `time.monotonic`; None: with this call.

    Returns:
        The content of `result.json`; `test_error_pct` is that of the last epoch.

    Raises:
        UsageError: recipe, data and folder do not fit each other, or data or batch do not fit into memory.
        Diverged: the loss is not finite; the last checkpoint is kept, as after all that follows.
        WRNError: the disk is full, or another process has ended.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.
    """
    check_checkpoint_every(checkpoint_every_s)
    autotune, began = check_mode(autotune), time.monotonic() if began is None else began
    if isinstance(track, str):
        check_tracker(track)
    limit_threads()
    folder = RunFolder(out)
    with algorithms_restored(), join(world) as world, failures_told(folder, world, resume=resume), ExitStack() as stack:
        with world.first_alone():
            if world.is_first:
                stack.enter_context(held(folder, resume=resume, overwrite=overwrite))
        recipe, notes = _resume(folder, recipe, world) if resume else (recipe, ())
        if resume and folder.result.is_file():
            result = folder.read_result()
            if world.is_first:
                complete(folder, functools.partial(_draw, folder, dataset))
            return result
        begun = folder if resume else None
        job, plan = prepare(recipe, dataset, world, begun=begun, autotune=autotune, notes=notes, began=began)
        if world.is_first and announce:
            announce(job, plan)
        with replaced_run_kept(folder) if world.is_first and not resume else nullcontext():
            if world.is_first:
                begin(
                    folder, {**job.recipe.to_json(), **job.execution.settled()},
                    device=job.execution.device, params=plan.params, num_processes=job.world.size,
                    resume=resume, overwrite=overwrite, command=command,
                    asked=asked_of_machine(job.recipe) if asked is None else asked,
                )  # fmt: skip
                write_config(folder.path, job.data.weights(job.network))
            with _tracked(track, folder, job) as tracking:
                result = Run(job, plan, folder, checkpoint_every_s, watch, tracking).train(resume)
                if tracking:
                    tracking.finish(result)
        if world.is_first:
            draw_page(folder, functools.partial(_draw, folder, dataset))
        return result


@contextmanager
def _tracked(track: str | Tracker | None, folder: RunFolder, job: Job) -> Iterator[Tracking | None]:
    """Yield the run's tracking, in the first process and if it has a tracker; end it if the run does not."""
    if not job.world.is_first or (track is None and not folder.track.is_file()):
        yield None
        return
    tracking = Tracking(track, folder, job.recipe)
    try:
        yield tracking
    except BaseException:
        tracking.finish()
        raise


def prepare(
    recipe: Recipe,
    dataset: Dataset | None = None,
    world: World | None = None,
    *,
    begun: RunFolder | None = None,
    autotune: str | None = None,
    notes: tuple[str, ...] = (),
    began: float | None = None,
) -> tuple[Job, Plan]:
    """Make a run ready: the stages before its first step. Nothing is written.

    Args:
        dataset: the recipe's data, if it is loaded already.
        world: the processes that train together; None: this one alone.
        begun: the run that is continued, whose batch cannot change anymore; None for a new one.
        autotune: as for `fit`.
        notes: told with those of the stages.
        began: as for `fit`.

    Raises:
        UsageError: recipe and data do not fit each other, or do not fit into memory.
    """
    world = world or World.single()
    device = pick_device(recipe.machine.device)
    world.use(device)
    if device == "cuda":
        make_deterministic(recipe.machine.deterministic)

    # load: the images in memory
    with world.first_alone():
        dataset = dataset or load_for(recipe)

    # resolve: the recipe is final
    recipe = resolve_network(recipe, dataset)
    recipe, initial = read_initial(recipe, dataset, begun)

    # feed: the training set on the device
    data = build_feed(recipe, dataset, device, world, initial.preprocessing if initial else None)
    if isinstance(data.feed, StreamFeed) and recipe.machine.feed != "stream":
        recipe = recipe.replace(feed="stream")  # a resumed run keeps it, whatever memory is left then

    # network: with its initial weights
    num_images, in_channels = data.feed.num_images, dataset.train.images.shape[3]
    network, network_notes = build_network(recipe, len(data.class_names), in_channels)
    if initial:
        load_initial(network, initial)
        network_notes = [*initial.notes, *network_notes]
    check_smallest_part(recipe, data, network, world.size)

    with progress.status("timing a few steps: fastest configuration, memory, time") as tell:
        # autotune: the machine decides what the recipe leaves open
        shape = StepShape.of(recipe, data.feed)
        execution, told = autotune_together(recipe, shape, network, device, num_images, world, mode=autotune, tell=tell)
        tell(f"timing {execution.describe()}: memory and time of a step")
        network = configure(network.to(device), execution)
        if world.size > 1:
            draw_depth_from(network, world.depth)
            if recipe.schedule.sync_bn:
                synchronize_norms(network, on_gpu=device == "cuda" and not execution.compile)
        _, lr = shared_batch(recipe.schedule, world.size)
        job = Job(
            recipe=recipe,
            execution=execution,
            data=data,
            network=network,
            forward=make_forward(network, execution),
            optimizer=make_optimizer(network, recipe.optimizer, recipe.schedule.lr, world),
            schedule=make_schedule(recipe, data.feed.num_batches, lr),
            notes=(*notes, *data.notes, *network_notes, *notes_on(recipe, network, data, execution, world), *told),
            world=world,
        )

        # plan: steps, time and memory; with a time budget, the number of epochs
        plan = make_plan(job, resumed=begun is not None, began=began)
        return _in_time(job, plan), plan


def _in_time(job: Job, plan: Plan) -> Job:
    """Return the run with the number of epochs that its time budget allows, and say so."""
    recipe, time_s = plan.recipe, plan.recipe.schedule.time_s
    if time_s is None or recipe == job.recipe:
        return job
    _, lr = shared_batch(recipe.schedule, job.world.size)
    schedule = make_schedule(recipe, job.data.feed.num_batches, lr)
    note = f"{counted(recipe.schedule.epochs, 'epoch')} fit into {human_seconds(time_s)}, by the measured speed"
    return replace(job, recipe=recipe, schedule=schedule, notes=(*job.notes, note))


def _resume(folder: RunFolder, asked: Recipe, world: World) -> tuple[Recipe, tuple[str, ...]]:
    """Return the stored recipe with what may change on resuming, and notes."""
    if not folder.is_run():
        raise nothing_to_resume(folder)
    stored = folder.read_recipe()
    if stored.machine.feed == "auto":
        stored = stored.replace(feed="resident")
    note = "" if folder.result.is_file() else check_processes(folder, stored, world.size)
    # threads are those of one process: with more or fewer processes the machine decides anew
    return resumed_recipe(folder.path, stored, asked, keep_threads=not note), (note,) if note else ()


def _draw(folder: RunFolder, dataset: Dataset | None) -> None:
    from wideresnet.training.page import write_page  # drawing libraries: not needed before this

    write_page(folder, dataset)
