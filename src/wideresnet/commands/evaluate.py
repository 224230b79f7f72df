"""`wrn eval`: measure weights on a test set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.commands.verbs import WEIGHTS, add_machine_flags, add_verb, show, write_csv
from wideresnet.kernels.library import start_build

NUM_SHOWN = 10


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    evaluate = add_verb(verbs, "eval", run, "measure weights on a test set", "wrn eval runs/my-run --data cifar10")
    evaluate.add_argument("weights", type=Path, help=WEIGHTS)
    evaluate.add_argument("--data", help="as for wrn train (default: the data that the run was trained on)")
    evaluate.add_argument("--csv", type=Path, metavar="FILE", help="also write a row per class, for spreadsheets")
    evaluate.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    evaluate.add_argument(
        "--int8", action="store_true", help="run in 8 bits on a CPU, calibrated on training images: fast, not exact"
    )
    add_machine_flags(evaluate)


def run(args: argparse.Namespace) -> None:
    """Evaluate."""
    start_build()
    from wideresnet.inference.evaluate import evaluate_weights

    result = evaluate_weights(
        args.weights, args.data, device=args.device, precision=args.precision, skip_unreadable=args.skip_unreadable,
        int8=args.int8,
    )  # fmt: skip
    if args.csv:
        columns = ("class", "num_images", "num_errors", "error_pct")
        write_csv(args.csv, columns, ([row[name] for name in columns] for row in result["classes"]))
    show(args, result, render)


def render(result: dict[str, Any]) -> RenderableType:
    """The error, the worst classes and the most frequent mistakes."""
    counts = f"{result['num_errors']:,} of {result['num_images']:,} test images"
    summary = Text.assemble(
        (f"{result['error_pct']:.2f} % test error", "bold"), f"  {counts}\n",
        f"NLL {result['loss']:.4f} nats, expected calibration error {result['ece_pct']:.2f} %\n",
        f"{result['network']} on {result['dataset']}, {result['device']}, {result['precision']}, ",
        f"{result['images_per_s']:,.0f} images/s",
    )  # fmt: skip
    if result["top5_error_pct"] is not None:
        summary.append(f"\ntop-5 error {result['top5_error_pct']:.2f} %")
    parts: list[RenderableType] = [summary]
    if result["num_errors"]:
        parts += [Text(), _worst_classes(result), Text(), _frequent_mistakes(result)]
    if result["notes"]:
        parts += [Text(), *(Text(f"note: {note}") for note in result["notes"])]
    return Group(*parts)


def _worst_classes(result: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", overflow="fold")
    for heading in ("error", "wrong", "images"):
        table.add_column(heading, justify="right")
    worst = sorted(result["classes"], key=lambda row: -(row["error_pct"] or 0))
    for row in worst[:NUM_SHOWN]:
        error = "-" if row["error_pct"] is None else f"{row['error_pct']:.2f} %"
        table.add_row(Text(row["class"]), error, str(row["num_errors"]), str(row["num_images"]))
    if len(worst) > NUM_SHOWN:
        table.caption = f"the worst {NUM_SHOWN} of {len(worst)} classes"
    return table


def _frequent_mistakes(result: dict[str, Any]) -> Table:
    import numpy as np

    from wideresnet.base.metrics import most_confused

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("true", "taken for"):
        table.add_column(heading, overflow="fold")
    table.add_column("images", justify="right")
    names = result["class_names"]
    for true, predicted, count in most_confused(np.array(result["confusion"]), NUM_SHOWN):
        table.add_row(Text(names[true]), Text(names[predicted]), str(count))
    return table
