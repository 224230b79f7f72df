"""Run folders as a report needs them: records as curves, stored predictions and their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.base.metrics import expected_calibration_error, top_k_error, top_probability
from wideresnet.data import Dataset
from wideresnet.data.load import load_for
from wideresnet.report.figures import Curve
from wideresnet.spec.fields import short
from wideresnet.spec.files import parse_json, read_json
from wideresnet.spec.options import ScheduleOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder, SeedsFolder


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: where the files are.
        recipe: what `recipe.json` holds.
        env: what `env.json` holds; empty if there is none.
        curve: what `metrics.jsonl` holds.
        result: what `result.json` holds; None while the run has not finished.
        notes: what the reader of the page should know, one line each.
    """

    folder: RunFolder
    recipe: Recipe
    env: dict[str, Any]
    curve: Curve
    result: dict[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def data_name(self) -> str:
        """The name of the data set; of an unfinished run, what was asked for."""
        return self.result["dataset"] if self.result else self.recipe.data

    @property
    def processor(self) -> str:
        """The GPU or CPU that it ran on."""
        return str(self.env.get("gpu") or self.env.get("cpu") or "-")

    @property
    def progress(self) -> str:
        """Finished epochs of all: "3 of 200"."""
        return f"{self.curve.epochs[-1]} of {self.recipe.schedule.epochs}"


@dataclass(frozen=True)
class Predictions:
    """The network's predictions on the test set, in the order of the set.

    Attributes:
        labels: int64 (N,), true classes.
        predicted: int64 (N,), predicted classes.
        probability: float64 (N,), of the predicted class, 0..1.
        top5_error_pct: how often the true class is not among the five most probable ones, percent.
        class_names: in the order of the labels.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    top5_error_pct: float
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Predictions:
        """Make them of logits, float64 (N, classes), and labels, int64 (N,)."""
        top5 = top_k_error(logits, labels, 5)
        return cls(labels, logits.argmax(axis=1), top_probability(logits), top5, tuple(class_names))

    @property
    def is_wrong(self) -> np.ndarray:
        """bool (N,)."""
        return self.predicted != self.labels


def runs_in(path: Path) -> list[Path]:
    """Return the runs that a folder stands for: itself, or of several seeds those that have a finished epoch.

    Raises:
        UsageError: it is a folder of several seeds, of which none has finished an epoch.
        DataError: a file of a run is damaged.
    """
    folder = SeedsFolder(path)
    if not folder.is_begun():
        return [path]
    runs = [run.path for run in folder.runs() if run.read_metrics()]
    if not runs:
        raise UsageError(f"{path}: no seed has finished an epoch, so there is nothing to report yet; try again later")
    return runs


def read_run(path: Path, label: str = "") -> Run:
    """Read a run folder.

    Args:
        path: the folder.
        label: the run's name in a legend.

    Raises:
        UsageError: the folder holds no run, or a run without a finished epoch.
        DataError: a file of the run is damaged.
    """
    folder = RunFolder(path)
    if not folder.is_run():
        if SeedsFolder(path).is_begun():
            raise UsageError(f"{path}: holds several seeds; name the folder of one, such as {path / 'seed0'}")
        found = f"has no {folder.recipe.name}" if path.exists() else "no such folder"
        raise UsageError(f"{path}: not a run folder ({found}); name the folder of a wrn train")
    result = folder.read_result() if folder.result.is_file() else None  # first: it knows what the others must hold
    recipe, records = folder.read_recipe(), folder.read_metrics()
    if not records:
        raise UsageError(f"{path}: no epoch has finished, so there is nothing to report yet; try again later")
    notes = ()
    if result and not folder.digests().values:
        notes = (f"{folder.result.name} holds no SHA-256 of the run's files, so damage to them would not be noticed.",)
    return Run(
        folder=folder,
        recipe=recipe,
        env=_read_env(folder.env) if folder.env.is_file() else {},
        curve=_curve(label, recipe, records, folder.metrics),
        result=result,
        notes=notes,
    )


def _read_env(path: Path) -> dict[str, Any]:
    env = read_json(path)
    for name in ("cpu", "gpu", "device"):
        if not isinstance(env.get(name), str | None):
            raise DataError(f"{path}: {name} must be text, not {short(env[name])}; the file was damaged")
    return env


def _curve(label: str, recipe: Recipe, records: list[dict[str, Any]], path: Path) -> Curve:
    split = "val" if recipe.feed.holdout else "test"
    try:
        train = {
            name: [float(record[name]) for record in records]
            for name in ("epoch", "train_error_pct", "train_loss", "lr")
        }
        evaluated = {
            name: [float(record[name]) for record in records if f"{split}_error_pct" in record]
            for name in ("epoch", f"{split}_error_pct", f"{split}_loss")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a record lacks a number ({error}); the file was damaged") from None
    lr_epochs, lr = _lr_points(recipe.schedule, train["epoch"], train["lr"])
    return Curve(
        label=label,
        split=split,
        epochs=[int(epoch) for epoch in train["epoch"]],
        train_error_pct=train["train_error_pct"],
        train_loss=train["train_loss"],
        lr_epochs=lr_epochs,
        lr=lr,
        evaluated_epochs=[int(epoch) for epoch in evaluated["epoch"]],
        error_pct=evaluated[f"{split}_error_pct"],
        loss=evaluated[f"{split}_loss"],
        lr_is_stepped=recipe.schedule.kind == "steps",
    )


def _lr_points(schedule: ScheduleOptions, epochs: list[float], lr: list[float]) -> tuple[list[float], list[float]]:
    """The recorded learning rates, which are those at the ends of epochs, with the schedule's corners between them."""
    points = {0.0: lr[0], **dict(zip(epochs, lr, strict=True))}
    if schedule.kind != "steps":  # linear from 0 to the peak, then down to 0
        peak, warm = max(schedule.lr, *lr), schedule.warmup_fraction * schedule.epochs
        points[0.0] = 0.0 if warm else peak
        if warm < epochs[-1]:
            points[warm] = peak
    return sorted(points), [points[epoch] for epoch in sorted(points)]


def read_predictions(run: Run, dataset: Dataset | None = None) -> tuple[Predictions | None, Dataset | None, str]:
    """Read the stored predictions of a run, and load their data.

    Args:
        run: the run.
        dataset: its data, if it is loaded already.

    Returns:
        The predictions and the data, each None if it is not available; and why, "" if both are.

    Raises:
        DataError: a file of the run is damaged.
    """
    if run.result is None:
        return None, None, f"Not finished: {run.progress} epochs. The result will be the error after the last one."
    if not run.folder.predictions.is_file():
        return None, None, f"No predictions and no pictures: {run.folder.predictions.name} is not in the run folder."
    logits, labels = _read_logits(run.folder)
    problem = ""
    try:
        # SVHN's extra images are for training only, and are 1.3 GB
        dataset = dataset or load_for(run.recipe.replace(extra_data=False))
    except WRNError as error:
        problem = f"No pictures, because the data could not be loaded again: {error}"
    if dataset is not None and not np.array_equal(dataset.test.labels, labels):
        dataset, problem = None, f"No pictures, because {run.recipe.data} now holds other test images."
    names = _class_names(run, dataset, logits.shape[1])
    return Predictions.of(logits, labels, names), dataset, problem


def read_ece(run: Run) -> float | None:
    """Return the expected calibration error of a finished run, percent.

    An older record lacks it; then it is computed from the stored predictions, and None without them.

    Raises:
        DataError: the predictions are damaged.
    """
    if run.result is None or "test_ece_pct" in run.result or not run.folder.predictions.is_file():
        return (run.result or {}).get("test_ece_pct")
    return expected_calibration_error(*_read_logits(run.folder))


def _read_logits(folder: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    """Read stored predictions: logits, float64 (N, classes), and labels, int64 (N,)."""
    path = folder.predictions
    try:
        stored = load(folder.read(path))
        logits, labels = stored["logits"].astype(np.float64), stored["labels"].astype(np.int64)
    except DataError:
        raise
    except (KeyError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: not a run's predictions ({' '.join(str(error).split())})") from None
    num_classes = logits.shape[-1]
    if logits.shape != (len(labels), num_classes) or not np.isin(labels, np.arange(num_classes)).all():
        raise DataError(f"{path}: logits {logits.shape} and labels {labels.shape} do not fit each other")
    return logits, labels


def _class_names(run: Run, dataset: Dataset | None, num_classes: int) -> tuple[str, ...]:
    """The names stored with the weights, else those of the data, else numbers."""
    config = run.folder.config
    names = parse_json(run.folder.read(config), str(config)).get("class_names") if config.is_file() else None
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        names = dataset.class_names if dataset else range(num_classes)
    return tuple(map(str, names))
