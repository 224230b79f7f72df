"""From a table or figure of the paper to the runs that reproduce it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.spec.exhibits import ERROR_FIELDS, EXHIBITS, exhibit, exhibit_name, rows
from wideresnet.spec.names import parse
from wideresnet.spec.published import Result
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import paper

NUMERICS = 1
"""Version of what training computes. It is raised when the golden curves or a default of the recipe change, and nothing
else invalidates runs."""

SVHN_DROPOUT = 0.4
"""Dropout on SVHN if a row has any. Source: paper, section 3."""

NOT_IN_KEY = (
    "data", "seed", "recipe", "init_from", "device", "kernels", "layout", "threads", "compile", "eval_every", "family",
    "feed", "workers",
)  # fmt: skip
"""Flat keys that do not decide a result: names (weights to start from have a digest beside their name), where it is
computed, how often it is looked at. The seed is apart."""


@dataclass(frozen=True)
class Cell:
    """A number of the paper and the recipe that reproduces it.

    Attributes:
        label: the row: the network, and what sets it apart from others.
        dataset: "cifar10", "cifar100" or "svhn".
        recipe: of seed 0.
        published_pct: test error, percent; None if the paper has none.
        published_runs: runs behind it; None if the paper does not say.
    """

    label: str
    dataset: str
    recipe: Recipe
    published_pct: float | None
    published_runs: int | None


@dataclass(frozen=True)
class Expansion:
    """An exhibit as runs.

    Attributes:
        name: of the exhibit.
        cells: its numbers.
        left_out: rows that are not run, and why, one line each.
        scale: share of the paper's epochs.
        width: the widening factor of all networks instead of the paper's; None for the paper's.
    """

    name: str
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]
    scale: float = 1.0
    width: float | None = None

    @property
    def file_name(self) -> str:
        """The exhibit's name, and what sets this expansion apart from the paper's: "table3-scale0.1-k1"."""
        scale = f"-scale{self.scale:g}" if self.scale < 1 else ""
        return self.name + scale + (f"-k{self.width:g}" if self.width is not None else "")

    @property
    def scaled_down(self) -> str:
        """How the runs differ from the paper's, so that their errors cannot be compared with it; "" if they do not."""
        texts = [f"{100 * self.scale:g} % of the paper's epochs"] if self.scale < 1 else []
        if self.width is not None:
            texts.append(f"widening factor {self.width:g} in all networks")
        return " and ".join(texts)


def expand(
    name: str,
    sources: Mapping[str, str],
    *,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    scale: float = 1.0,
    width: float | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Expansion:
    """Expand an exhibit to the runs of its cells.

    Args:
        name: "table2" to "table6", "table9", "figure2", "figure3".
        sources: data set -> what `load_dataset` reads it from, for those that are not downloaded by name.
        datasets: only these; None for all that the exhibit has. A figure's networks can be trained on any data set for
            which the paper has their errors.
        networks: only these, by names as in the exhibit; None for all.
        scale: share of the paper's epochs, above 0, at most 1. The drops of the learning rate move along.
        width: replace the widening factor of every network, for machines that are too slow for the paper's.
        changes: flat key -> value for every recipe, e.g. `precision`.

    Raises:
        UsageError: no such exhibit, data set or network in it, or the scale is out of range.
    """
    name = exhibit_name(name)
    if not 0 < scale <= 1:
        raise UsageError(f"scale={scale}: must be above 0 and at most 1, the share of the paper's epochs")
    each, found = exhibit(name), rows(name)
    if name == "figure4":
        raise UsageError("figure4: its numbers are times, which are measured and not trained")
    possible, own = offers(name)
    if not possible:
        raise UsageError(f"{name}: ImageNet's recipes are not part of this package yet")
    for data in datasets or ():
        if data not in possible:
            raise UsageError(f"dataset={data}: {name} has {', '.join(possible)}")
    wanted = [str(parse(network, "cifar")) for network in networks or own]
    for network in wanted:
        if network not in own:
            raise UsageError(f"{network}: not a network of {name}, which has {', '.join(own)}")
    cells, left_out = dict[tuple[str, str], Cell](), list[str]()
    for row in found:
        if row.family != "cifar":
            left_out.append(f"{row.network}: not a network of this package for small images")
            continue
        if row.network not in wanted:
            continue
        for data in datasets or [data for data in each.data if data in ERROR_FIELDS]:
            error = getattr(row, ERROR_FIELDS[data])
            if error is None:
                continue
            network = row.network if width is None else _widened(row.network, width)
            recipe = recipe_of(row, network, data, sources.get(data, data), scale)
            runs = each.num_runs if data != "svhn" else None
            cell = Cell(label_of(row, network), data, recipe.replace(**(changes or {})), error, runs)
            cells.setdefault((cell.label, cell.dataset), cell)  # with another width, several rows can be one network
    return Expansion(name, tuple(cells.values()), tuple(left_out), scale, width)


def offers(name: str) -> tuple[list[str], list[str]]:
    """Return the data sets and the networks of an exhibit that can be trained; no data set if none can.

    A figure shows curves, which any data set has on which the paper has trained the networks.
    """
    usable = [data for data in exhibit(name).data if data in ERROR_FIELDS]
    networks = dict.fromkeys(row.network for row in rows(name) if row.family == "cifar")
    return (list(ERROR_FIELDS) if usable and name.startswith("figure") else usable), list(networks)


def matching(datasets: Sequence[str] | None, networks: Sequence[str] | None) -> list[str]:
    """Return the exhibits that can be trained and have one of the data sets and one of the networks; None: any."""
    wanted = {str(parse(network, "cifar")) for network in networks or ()}
    found = []
    for each in EXHIBITS:
        data, own = offers(each.name)
        if (
            data
            and own
            and not (wanted and wanted.isdisjoint(own))
            and not (datasets and set(datasets).isdisjoint(data))
        ):
            found.append(each.name)
    return found


def _widened(network: str, width: float) -> str:
    """Return the name of a network with another widening factor; thin networks, which have none, stay as they are."""
    name = parse(network, "cifar")
    return str(parse(str(dataclasses.replace(name, width=width)), "cifar")) if name.kind == "wrn" else network


def recipe_of(row: Result, network: str, dataset: str, source: str, scale: float) -> Recipe:
    """Return the paper's recipe for a row of its tables on a data set, shortened to a share of its epochs."""
    recipe = paper(network, source, dataset)
    changes: dict[str, Any] = {"dropout": row.dropout, "stochastic_depth": row.stochastic_depth}
    if dataset == "svhn":
        changes["dropout"] = SVHN_DROPOUT if row.dropout else 0.0
    else:
        changes["preprocessing"] = row.preprocessing
    if scale < 1:
        schedule = recipe.schedule
        drops = sorted({max(1, round(epoch * scale)) for epoch in schedule.lr_drop_epochs})
        changes |= {"epochs": max(1, round(schedule.epochs * scale)), "lr_drop_epochs": tuple(drops)}
    return recipe.replace(**changes)


def label_of(row: Result, network: str) -> str:
    """Return the name of a row: the network that is trained, and what sets it apart from others."""
    extras = []
    if row.dropout:
        extras.append("dropout")
    if row.stochastic_depth is not None:
        extras.append("stochastic depth")
    return ", ".join([network, *extras])


def run_key(recipe: Recipe, data_digest: str) -> str:
    """Return what names a recipe's runs: 12 hexadecimal digits of everything that decides their result but the seed.

    Values that are a recipe's defaults are left out, so that a new field, whose default is what was done before, leaves
    the keys of older runs alone.
    """
    defaults = Recipe().values()
    values = {key: value for key, value in recipe.values().items() if key not in NOT_IN_KEY and value != defaults[key]}
    text = json.dumps([values, data_digest, NUMERICS], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
