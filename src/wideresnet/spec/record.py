"""The run folder: the files of a run, and the only place that knows their names."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.spec.recipe import Recipe

CONFIG, MODEL, MATRICES = "config.json", "model.safetensors", "preprocessing.safetensors"
"""The files of a weights folder, alone or within a run folder: the Hugging Face hub's names, and ZCA's matrices."""


class RunFolder:
    """`recipe.json`, `env.json`, `metrics.jsonl`, `result.json`, `checkpoint/`, `config.json`, `model.safetensors`,
    `test_predictions.safetensors`, `curves.png`, `predictions.png`, `report.html`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.env = self.path / "env.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoint = self.path / "checkpoint"
        self.predictions = self.path / "test_predictions.safetensors"
        self.report = self.path / "report.html"
        self.curves = self.path / "curves.png"
        self.pictures = self.path / "predictions.png"
        self.config = self.path / CONFIG
        self.weights = self.path / MODEL
        self.matrices = self.path / MATRICES

    @property
    def replaced(self) -> Path:
        """The hidden folder of a run that is being overwritten, until the new one has its first checkpoint."""
        return self.path / ".replaced"

    @property
    def own(self) -> tuple[Path, ...]:
        """All files of a run, `recipe.json` last: as long as it exists the folder is known as a run's."""
        files = [path for name, path in vars(self).items() if name not in ("path", "recipe")]
        return (*files, self.recipe)

    def is_used(self) -> bool:
        """Tell whether the folder holds anything but half-written files of a kill; a file in its place counts."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(not _is_part(path) and path != self.replaced for path in self.path.iterdir())

    def is_run(self) -> bool:
        """Tell whether the folder holds a run that has started."""
        return self.recipe.is_file()

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
        own = {path.name for path in (*self.own, self.replaced)}
        if strangers := [path.name for path in self.path.iterdir() if path.name not in own and not _is_part(path)]:
            raise UsageError(
                f"overwrite=True: {self.path} holds {sorted(strangers)[0]!r} too, which is not the run's; "
                "choose another out="
            )

    def create(self, *, overwrite: bool = False) -> None:
        """Make the folder. A run that it holds is set aside, if `check_free` allows.

        The old run stays in a hidden folder until `forget_replaced`, so that a new run that fails before its first
        checkpoint costs nothing: `restore_replaced` puts the old one back.

        Raises:
            UsageError: the folder is used.
        """
        self.check_free(overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        remove_parts(self.path)
        if self.replaced.is_dir():  # a kill came before the new run's first checkpoint: the old run is still there
            self._remove_own()
        else:
            for path in [path for path in self.own if path.exists()]:
                self.replaced.mkdir(exist_ok=True)
                path.rename(self.replaced / path.name)

    def forget_replaced(self) -> None:
        """Remove the run that was set aside, once the new one can be resumed."""
        if self.replaced.is_dir():
            shutil.rmtree(self.replaced, ignore_errors=True)

    def restore_replaced(self) -> None:
        """Put the run that was set aside back in its place, if there is one."""
        if not self.replaced.is_dir():
            return
        self._remove_own()
        order = {path.name: place for place, path in enumerate(self.own)}  # recipe.json last, which makes it a run
        for path in sorted(self.replaced.iterdir(), key=lambda path: order.get(path.name, -1)):
            path.rename(self.path / path.name)
        self.replaced.rmdir()

    def bytes_freed_by_overwriting(self) -> int:
        """Return the size of the run in this folder."""
        files = (file for path in self.own for file in ([path] if path.is_file() else path.rglob("*")))
        return sum(file.stat().st_size for file in files if file.is_file())

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
        """Return the result of a finished run.

        Raises:
            DataError: the file is damaged.
        """
        return read_json(self.result)

    def read_recipe(self) -> Recipe:
        """Read the recipe of the run in this folder."""
        return Recipe.from_file(self.recipe)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the records of finished epochs, in order; a last line cut off by a kill is left out.

        Raises:
            DataError: another line is not the record of an epoch.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(errors="replace").splitlines()
        records = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError:
                if number == len(lines) - 1:
                    break
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise DataError(f"{self.metrics} line {number + 1}: not the record of an epoch; the file was damaged")
            records.append(record)
        return records

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        """Replace the records, e.g. by those up to the checkpoint that a run continues from."""
        write_atomic(self.metrics, "".join(_line(record) for record in records).encode())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add the record of one epoch."""
        line = _line(record).encode()
        try:
            with self.metrics.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise _full_disk(error, self.metrics, len(line)) from None


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
        recipe = read_json(self.summary).get("recipe")
        if not isinstance(recipe, dict):
            raise DataError(f"{self.summary}: lacks the recipe; the file was damaged")
        return Recipe.from_json(recipe)

    def resume_command(self, num_seeds: int) -> str:
        """Return the command that continues the seeds."""
        return f"wrn train --resume --seeds {num_seeds} --out {shlex.quote(str(self.path))}"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def remove_parts(folder: Path) -> None:
    """Remove half-written files that a kill left behind."""
    for path in folder.glob(".*.part"):
        if _is_part(path):
            path.unlink(missing_ok=True)


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); the file was damaged") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: must be a JSON object, this is {type(values).__name__}")
    return values


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document so that a reader sees the old one or the new one, never a part."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a full disk leaves the old one whole.

    Raises:
        WRNError: no space is left; the old file is untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _full_disk(error, path, len(content)) from None


def _full_disk(error: OSError, path: Path, num_bytes: int) -> Exception:
    """Turn a full disk into a WRNError; return any other error as it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return WRNError(
        f"{path}: no space left on the disk for {num_bytes:,} bytes; what was saved before is whole: free some space "
        "and continue with resume=True"
    )
