"""What `result.json` and `metrics.jsonl` hold: the fields with their types, and the record of each epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError
from wideresnet.spec.fields import short
from wideresnet.spec.files import parse_json

REQUIRED: dict[str, type] = {
    "dataset": str, "params": int, "epochs": int, "test_error_pct": float, "test_loss": float, "num_test_images": int,
    "seconds": float, "images_per_s": float, "peak_memory_mib": float, "device": str, "precision": str,
}  # fmt: skip
"""Fields of `result.json` and their types; a float may be written as a whole number. `test_loss` is the negative log
likelihood (NLL), the mean cross entropy with the plain labels, nats."""

OPTIONAL: dict[str, type] = {
    "network": str, "recipe": str, "test_ece_pct": float, "train_s": float, "predicted_memory_mib": float, "seed": int,
    "num_processes": int, "test_top5_error_pct": float, "data_wait_pct": float, "workers": int, "num_unreadable": int,
    "time_budget_s": float, "revised_epochs": list, "num_train_images": int,
}  # fmt: skip
"""Fields that older records may lack. `test_ece_pct` is the expected calibration error, percent, see `base.metrics`."""

MAX_NUMBER = 1e30
"""No run has a larger error, loss or learning rate, and no plot could show one. This package's choice."""


def check_result(
    result: dict[str, Any], path: Path, required: dict[str, type] = REQUIRED, optional: dict[str, type] = OPTIONAL
) -> None:
    """Check fields and types of a result.

    Args:
        result: what the file holds.
        path: the file, for messages.
        required, optional: name -> type of its fields.

    Raises:
        DataError: naming the field.
    """
    if "task" in result and "task" not in required:
        raise DataError(f"{path}: of a {short(result['task'])} run; use wrn detect")
    if missing := [name for name in required if name not in result]:
        raise DataError(f"{path}: lacks {', '.join(missing)}; the file was damaged")
    for name, kind in {**required, **optional}.items():
        if name in result and not has_type(result[name], kind):
            rule = {str: "text", int: "a whole number", list: "a list"}.get(kind, "a number")
            raise DataError(f"{path}: {name} must be {rule}, not {short(result[name])}; the file was damaged")


def metrics_line(record: dict[str, Any]) -> bytes:
    """Return the record of an epoch as `metrics.jsonl` holds it."""
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def parse_metrics(content: bytes, path: Path, *, is_finished: bool) -> list[dict[str, Any]]:
    """Parse the records of epochs 1, 2, 3, ...

    Args:
        content: what the file holds.
        path: the file, for messages.
        is_finished: whether the run has finished; if not, a last line without an end was cut off by a kill and is
            left out.

    Raises:
        DataError: a line is not the record of its epoch, because it was damaged or one before it is missing.
    """
    *lines, cut = content.split(b"\n")
    fix = "put a copy of it back" if is_finished else "continue the run, which restores it from its checkpoint"
    records: list[dict[str, Any]] = []
    for epoch, line in enumerate([*lines, cut] if cut and is_finished else lines, 1):
        problem = f"{path} line {epoch}: not the record of epoch {epoch}"
        try:
            record = parse_json(line, "")
        except DataError:
            record = {}
        if not (has_type(record.get("epoch"), int) and has_type(record.get("step"), int)) or record["epoch"] != epoch:
            raise DataError(f"{problem}; the file was damaged: {fix}")
        for name, value in record.items():
            if not has_type(value, float):
                raise DataError(f"{problem}: {name} is {short(value)}, not a number; the file was damaged: {fix}")
        if records and record["step"] != epoch * records[0]["step"]:
            raise DataError(f"{problem}: step {record['step']} is not its last; the file was damaged: {fix}")
        records.append(record)
    return records


def has_type(value: Any, kind: type) -> bool:
    """Tell whether a value of JSON has a type; a number must be finite and a float may be whole."""
    if kind not in (int, float):
        return isinstance(value, kind)
    is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return is_number and -MAX_NUMBER < value < MAX_NUMBER and math.isfinite(value)
