"""Several networks that answer together, by the mean of their probabilities: the content of `wrn eval --ensemble`."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.data import Dataset
from wideresnet.inference.evaluate import Subject, document, prepare
from wideresnet.spec.record import SeedsFolder
from wideresnet.weights.hub import read_weights
from wideresnet.weights.matching import data_of_run, load_matching, run_of

SCORES = ("error_pct", "loss", "ece_pct")


@dataclass(frozen=True)
class Ensemble(Subject):
    """Several networks on the same images; what it computes are logarithms of mean probabilities.

    Attributes:
        members: the networks, each with its own preprocessing.
    """

    members: list[Subject] = field(default_factory=list)

    @property
    def network_name(self) -> str:
        """How many networks of which kind."""
        counts = Counter(member.network_name for member in self.members)
        return f"ensemble of {' and '.join(f'{count} x {name}' for name, count in counts.items())}"

    def run(
        self, images: np.ndarray, part: slice = slice(None), advance: Callable[[int], object] | None = None
    ) -> Tensor:
        """Compute the logarithm of the mean probability of each class; see `Subject.run`."""
        *others, last = self.members
        found = [member.run(images, part) for member in others]
        return average([*found, last.run(images, part, advance)])


def average(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of several networks' probabilities, float32 (B, classes).

    Args:
        logits: of each network, float32 (B, classes).
    """
    every = torch.stack([each.double().log_softmax(1) for each in logits])
    return (every.logsumexp(0) - torch.tensor(len(every)).log()).float()


def prepare_ensemble(
    weights: Sequence[str | Path], data: str | Path | Dataset | None = None, *, image_column: str | None = None,
    label_column: str | None = None, skip_unreadable: bool = False, **how: Any,
) -> Ensemble:  # fmt: skip
    """Read several weights, and data with the classes of all of them.

    Args:
        weights: at least two, as for `evaluate_weights`; the folder of several seeds stands for its runs.
        data: as for `evaluate_weights`; None for the data of the first run.
        image_column, label_column, skip_unreadable, how: the other arguments of `evaluate_weights`.

    Raises:
        UsageError: there are fewer than two, or they do not know the same classes in the same order or take other
            images.
        DataError: weights or data cannot be read.
    """
    paths = [path for each in weights for path in _runs(each)]
    if len(paths) < 2:
        raise UsageError(f"ensemble=True: averages at least two networks, {len(paths)} is given; name more runs")
    read = [read_weights(path) for path in paths]
    for path, each in zip(paths[1:], read[1:], strict=True):
        _check_alike(paths[0], read[0].class_names, path, each.class_names)
        for name, first, other in (
            ("images of", read[0].input_size, each.input_size),
            ("channels:", read[0].network.in_channels, each.network.in_channels),
            ("images scaled to", read[0].resize, each.resize),
        ):
            if first != other:
                raise UsageError(
                    f"ensemble=True: {path} takes {name} {other}, {paths[0]} {first}; an ensemble sees the same images"
                )
    if not isinstance(data, Dataset):
        data, _ = load_matching(
            read[0], data_of_run(paths[0]) if data is None else data, run=run_of(paths[0]),
            skip_unreadable=skip_unreadable, image_column=image_column, label_column=label_column,
        )  # fmt: skip
    members = [prepare(path, data, **how) for path in paths]
    first = members[0]
    notes = list(dict.fromkeys(note for member in members for note in member.notes))
    values = {f.name: getattr(first, f.name) for f in dataclasses.fields(Subject)}
    where = ", ".join(member.where for member in members)
    return Ensemble(**{**values, "where": where, "notes": notes}, members=members)


def measure_ensemble(ensemble: Ensemble) -> dict[str, Any]:
    """Evaluate each network and all together.

    Returns:
        What `evaluate_weights` returns, of the ensemble; members (for each: weights, network, error_pct, loss,
        ece_pct) and mean (of these three over the members).
    """
    started, members, found = time.monotonic(), [], []
    with progress.task("evaluating", total=len(ensemble.images) * len(ensemble.members)) as task:
        for member in ensemble.members:
            logits = member.run(ensemble.images, advance=lambda num: task.update(advance=num))
            result = document(member, logits, 1.0)
            members.append({key: result[key] for key in ("weights", "network", *SCORES)})
            found.append(logits)
    together = document(ensemble, average(found), time.monotonic() - started)
    mean = {key: float(np.mean([member[key] for member in members])) for key in SCORES}
    return {**together, "members": members, "mean": mean}


def _runs(weights: str | Path) -> list[str | Path]:
    """Return the finished runs of a folder of several seeds, or what is given."""
    seeds = SeedsFolder(weights)
    return [run.path for run in seeds.runs() if run.result.is_file()] if seeds.is_begun() else [weights]


def _check_alike(first: str | Path, known: tuple[str, ...], path: str | Path, found: tuple[str, ...]) -> None:
    if found == known:
        return
    if len(found) != len(known):
        what = f"knows {len(found)} classes, {first} {len(known)}"
    else:
        place = next(place for place, pair in enumerate(zip(known, found, strict=True)) if pair[0] != pair[1])
        what = f"has {found[place]!r} as class {place}, {first} has {known[place]!r}"
    raise UsageError(
        f"ensemble=True: {path} {what}; average networks that were trained on the same classes in the same order"
    )
