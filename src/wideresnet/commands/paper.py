"""`wrn paper`: what the paper reports, as data."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.commands.verbs import add_verb, show
from wideresnet.spec.exhibits import EXHIBITS, describe_exhibit, exhibit_name, runs_text

_COLUMNS = {
    "params": "parameters",
    "dropout": "dropout",
    "cifar10_pct": "CIFAR-10",
    "cifar100_pct": "CIFAR-100",
    "svhn_pct": "SVHN",
    "top1_pct": "top-1",
    "top5_pct": "top-5",
    "seconds_per_epoch": "s per epoch",
    "milliseconds_per_batch": "ms per batch of 16",
    "milliseconds_per_step": "ms per step of 32",
}
"""Field of a row -> heading. Errors are in percent."""


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    paper = add_verb(verbs, "paper", run, "show a table or figure of the paper, how it was made, what is odd about it",
                  "wrn paper table4")  # fmt: skip
    paper.add_argument(
        "exhibit", nargs="?", metavar="EXHIBIT", help="table2 to table9, figure2 to figure4 (all: a list)"
    )


def run(args: argparse.Namespace) -> None:
    """Show an exhibit, or list them."""
    if args.exhibit is None:
        show(args, [{"name": each.name, "title": each.title} for each in EXHIBITS], render_list)
        return
    show(args, describe_exhibit(exhibit_name(args.exhibit)), render)


def render_list(exhibits: list[dict[str, Any]]) -> str:
    """The exhibits, one line each."""
    return "\n".join(f"{each['name']:<8} {each['title']}" for each in exhibits)


def render(document: dict[str, Any]) -> RenderableType:
    """The rows, how they were made, what disagrees, what other code measured."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("network", no_wrap=True)
    shown = [field for field in _COLUMNS if any(field in row for row in document["rows"])]
    for field in shown:
        table.add_column(_COLUMNS[field], justify="right")
    for row in document["rows"]:
        table.add_row(row["network"], *(_cell(field, row.get(field)) for field in shown))
    parts: list[RenderableType] = [
        Text(f"{document['label']}: {document['title']}", style="bold"),
        Text(f"test error, %; {document['statistic']}, {runs_text(document['num_runs'])}", style="dim"),
        *([Text(document["note"], style="dim")] if document["note"] else []),
        Text(),
        table,
    ]
    for heading, texts in (
        ("Inconsistencies", document["inconsistencies"]),
        ("Other code", [_reproduction(each) for each in document["reproductions"]]),
        ("Notes on rows", [f"{row['network']}: {row['note']}" for row in document["rows"] if row.get("note")]),
        ("Protocol", [document["protocol"]["said"], f"The code: {document['protocol']['done'] or 'not public'}."]),
    ):
        if texts:
            parts += [Text(), Text(heading, style="bold"), *(Text(f"  {text}") for text in texts)]
    return Group(*parts)


def _cell(field: str, value: Any) -> str:
    if value is None:
        return "-"
    if field == "params":
        return str(value)
    return f"{value:.2f}" if field.endswith("_pct") else f"{value:g}"


def _reproduction(each: dict[str, Any]) -> str:
    low, high = each["error_pct"]
    error = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    return f"{each['network']} on {each['data']}: {error} % ({each['source']}; {each['how']})"
