"""`wrn predict`: classify image files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.commands.verbs import add_machine_flags, add_verb, show
from wideresnet.kernels.library import start_build

BAR_WIDTH = 10


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    predict = add_verb(verbs, "predict", run, "classify image files", "wrn predict runs/my-run cat.jpg photos/")
    predict.add_argument("weights", type=Path, help="run folder, weights folder or model.safetensors")
    predict.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    predict.add_argument("--top", type=int, default=5, metavar="N", help="classes to show (5)")
    predict.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    add_machine_flags(predict, precision=False)


def run(args: argparse.Namespace) -> None:
    """Predict."""
    start_build()
    from wideresnet.inference.predict import predict_files

    predictions = predict_files(
        args.weights, args.images, top=args.top, device=args.device, skip_unreadable=args.skip_unreadable
    )
    show(args, predictions, render)


def render(predictions: list[dict[str, Any]]) -> RenderableType:
    """Show file, class, probability with a bar, and the runners-up; notes below the file's name."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("file", overflow="fold", min_width=20)
    table.add_column("class", overflow="fold")
    table.add_column("probability", no_wrap=True)
    table.add_column("then", style="dim", overflow="fold")
    for prediction in predictions:
        name = Text(prediction["file"])
        if prediction["notes"]:
            name.append("\n" + ", ".join(prediction["notes"]), style="dim")
        if not prediction["predictions"]:
            table.add_row(name, Text("-"), Text("-"), Text(""))
            continue
        best, *others = prediction["predictions"]
        then = ", ".join(f"{o['class']} {100 * o['probability']:.1f} %" for o in others)
        table.add_row(name, Text(best["class"], style="bold"), _bar(best["probability"]), Text(then))
    return table


def _bar(share: float) -> Text:
    full = round(share * BAR_WIDTH)
    return Text.assemble(("━" * full, "cyan"), ("━" * (BAR_WIDTH - full), "dim"), f" {100 * share:5.1f} %")
