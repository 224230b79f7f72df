"""`wrn report`: draw the page of a run, or compare several."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from wideresnet.commands.verbs import add_verb
from wideresnet.spec.record import SeedsFolder


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    report = add_verb(verbs, "report", run, "draw the page of a run, or compare several",
                   "wrn report runs/my-run")  # fmt: skip
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument("--out", type=Path, help="file of a comparison (comparison.html)")


def run(args: argparse.Namespace) -> None:
    """Draw."""
    from wideresnet.report.pages import write_comparison, write_report
    from wideresnet.report.seeds import write_seeds_report

    if len(args.runs) == 1 and args.out is None and SeedsFolder(args.runs[0]).is_begun():
        page = write_seeds_report(args.runs[0])
    elif len(args.runs) == 1 and args.out is None:
        page = write_report(args.runs[0]).page
    else:
        page = write_comparison(args.runs, args.out or Path("comparison.html"))
    print(json.dumps({"page": str(page)}) if args.json else page)
