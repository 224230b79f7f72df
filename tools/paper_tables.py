"""The tables of docs/the-paper.md that count networks, next to the paper's figures and our short runs of its tables."""

from __future__ import annotations

import functools
import shlex
from typing import Any

import torch

from pages import ROOT, fenced, table
from wideresnet.base.format import human_count
from wideresnet.networks import Network, create
from wideresnet.networks.cost import Cost, cost
from wideresnet.spec import published
from wideresnet.spec.files import read_json
from wideresnet.spec.names import parse
from wideresnet.spec.recipes import resolve

SIDE_PX, NUM_TRAIN = 32, 50_000
"""CIFAR-10."""
GIB = 2**30

COMPARED = ("WRN-40-1", "WRN-40-2", "WRN-40-4", "WRN-16-4", "WRN-16-8", "WRN-28-10", "PreActResNet-164")
"""The networks whose parameters and operations are counted side by side."""

REPRODUCED = {2: "table2-scale0.05", 3: "table3-scale0.05"}
"""Tables of the paper -> our runs of them with a share of its epochs, in results/reproduce/."""


@functools.cache
def count(network: str) -> Cost:
    """Count the parameters and operations of a network for 10 classes at 32 x 32, from its shapes."""
    return cost(shape(network), SIDE_PX)


def shape(network: str) -> Network:
    """Build a network for 10 classes without weights."""
    with torch.device("meta"):
        return create(network)


def stages() -> str:
    """Write where the parameters and operations of WRN-28-10 are."""
    name = "WRN-28-10"
    groups = (f"{num} blocks" for num in parse(name).num_blocks)
    what = ("3x3 convolution", *groups, "normalization, ReLU, mean over the map", "linear")
    rows = [
        (
            stage.name,
            does,
            " x ".join(map(str, stage.shape)),
            f"{stage.params:,}",
            human_count(stage.macs),
        )
        for stage, does in zip(count(name).stages, what, strict=True)
    ]
    return table(("stage of WRN-28-10", "what", "output for one image", "parameters", "multiply-accumulates"), rows)


def types() -> str:
    """Write Table 2 with the counts of its networks."""
    rows = []
    for row in published.results(2):
        name = parse(row.network)
        rows.append(
            (
                f"B({','.join(map(str, name.kernels))})",
                f"`{row.network}`",
                3 * name.num_blocks[0],
                3 * name.num_blocks[0] * len(name.kernels),
                *_counts(row.network),
                f"{row.seconds_per_epoch:g}",
                f"{row.cifar10_pct:.2f}",
                _reproduced(2)[row.network],
            )
        )
    header = ("block", "network", "blocks", "convolutions in them", "parameters", "multiply-accumulates",
              "Table 2: s per epoch", "Table 2: error, %", "ours, short runs")  # fmt: skip
    commands = "wrn paper table2", f"wrn info {shlex.quote(published.results(2)[0].network)}", _reproduction(2)
    return f"{table(header, rows)}\n\n{_about(2)}\n\n{fenced(*commands)}"


def depths() -> str:
    """Write Table 3 with the counts of its networks."""
    rows = [
        (
            parse(row.network).convs_per_block,
            f"`{row.network}`",
            3 * parse(row.network).num_blocks[0],
            *_counts(row.network),
            f"{row.cifar10_pct:.2f}",
            _reproduced(3)[row.network],
        )
        for row in published.results(3)
    ]
    header = ("l", "network", "blocks", "parameters", "multiply-accumulates", "Table 3: error, %", "ours, short runs")
    return f"{table(header, rows)}\n\n{_about(3)}\n\n{fenced('wrn paper table3', _reproduction(3))}"


@functools.cache
def _document(number: int) -> dict[str, Any]:
    """Read what our runs of a table of the paper have shown."""
    return read_json(ROOT / "results" / "reproduce" / f"{REPRODUCED[number]}.json")


def _reproduced(number: int) -> dict[str, str]:
    """Return network -> the mean error of our runs."""
    return {
        cell["network"]: f"{cell['mean_pct']:.2f}" + (" (1 seed)" if cell["n"] == 1 else "")
        for cell in _document(number)["cells"]
    }


def _about(number: int) -> str:
    """Say what our runs of a table are, and how well their order agrees with the paper's."""
    document = _document(number)
    seeds = max(cell["n"] for cell in document["cells"])
    tau = document["ranks"]["cifar10"]["tau"]
    return (
        f"Ours: test error, %, after {100 * document['scale']:g} % of the paper's epochs, mean of {seeds} seeds. So "
        "short a run ends far above the paper's error. Kendall's tau of our order and the paper's is "
        f"{tau:.2f} (1: the same)."
    )


def _reproduction(number: int) -> str:
    return f"wrn reproduce table{number} --seeds 2 --scale {_document(number)['scale']:g} --precision bf16"


def _counts(network: str) -> tuple[str, str]:
    return human_count(count(network).params), human_count(count(network).macs)


def arithmetic() -> str:
    """Write what depth and width cost."""
    recipe = resolve("paper", "WRN-16-2", "cifar10")
    images = recipe.schedule.epochs * (NUM_TRAIN // recipe.schedule.batch_size) * recipe.schedule.batch_size
    rows = [
        (
            name,
            sum(parse(name).num_blocks),
            *_counts(name),
            f"{count(name).activation_bytes / GIB:.2f} GiB",
            f"{human_count(count(name).training_flops * images)}FLOP",
        )
        for name in COMPARED
    ]
    header = ("network", "blocks", "parameters", "multiply-accumulates", "kept for the backward pass, batch of 128",
              f"training, {recipe.schedule.epochs} epochs")  # fmt: skip
    return f"{table(header, rows)}\n\n{fenced(*(f'wrn info {name}' for name in ('WRN-28-10', 'PreActResNet-164')))}"
