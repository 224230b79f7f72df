"""`wrn report`: draw the page of a run, or compare several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wideresnet.commands.verbs import add_verb, show
from wideresnet.spec.detection import is_detection
from wideresnet.spec.record import SeedsFolder


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    report = add_verb(verbs, "report", run, "draw the page of a run, or compare several",
                   "wrn report runs/my-run")  # fmt: skip
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="run folders; a folder of several seeds stands for all of its runs",
    )  # fmt: skip
    report.add_argument("--out", type=Path, help="file of a comparison (comparison.html)")


def run(args: argparse.Namespace) -> None:
    """Draw."""
    from wideresnet.report.pages import write_comparison, write_report
    from wideresnet.report.runs import runs_in

    if len(args.runs) == 1 and is_detection(args.runs[0]):
        from wideresnet.report.detection import write_detection_report

        show(args, {"page": str(write_detection_report(args.runs[0]))}, lambda document: document["page"])
        return
    runs = [run for path in args.runs for run in runs_in(path)]
    if len(runs) == 1 and args.out is None:
        page = write_report(runs[0]).page
    else:
        default = SeedsFolder(args.runs[0]).page if len(args.runs) == 1 else Path("comparison.html")
        page = write_comparison(runs, args.out or default)
    show(args, {"page": str(page)}, lambda document: document["page"])
