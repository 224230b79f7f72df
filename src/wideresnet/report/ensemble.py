"""The page of an ensemble: its numbers beside those of each member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.report import html
from wideresnet.report.classes import classes_section
from wideresnet.report.text import arithmetic
from wideresnet.spec.files import write_atomic

HEADER = ("weights", "network", "test error, %", "NLL, nats", "ECE, %")


def ensemble_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a table: a row per member, their mean, and the ensemble."""

    def row(name: str, network: str, scores: dict[str, Any]) -> tuple[str, ...]:
        return name, network, f"{scores['error_pct']:.2f}", f"{scores['loss']:.4f}", f"{scores['ece_pct']:.2f}"

    members = [row(member["weights"], member["network"], member) for member in result["members"]]
    return [*members, row("mean of the members", "", result["mean"]), row("ensemble", "", result)]


def write_ensemble(path: Path, result: dict[str, Any]) -> None:
    """Write a page about an ensemble; an old one is replaced.

    Args:
        path: the page; its folder is made if necessary.
        result: what `inference.ensemble.measure_ensemble` returned.
    """
    name = f"{result['network']} on {result['dataset']}"
    gain = result["mean"]["error_pct"] - result["error_pct"]
    side = "below" if gain >= 0 else "above"
    body = [
        html.title(name, f"{result['num_images']:,} test images"),
        html.headline(
            f"{result['error_pct']:.2f} %", f"test error, {abs(gain):.2f} points {side} the mean of the members"
        ),
        html.facts(
            [
                ("NLL", f"{result['loss']:.4f} nats"),
                ("ECE", f"{result['ece_pct']:.2f} %"),
                ("arithmetic", arithmetic(result)),
            ]
        ),
        *(html.paragraph(note, "note") for note in result["notes"]),
        html.heading("Members and ensemble"),
        html.table("members and ensemble", HEADER, ensemble_rows(result), numbers=range(2, 5)),
        html.paragraph("The ensemble answers by the mean of its members' probabilities.", "muted"),
        *classes_section(np.array(result["confusion"]), result["class_names"]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, html.page(name, body))
