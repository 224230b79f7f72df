"""The folder in which reproductions keep their runs, named by what decides their results."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError, UsageError
from wideresnet.experiments.lease import Lease
from wideresnet.experiments.plan import run_key
from wideresnet.spec.fields import short
from wideresnet.spec.files import read_json, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder

_INTENT: dict[str, Any] = {
    "recipe": dict, "dataset": str, "data_digest": str, "owner": dict, "started": str, "attempts": int,
    "failure": str | None,
}  # fmt: skip
"""The fields of an intent and their types."""

_NAME = re.compile(r"(?P<about>.+)-(?P<key>[0-9a-f]{12})-seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Task:
    """A run to be made.

    Attributes:
        name: network, data, key and seed; runs of equal names are the same run.
        recipe: with its seed.
        dataset: "cifar10", "cifar100" or "svhn".
        data_digest: of the images that it is trained and tested on, see `data.dataset.digest`.
    """

    name: str
    recipe: Recipe
    dataset: str
    data_digest: str

    @classmethod
    def of(cls, recipe: Recipe, dataset: str, data_digest: str, seed: int) -> Task:
        """Name the run of a recipe with a seed on a data set."""
        recipe = recipe.replace(seed=seed)
        about = re.sub(r"[^\w.-]+", "_", f"{recipe.network}-{dataset}")
        return cls(f"{about}-{run_key(recipe, data_digest)}-seed{seed}", recipe, dataset, data_digest)


class Store:
    """Runs by name, with what was intended and how it ended.

    Beside each run folder is `NAME.json`: the intent, written before the run starts, and its outcome. `NAME.lock` is
    the lease of the process that trains it.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.path / name)

    def log(self, name: str) -> Path:
        """Return the log of a run's process."""
        return self.path / f"{name}.log"

    def lease(self, name: str) -> Lease:
        """Return the lease of a run."""
        return Lease(self.path / f"{name}.lock")

    def intend(self, task: Task, owner: Mapping[str, Any]) -> None:
        """Record that a run is about to start, so that no run can be left out of a table unseen."""
        self.path.mkdir(parents=True, exist_ok=True)
        record = self.record(task.name)
        write_json(
            self._file(task.name),
            {
                "recipe": task.recipe.to_json(),
                "dataset": task.dataset,
                "data_digest": task.data_digest,
                "owner": dict(owner),
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "attempts": record.get("attempts", 0) + 1,
                "failure": None,
            },
        )

    def fail(self, name: str, reason: str) -> None:
        """Record that a run has ended without a result, for a reason that trying again would not change."""
        write_json(self._file(name), {**self.record(name), "failure": reason})

    def record(self, name: str) -> dict[str, Any]:
        """Return what was intended and how it ended; empty if the run was never started.

        Raises:
            DataError: the file is damaged.
        """
        path = self._file(name)
        if not path.is_file():
            return {}
        values = read_json(path)
        for key, kind in _INTENT.items():
            if not isinstance(values.get(key), kind):
                raise DataError(f"{path}: {key} is {short(values.get(key))}; the file was damaged, remove it")
        return values

    def state(self, name: str) -> str:
        """Return "finished", "failed", "begun" or "missing"."""
        if self.run(name).result.is_file():
            return "finished"
        if self.record(name).get("failure"):
            return "failed"
        return "begun" if self.run(name).is_run() else "missing"

    def digests(self, dataset: str) -> list[str]:
        """Return the digests of all images of a data set that runs here were trained on, the most frequent first."""
        records = (self.record(name) for name in self.names())
        found = Counter(record["data_digest"] for record in records if record["dataset"] == dataset)
        return [digest for digest, _ in found.most_common()]

    def names(self) -> list[str]:
        """Return the names of all runs that were intended."""
        return sorted(path.stem for path in self.path.glob("*.json") if _NAME.fullmatch(path.stem))

    def merge(self, other: Path) -> list[str]:
        """Copy finished and failed runs from the store of another machine.

        Returns:
            The names of the runs that were new here.

        Raises:
            UsageError: there is no store.
            DataError: a run is not what its name says.
        """
        theirs = Store(other)
        names = theirs.names()
        if not names:
            raise UsageError(f"merge={other}: holds no runs of wrn reproduce; give the folder that it wrote to")
        new = []
        for name in names:
            state = theirs.state(name)
            if state not in ("finished", "failed") or self.state(name) == "finished":
                continue
            theirs.check(name)
            self.path.mkdir(parents=True, exist_ok=True)
            if state == "finished":
                part = self.path / f".{name}.part"
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(theirs.run(name).path, part)
                shutil.rmtree(self.run(name).path, ignore_errors=True)
                part.rename(self.run(name).path)
            write_json(self._file(name), theirs.record(name))
            new.append(name)
        return new

    def check(self, name: str) -> None:
        """Refuse a run whose recipe does not have the key that its name says.

        Raises:
            DataError: the run is not what its name says.
        """
        match, record = _NAME.fullmatch(name), self.record(name)
        try:
            recipes = [Recipe.from_json(record["recipe"])]
            if self.run(name).result.is_file():
                recipes.append(self.run(name).read_recipe())
            is_own = match is not None and all(
                (run_key(recipe, record["data_digest"]), recipe.seed) == (match["key"], int(match["seed"]))
                for recipe in recipes
            )
        except (KeyError, ValueError):
            is_own = False
        if not is_own:
            raise DataError(f"{self._file(name)}: its recipe is not the one that its name stands for; remove the run")

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"
