"""The run folder: the files of a run, and the only place that knows their names."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError, UsageError
from wideresnet.spec import files
from wideresnet.spec.fields import short
from wideresnet.spec.files import (
    Digests,
    is_part,
    parse_json,
    read_file,
    read_json,
    remove_parts,
    seal,
    sync_folder,
    unseal,
    write_atomic,
    write_json,
)  # fmt: skip
from wideresnet.spec.lock import LOCK, locked
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.result import OPTIONAL, REQUIRED, check_result, parse_metrics

CONFIG, MODEL, MATRICES = "config.json", "model.safetensors", "preprocessing.safetensors"
"""The files of a weights folder, alone or within a run folder: the Hugging Face hub's names, and ZCA's matrices."""


class RunFolder:
    """`recipe.json`, `env.json`, `metrics.jsonl`, `result.json`, `checkpoint/`, `config.json`, `model.safetensors`,
    `test_predictions.safetensors`, `activation_maps.safetensors`, `curves.png`, `predictions.png`, `report.html`; of
    `wrn analyze`, `analysis.*`, `analysis-*.svg`; with a tracker, `track.json`, and `tensorboard/` or `wandb/`."""

    result_fields = (REQUIRED, OPTIONAL)  # of result.json

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.env = self.path / "env.json"
        self.metrics = self.path / "metrics.jsonl"
        self.track = self.path / "track.json"
        self.tensorboard = self.path / "tensorboard"
        self.wandb = self.path / "wandb"
        self.result = self.path / "result.json"
        self.checkpoint = self.path / "checkpoint"
        self.predictions = self.path / "test_predictions.safetensors"
        self.maps = self.path / "activation_maps.safetensors"
        self.report = self.path / "report.html"
        self.curves = self.path / "curves.png"
        self.pictures = self.path / "predictions.png"
        self.analysis = self.path / "analysis.json"
        self.analysis_page = self.path / "analysis.html"
        self.analysis_blocks = self.path / "analysis-blocks.svg"
        self.analysis_similarity = self.path / "analysis-similarity.svg"
        self.config = self.path / CONFIG
        self.weights = self.path / MODEL
        self.matrices = self.path / MATRICES

    @property
    def replaced(self) -> Path:
        """The hidden folder of a run that is being overwritten, until the new one has its first checkpoint."""
        return self.path / ".replaced"

    @property
    def _moving(self) -> Path:
        """`replaced` while the old run is being moved there: a kill in between must not leave half of it."""
        return self.path / ".replaced-moving"

    @property
    def own(self) -> tuple[Path, ...]:
        """All files of a run, `recipe.json` last: as long as it exists the folder is known as a run's."""
        others = (path for name, path in vars(self).items() if name not in ("path", "recipe"))
        return (*others, self.recipe)

    def is_used(self) -> bool:
        """Tell whether the folder holds anything but what a kill has left; a file in its place counts.

        `env.json` alone is from a run that was killed before it began.
        """
        if not self.path.is_dir():
            return self.path.exists()
        return any(not self._is_hidden(path) and path != self.env for path in self.path.iterdir())

    def is_run(self) -> bool:
        """Tell whether the folder holds a run that has started."""
        return self.recipe.is_file()

    def is_begun(self) -> bool:
        """Tell whether the folder holds a run, if only one that was being replaced when a kill came."""
        return self.is_run() or self.replaced.is_dir() or self._moving.is_dir()

    def _is_hidden(self, path: Path) -> bool:
        return is_part(path) or path.name == LOCK or path in (self.replaced, self._moving)

    def check_free(self, *, overwrite: bool = False) -> None:
        """Refuse a folder that is used, unless it holds a run and `overwrite` is asked for.

        Raises:
            UsageError: the folder is used.
        """
        if not self.is_used():
            return
        if not self.is_run():
            raise UsageError(f"out={self.path}: exists and is not a run folder; choose another out=")
        if not overwrite:
            raise UsageError(
                f"out={self.path}: holds a run already; continue it with resume=True, replace it with overwrite=True, "
                "or choose another out="
            )
        own = {path.name for path in self.own}
        strangers = [path.name for path in self.path.iterdir() if path.name not in own and not self._is_hidden(path)]
        if strangers:
            raise UsageError(
                f"overwrite=True: {self.path} holds {sorted(strangers)[0]!r} too, which is not the run's; "
                "choose another out="
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process while it is written, see `lock.locked`.

        If there is none it is made, and removed again if an error leaves it empty.

        Raises:
            UsageError: another process holds it.
        """
        made = self._make()
        try:
            with locked(self.path):
                yield
        except BaseException:
            files.remove_empty(made)
            raise

    def _make(self) -> list[Path]:
        try:
            return files.make_folders(self.path)
        except FileExistsError:
            raise UsageError(f"out={self.path}: another run has just begun here; choose another out=") from None

    def create(self, *, overwrite: bool = False) -> None:
        """Make the folder. A run that it holds is set aside, if `check_free` allows.

        The old run stays in a hidden folder until `forget_replaced`, so that a new run that fails before its first
        checkpoint costs nothing: `restore_replaced` puts the old one back.

        Raises:
            UsageError: the folder is used.
        """
        if self.path.is_dir():
            self.settle_replaced()
        self.check_free(overwrite=overwrite)
        self._make()
        remove_parts(self.path)
        if self.replaced.is_dir():  # a kill came before the new run's first checkpoint: the old run is still there
            self._remove_own()
        elif old := [path for path in self.own if path.exists()]:
            self._moving.mkdir()
            for path in old:
                path.rename(self._moving / path.name)
            sync_folder(self._moving)
            self._moving.rename(self.replaced)
        sync_folder(self.path)

    def forget_replaced(self) -> None:
        """Remove the run that was set aside, once the new one can be resumed."""
        if self.replaced.is_dir():
            shutil.rmtree(self.replaced, ignore_errors=True)

    def restore_replaced(self) -> None:
        """Put the run that was set aside back in its place, if there is one."""
        if self.replaced.is_dir():
            if self.is_run():  # else a kill came while the old run was put back, and what is here is part of it
                self._remove_own()
            self._move_back(self.replaced)

    def settle_replaced(self) -> None:
        """Bring a folder whose run was being replaced when a kill came into one of its two states.

        Either the old run is back in its place, or the new one is here and the old one is set aside or gone.
        """
        if self._moving.is_dir():
            self._move_back(self._moving)
        if self.replaced.is_dir() and not self.is_run():
            self.restore_replaced()
        if self.replaced.is_dir() and (self.result.is_file() or self._has_checkpoint()):
            self.forget_replaced()

    def _has_checkpoint(self) -> bool:
        return bool(list(self.checkpoint.glob("step-*")))

    def _move_back(self, place: Path) -> None:
        order = {path.name: place for place, path in enumerate(self.own)}  # recipe.json last, which makes it a run
        for path in sorted(place.iterdir(), key=lambda path: order.get(path.name, -1)):
            path.rename(self.path / path.name)
        sync_folder(self.path)
        place.rmdir()

    def bytes_freed_by_overwriting(self) -> int:
        """Return the size of the run in this folder."""
        every = (file for path in self.own for file in ([path] if path.is_file() else path.rglob("*")))
        return sum(file.stat().st_size for file in every if file.is_file())

    def has_leftovers(self) -> bool:
        """Tell whether a finished run has something that a kill kept it from removing."""
        places = (self.checkpoint, self.replaced, self._moving, self.path / LOCK)
        return any(place.exists() for place in places) or any(map(is_part, self.path.iterdir()))

    def remove_leftovers(self) -> None:
        """Remove what a finished run no longer needs."""
        remove_parts(self.path)
        self.settle_replaced()
        if self.checkpoint.is_dir():
            shutil.rmtree(self.checkpoint)

    def _remove_own(self) -> None:
        for path in self.own:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def resume_command(self, num_processes: int = 1) -> str:
        """Return the command that continues the run."""
        processes = f" --processes {num_processes}" if num_processes > 1 else ""
        return f"wrn train --resume --out {shlex.quote(str(self.path))}{processes}"

    def read_result(self) -> dict[str, Any]:
        """Return the result of a finished run, without its digests.

        Raises:
            DataError: the file is damaged.
        """
        return self._read_result()[0]

    def digests(self) -> Digests:
        """Return the digests of the files of a finished run; none of an unfinished one, or of an old record.

        Raises:
            DataError: `result.json` is damaged.
        """
        return self._read_result()[1] if self.result.is_file() else Digests(self.result, {})

    def _read_result(self) -> tuple[dict[str, Any], Digests]:
        result, digests = unseal(read_json(self.result), self.result)
        check_result(result, self.result, *self.result_fields)
        return result, digests

    def write_result(self, result: dict[str, Any], digests: dict[str, str]) -> None:
        """Write the result: from now on the run has finished, and its files must have these digests.

        Args:
            result: values for JSON.
            digests: name of each file of the run -> SHA-256.
        """
        write_json(self.result, seal(result, self.result.name, digests))

    def read(self, path: Path) -> bytes:
        """Read a file of the run; if the run has finished, the file must be the one that it wrote.

        Raises:
            DataError: the file cannot be read, or is another one.
        """
        content = read_file(path)
        self.digests().check(path, content)
        return content

    def read_recipe(self) -> Recipe:
        """Read the recipe of the run in this folder.

        Raises:
            DataError: the file is damaged.
        """
        values = parse_json(self.read(self.recipe), str(self.recipe))
        try:
            return Recipe.from_json(values)
        except UsageError as error:
            raise DataError(f"{self.recipe}: {error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the records of finished epochs, in order; a last line cut off by a kill is left out.

        Raises:
            DataError: another line is not the record of its epoch, or the records are not those that the run wrote.
        """
        if not self.metrics.is_file():
            return []
        content, is_finished = self.metrics.read_bytes(), self.result.is_file()
        records = parse_metrics(content, self.metrics, is_finished=is_finished)
        self.digests().check(self.metrics, content)
        return records

    def write_metrics(self, lines: bytes) -> None:
        """Replace the records, by those that a checkpoint holds."""
        write_atomic(self.metrics, lines)

    def append_metrics(self, line: bytes) -> None:
        """Add the record of one epoch, see `result.metrics_line`."""
        files.append(self.metrics, line)


class SeedsFolder:
    """The folder of several seeds: an ordinary run folder and a log for each, `seeds.json`, which summarizes them, and
    `comparison.html`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.summary = self.path / "seeds.json"
        self.page = self.path / "comparison.html"

    def run(self, seed: int) -> RunFolder:
        """Return the run of a seed."""
        return RunFolder(self.path / f"seed{seed}")

    def log(self, seed: int) -> Path:
        """Return the log of a seed's process."""
        return self.path / f"seed{seed}.log"

    def is_begun(self) -> bool:
        """Tell whether training of several seeds has started here."""
        return self.summary.is_file()

    def check_free(self) -> None:
        """Refuse a folder that is used.

        Raises:
            UsageError: the folder is used.
        """
        if self.is_begun():
            raise UsageError(
                f"out={self.path}: holds several seeds already; continue them with resume=True, or choose another out="
            )
        if RunFolder(self.path).is_used():
            raise UsageError(f"out={self.path}: exists and is not empty; choose another out= for several seeds")

    def held(self) -> AbstractContextManager[None]:
        """Hold the folder for this process while seeds are trained in it, see `RunFolder.held`."""
        return RunFolder(self.path).held()

    def runs(self) -> list[RunFolder]:
        """Return the runs that have begun, in the order of their seeds."""
        found = [RunFolder(path) for path in self.path.glob("seed*") if path.name[4:].isdecimal()]
        return sorted((run for run in found if run.is_run()), key=lambda run: int(run.path.name[4:]))

    def check_begun(self) -> None:
        """Refuse to continue if nothing has begun.

        Raises:
            UsageError: there are no seeds here.
        """
        if RunFolder(self.path).is_run():
            raise UsageError(f"resume=True: {self.path} holds a single run, not several; leave out seeds=")
        if not self.is_begun():
            raise UsageError(f"resume=True: {self.path} holds no seeds; leave out resume=True to start them")

    def read_recipe(self) -> Recipe:
        """Read the recipe of the first seed; the others differ from it in the seed alone.

        Raises:
            DataError: the file is damaged.
        """
        summary = self.read_summary()
        if "recipe" not in summary:
            raise DataError(f"{self.summary}: lacks the recipe; the file was damaged")
        return Recipe.from_json(summary["recipe"])

    def read_summary(self) -> dict[str, Any]:
        """Return what `seeds.json` holds, without its digest.

        Raises:
            DataError: the file is damaged.
        """
        summary, _ = unseal(read_json(self.summary), self.summary)
        for name, kind in {
            "recipe": dict,
            "seconds": float | int,
            "at_once": int,
            "images_per_s_at_once": dict,
        }.items():
            if name in summary and not isinstance(summary[name], kind):
                raise DataError(f"{self.summary}: {name} is {short(summary[name])}; the file was damaged")
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `seeds.json`."""
        write_json(self.summary, seal(summary, self.summary.name))

    def resume_command(self, num_seeds: int) -> str:
        """Return the command that continues the seeds."""
        return f"wrn train --resume --seeds {num_seeds} --out {shlex.quote(str(self.path))}"
