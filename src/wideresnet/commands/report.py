"""`wrn report`: draw the page of a run, or compare several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wideresnet.commands.verbs import add_verb, show
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
    from wideresnet.report.seeds import write_seeds_report

    if len(args.runs) > 1 or args.out is not None:
        runs = [run for path in args.runs for run in _runs_in(path)]
        page = write_comparison(runs, args.out or Path("comparison.html"))
    elif SeedsFolder(args.runs[0]).is_begun():
        page = write_seeds_report(args.runs[0])
    else:
        page = write_report(args.runs[0]).page
    show(args, {"page": str(page)}, lambda document: document["page"])


def _runs_in(path: Path) -> list[Path]:
    """The runs of a folder of seeds that have begun; any other folder itself."""
    folder = SeedsFolder(path)
    return [run.path for run in folder.runs() if run.metrics.is_file()] if folder.is_begun() else [path]
