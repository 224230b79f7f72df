"""Trackers by choice: TensorBoard, Trackio, Weights & Biases, or one's own. None of them is a dependency.

A tracker is given what `metrics.jsonl` holds, epoch by epoch, and the result. It is a copy of the record, so it may
fail at any time without ending a run: a warning says so, and when the run is resumed the tracker gets what it missed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from wideresnet.base.errors import UsageError
from wideresnet.spec.files import read_json, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder

PROJECT = "wideresnet"
"""The project under which Trackio and Weights & Biases file all runs; their own environment variables change it."""

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""Name of a tracker -> the module that it needs, which pip calls the same."""

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What runs are reported to."""

    def log(self, values: Mapping[str, float], step: int) -> object:
        """Take numbers by name, of an epoch, counted from 1."""
        ...

    def finish(self) -> object:
        """Write what is left; nothing more comes."""
        ...


def check_tracker(name: str) -> None:
    """Refuse a tracker that there is none of, before a run starts.

    Raises:
        UsageError: it is not one of `TRACKERS`, or not installed.
    """
    if name not in TRACKERS:
        raise UsageError(f"track={name}: must be {', '.join(TRACKERS)}")
    try:
        importlib.import_module(TRACKERS[name])
    except ImportError:
        raise UsageError(f"track={name!r}: {name} is not installed; pip install {TRACKERS[name]}") from None


class Tracking:
    """A run's tracker, with the memory of what it has been given; it never fails.

    Args:
        tracker: a name, or a tracker; None continues with the one that the run had before, if it had one.
        folder: of the run.
        recipe: what a tracker shows as the run's configuration.
    """

    def __init__(self, tracker: str | Tracker | None, folder: RunFolder, recipe: Recipe) -> None:
        self._folder = folder
        before = read_json(folder.track) if folder.track.is_file() else {}
        if tracker is None and before.get("tracker") in TRACKERS:
            tracker = str(before["tracker"])
        name = tracker if isinstance(tracker, str) else type(tracker).__name__
        self._state = before if before.get("tracker") == name else {"tracker": name, "id": _new_id(), "epochs": 0}
        self._tracker: Tracker | None = None
        if isinstance(tracker, str):
            with self._may_fail("start"):
                self._tracker = OPEN[tracker](folder, recipe, self._state["id"])
        else:
            self._tracker = tracker
        if self._tracker is not None:
            self._save()

    def update(self) -> None:
        """Pass on the epochs of `metrics.jsonl` that the tracker has not been given yet."""
        if self._tracker is None:
            return
        with self._may_fail("take an epoch"):
            for record in self._folder.read_metrics():
                if record["epoch"] > self._state["epochs"]:
                    values = {key: value for key, value in record.items() if key != "epoch" and _is_number(value)}
                    self._tracker.log(values, step=record["epoch"])
                    self._state["epochs"] = record["epoch"]
            self._save()

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """End the tracker's run, with the numbers of `result.json` if it has finished."""
        if self._tracker is None:
            return
        if result:
            self.update()
        with self._may_fail("end"):
            if result and self._tracker is not None:
                values = {f"result/{key}": value for key, value in result.items() if _is_number(value)}
                self._tracker.log(values, step=int(result["epochs"]))
            if self._tracker is not None:
                self._tracker.finish()

    def _save(self) -> None:
        write_json(self._folder.track, self._state)

    @contextlib.contextmanager
    def _may_fail(self, what: str) -> Any:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a tracker prints is not the result
                yield
        except Exception as error:
            self._tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning(f"{self._state['tracker']} failed to {what} ({reason}); the run goes on without it")


class _TensorBoard:
    def __init__(self, folder: RunFolder, recipe: Recipe, _: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.tensorboard))
        self._writer.add_text("recipe", f"```\n{json.dumps(recipe.to_json(), indent=1)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


def _open_wandb(folder: RunFolder, recipe: Recipe, identity: str) -> Tracker:
    wandb: Any = importlib.import_module("wandb")
    own = {"id": identity, "dir": str(folder.path)}
    wandb.init(project=PROJECT, name=_title(folder), config=recipe.to_json(), resume="allow", **own)
    return wandb


def _open_trackio(folder: RunFolder, recipe: Recipe, identity: str) -> Tracker:
    trackio: Any = importlib.import_module("trackio")
    # it finds a run again by its name
    trackio.init(project=PROJECT, name=f"{_title(folder)}-{identity}", config=recipe.to_json(), resume="allow")
    return trackio


OPEN: dict[str, Callable[[RunFolder, Recipe, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _open_trackio,
    "wandb": _open_wandb,
}
"""Name of a tracker -> what starts or continues a run of it, given the run's folder, recipe and identity."""


def _title(folder: RunFolder) -> str:
    path = folder.path.absolute()
    return f"{path.parent.name}-{path.name}" if re.fullmatch(r"seed\d+", path.name) else path.name


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
