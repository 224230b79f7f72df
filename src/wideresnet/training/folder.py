"""The life of a run's folder: held while it is written, begun, kept if a new run fails at once, completed, resumed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import human_bytes
from wideresnet.distributed.collectives import LostProcess
from wideresnet.distributed.world import World
from wideresnet.machine.description import describe
from wideresnet.report.text import shell_command
from wideresnet.spec.files import read_json, remove_parts, write_json
from wideresnet.spec.record import RunFolder
from wideresnet.training.interrupt import Interrupted
from wideresnet.weights.checkpoint import list_checkpoints

log = logging.getLogger(__name__)


def recipe_inode(folder: RunFolder) -> int | None:
    """Tell a run from the one that replaces it, and from none: a run that is put back has the file that it had."""
    return folder.recipe.stat().st_ino if folder.is_run() else None


@contextmanager
def failures_told(folder: RunFolder, world: World, *, resume: bool) -> Iterator[None]:
    """Say after Ctrl-C outside the steps, or the loss of a process, what is there and how the run continues."""
    before = recipe_inode(folder)
    try:
        yield
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside the steps
        if not resume and recipe_inode(folder) == before:
            raise Interrupted("interrupted before the first step; nothing was written") from None
        raise Interrupted("interrupted; continue from the last checkpoint with resume=True") from None
    except LostProcess as lost:
        raise LostProcess(
            f"{world.name_missing()}: the run has stopped; continue from the last checkpoint with resume=True"
        ) from lost


@contextmanager
def held(folder: RunFolder, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Keep other processes out of the folder, and check that it may be written."""
    if resume and folder.is_run() and folder.result.is_file():  # nothing is written to it but what a kill left undone
        yield
        return
    if not resume:
        folder.check_free(overwrite=overwrite)
    elif not folder.is_begun():
        raise nothing_to_resume(folder)
    with folder.held():
        folder.settle_replaced()
        if not resume:
            folder.check_free(overwrite=overwrite)  # it may have been taken a moment ago
        if not (resume and folder.result.is_file()):
            yield
            return
    yield


def complete(folder: RunFolder, draw: Callable[[], object]) -> None:
    """Do what a kill has kept a finished run from doing; a folder that cannot be written is as finished.

    Args:
        draw: draws the page.
    """
    if not folder.has_leftovers() and folder.report.is_file():
        return
    try:
        with folder.held():
            folder.remove_leftovers()
            if not folder.report.is_file():
                draw_page(folder, draw)
    except (OSError, WRNError) as error:
        log.warning(f"the run has finished; its folder could not be tidied up: {error}")


def draw_page(folder: RunFolder, draw: Callable[[], object]) -> None:
    """Draw the run's page. The result is on the disk already, so whatever fails here costs the page alone.

    With WRN_PAGE=off in the environment there is none: of thousands of short runs, nobody looks at each.

    Args:
        draw: does it; it imports drawing libraries, which are not needed before this.
    """
    if os.environ.get("WRN_PAGE") == "off":
        return
    try:
        draw()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning(
            f"the run has finished, but its page could not be drawn ({reason}); "
            f"draw it with: {shell_command(['wrn', 'report', str(folder.path)])}"
        )


def nothing_to_resume(folder: RunFolder) -> UsageError:
    return UsageError(f"resume=True: {folder.path} holds no run; leave out resume=True to start one")


def begin(
    folder: RunFolder,
    recipe: Mapping[str, Any],
    *,
    device: str,
    params: int,
    num_processes: int,
    resume: bool,
    overwrite: bool,
    command: str | None,
    asked: Sequence[str],
) -> None:
    """Write what is known before the first step: `env.json`, and of a new run `recipe.json`.

    Args:
        recipe: what `recipe.json` holds, with what the machine decided.
        params: of the network, whose checkpoints must have room.
        command: the command line, for the record.
        asked: the fields that the user asked for and the machine could have decided.

    Raises:
        WRNError: checkpoints do not fit on the disk.
    """
    env = {**describe(device, command), "num_processes": num_processes, "asked": []}
    if resume:
        for place in (folder.path, folder.checkpoint):
            remove_parts(place)
        if folder.env.is_file():  # the machine that it ends on; what was asked for as it began
            began = read_json(folder.env)
            env |= {"command": began.get("command", env["command"]), "asked": began.get("asked", [])}
        write_json(folder.env, env)
    else:
        _check_space(folder, params)
        folder.create(overwrite=overwrite)
        env["asked"] = list(asked)
        write_json(folder.env, env)  # before the recipe, with which the run begins: only now it is known what was asked
        write_json(folder.recipe, dict(recipe))


@contextmanager
def replaced_run_kept(folder: RunFolder) -> Iterator[None]:
    """If the new run fails before its first checkpoint, put the run that it overwrites back."""
    try:
        yield
    except BaseException:
        if not list_checkpoints(folder.checkpoint):
            folder.restore_replaced()
        raise


def check_checkpoint_every(checkpoint_every_s: float) -> None:
    """Refuse a time that is none."""
    if not checkpoint_every_s >= 0:
        raise UsageError(f"checkpoint_every_s={checkpoint_every_s}: must be 0 or more seconds")


def _check_space(folder: RunFolder, params: int) -> None:
    """Refuse to start what cannot be saved: two checkpoints of weights, momentum, averages, and one being written.

    A run that is overwritten frees its space, but only after the first checkpoint of the new one.
    """
    checkpoint = 3 * 4 * params
    place = next(path for path in (folder.path, *folder.path.absolute().parents) if path.exists())
    needed, free, freed = 3 * checkpoint, shutil.disk_usage(place).free, folder.bytes_freed_by_overwriting()
    if free < checkpoint or free + freed < needed:
        raise WRNError(
            f"{folder.path}: no space left on the disk: checkpoints need {human_bytes(needed)}, {human_bytes(free)} is "
            "free; make room or choose another out="
        )
