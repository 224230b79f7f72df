"""The run folder: what a run leaves behind, and the only place that knows its file names."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wideresnet.config import Recipe
from wideresnet.errors import UsageError, WRNError


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

    def is_used(self) -> bool:
        """Whether anything is in the folder, other than what a kill left half written; a file in its place counts."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(not _is_part(path) for path in self.path.iterdir())

    def is_run(self) -> bool:
        """Whether the folder holds a run that has started."""
        return self.recipe.is_file()

    def check_free(self, *, overwrite: bool = False) -> None:
        """Refuse a folder that is used, unless it holds a run and `overwrite` is asked for.

        Raises:
            UsageError: the folder is used.
        """
        if not self.is_used():
            return
        if not self.is_run():
            raise UsageError(f"--out {self.path}: exists and is not a run folder; choose another --out")
        if not overwrite:
            raise UsageError(
                f"--out {self.path}: holds a run already; go on with it by --resume, replace it by --overwrite, "
                "or choose another --out"
            )

    def create(self, *, overwrite: bool = False) -> None:
        """Make the folder empty; a used one as `check_free` allows.

        Raises:
            UsageError: the folder is used.
        """
        self.check_free(overwrite=overwrite)
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def read_result(self) -> dict[str, Any]:
        """What a finished run came to."""
        return json.loads(self.result.read_text())

    def read_recipe(self) -> Recipe:
        """The recipe of the run in this folder."""
        return Recipe.from_file(self.recipe)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of finished epochs, in order; a last line cut off by a kill is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text().splitlines()
        records = []
        for number, line in enumerate(lines):
            try:
                records.append(json.loads(line))
            except ValueError:
                if number != len(lines) - 1:
                    raise WRNError(f"{self.metrics} line {number + 1}: not JSON; the file was damaged") from None
        return records

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        """Replace the records, e.g. by those up to the checkpoint that a run goes on from."""
        write_atomic(self.metrics, "".join(json.dumps(record) + "\n" for record in records).encode())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add the record of one epoch."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")


def remove_parts(folder: Path) -> None:
    """Remove what a kill left half written."""
    for path in folder.glob(".*.part"):
        if _is_part(path):
            path.unlink(missing_ok=True)


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document so that a reader sees the old one or the new one, never a part."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WRNError(
                f"{path}: no space left on the disk for {len(content):,} bytes; what was saved before is whole: free "
                "some space and go on with --resume"
            ) from None
        raise
