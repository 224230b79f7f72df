"""What the runs of an exhibit have shown so far, as one document beside the paper's figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from wideresnet.experiments.plan import NOT_IN_KEY, Cell
from wideresnet.experiments.reproduce import Todo
from wideresnet.experiments.store import Store, Task
from wideresnet.experiments.verdict import Verdict, judge
from wideresnet.networks import create
from wideresnet.networks.cost import cost
from wideresnet.spec.exhibits import describe_exhibit, reproductions
from wideresnet.spec.fields import show_value
from wideresnet.spec.recipe import Recipe, overridden

_KEPT = ("test_error_pct", "test_loss", "test_ece_pct", "params", "seconds", "train_s", "images_per_s", "precision",
         "device", "epochs", "num_test_images")  # fmt: skip
"""Fields of a run's result that the document repeats."""

MIN_RANKED = 4
"""From this number of cells on, a rank correlation can be significant at all."""


def collect(store: Store, todo: Todo) -> dict[str, Any]:
    """Compare finished runs with the paper.

    Returns:
        Values for JSON. name: of the files that it goes into. exhibit: what `describe_exhibit` returns. scale: share of
        the paper's epochs. width: widening factor instead of the paper's, or None. scaled_down: how the runs differ
        from the paper's, "" if they do not. ranks: data set -> how the order of its cells agrees with the paper's, see
        `_ranks`. num_seeds: asked for. is_partial: whether runs are missing. left_out: rows that cannot be run, and
        why. other_settings: see `_other_settings`. cells, one per number of the paper: label, network, dataset,
        published_pct, published_runs, runs (name, which is its folder in the store, seed, state, and of finished ones
        those of `_KEPT`), n, num_failed, median_pct, mean_pct, std_pct, difference_pct, half_width_pct, detectable_pct
        (see `Verdict`), verdict, macs (of one image), others (what other code measured).
    """
    cells = []
    for cell, tasks in todo.tasks:
        runs = [_run(store, task) for task in tasks]
        errors = [run["test_error_pct"] for run in runs if run["state"] == "finished"]
        num_failed = sum(run["state"] == "failed" for run in runs)
        verdict = judge(errors, cell.published_pct, cell.published_runs, num_failed)
        if todo.expansion.scaled_down:
            verdict = _not_comparable(verdict)
        over = verdict.summary
        cells.append(
            {
                "label": cell.label,
                "network": cell.recipe.network,
                "dataset": cell.dataset,
                "published_pct": cell.published_pct,
                "published_runs": cell.published_runs,
                "runs": runs,
                "n": len(errors),
                "num_failed": num_failed,
                "median_pct": over.median if over else None,
                "mean_pct": over.mean if over else None,
                "std_pct": over.std if over else None,
                "difference_pct": verdict.difference_pct,
                "half_width_pct": verdict.half_width_pct,
                "detectable_pct": verdict.detectable_pct,
                "verdict": verdict.text,
                "macs": _macs(cell),
                "others": [
                    {"source": other.source, "error_pct": list(other.error_pct), "how": other.how}
                    for other in reproductions(cell.recipe.network, cell.dataset)
                ],
            }
        )
    return {
        "name": todo.expansion.file_name,
        "exhibit": describe_exhibit(todo.expansion.name),
        "scale": todo.expansion.scale,
        "width": todo.expansion.width,
        "scaled_down": todo.expansion.scaled_down,
        "ranks": {name: rank for name in dict.fromkeys(c["dataset"] for c in cells) if (rank := _ranks(cells, name))},
        "num_seeds": max((len(tasks) for _, tasks in todo.tasks), default=0),
        "is_partial": any(run["state"] in ("begun", "missing") for cell in cells for run in cell["runs"]),
        "cells": cells,
        "left_out": list(todo.expansion.left_out),
        "other_settings": _other_settings(store, todo),
    }


def _other_settings(store: Store, todo: Todo) -> dict[str, int]:
    """Count the store's finished runs of the exhibit's networks that differ in more than the seed: how -> number."""
    wanted = {(cell.recipe.network, cell.dataset): task for cell, tasks in todo.tasks for task in tasks[:1]}
    own, found = {task.name for task in todo.all()}, Counter[str]()
    for name in store.names():
        if name in own or store.state(name) != "finished":
            continue
        record = store.record(name)
        recipe = Recipe.from_json(record["recipe"])
        if (task := wanted.get((recipe.network, record["dataset"]))) is None:
            continue
        changes = overridden(recipe, task.recipe)
        texts = [f"{key} {show_value(new)}" for key, (_, new) in changes.items() if key not in NOT_IN_KEY]
        if record["data_digest"] != task.data_digest:
            texts.append("other images")
        if texts:
            found[", ".join(texts)] += 1
    return dict(found.most_common())


def _run(store: Store, task: Task) -> dict[str, Any]:
    state, folder = store.state(task.name), store.run(task.name)
    run = {"name": task.name, "seed": task.recipe.seed, "state": state}
    if state == "finished":
        result = folder.read_result()
        run |= {name: result[name] for name in _KEPT if name in result}
    elif state == "failed":
        run["failure"] = store.record(task.name)["failure"]
    return run


def _not_comparable(verdict: Verdict) -> Verdict:
    """A run that is scaled down neither reproduces the paper nor contradicts it."""
    known = verdict.text in ("not run", "failed", "not in the paper")
    text = verdict.text if known else "scaled down: not comparable with the paper"
    return replace(verdict, difference_pct=None, half_width_pct=None, detectable_pct=None, text=text)


def _ranks(cells: Sequence[dict[str, Any]], dataset: str) -> dict[str, Any] | None:
    """Compare the order of the cells of a data set with the paper's: Kendall's tau-b of the medians.

    Returns:
        tau, -1..1, p_value (two-sided), n cells; None for too few cells, or if all are equal.
    """
    pairs = [
        (cell["published_pct"], cell["median_pct"])
        for cell in cells
        if cell["dataset"] == dataset and cell["published_pct"] is not None and cell["median_pct"] is not None
    ]
    if len(pairs) < MIN_RANKED:
        return None
    from scipy.stats import kendalltau  # with scikit-learn

    published, measured = zip(*pairs, strict=True)
    over: Any = kendalltau(published, measured)
    found = {"tau": float(over.statistic), "p_value": float(over.pvalue), "n": len(pairs)}
    return None if math.isnan(found["tau"]) else found


def _macs(cell: Cell) -> int:
    """Return the multiply-accumulates of one image of 32x32 through the network of a cell."""
    with torch.device("meta"):
        network = create(cell.recipe.network, 10, family="cifar")
    return cost(network, 32).macs
