"""`wrn analyze`: what each residual block of trained networks contributes."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.commands.verbs import WEIGHTS, add_machine_flags, add_verb, new_run_folder, show
from wideresnet.spec.record import RunFolder
from wideresnet.weights.pretrained import find_weights

HEADING_WIDTH = 13
"""Characters to a line of a heading, so that a row fits in 80 columns."""


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    analyze = add_verb(verbs, "analyze", run, "measure what each residual block contributes, by removing it",
                       "wrn analyze runs/thin runs/wide --data cifar10")  # fmt: skip
    analyze.add_argument(
        "weights", nargs="+", type=Path, metavar="WEIGHTS",
        help=f"{WEIGHTS}; several are laid side by side",
    )  # fmt: skip
    analyze.add_argument("--data", help="as for wrn train (default: the data that each run was trained on)")
    analyze.add_argument(
        "--limit", type=int, default=1000, metavar="N",
        help="test images, spread evenly over the set (1000, which take WRN-40-2 about 80 s of CPU time)",
    )  # fmt: skip
    analyze.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    analyze.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="for analysis.json, analysis.html and pictures (default: each finished run's own folder, and for several "
        "or for weights without a run a new one)",
    )  # fmt: skip
    add_machine_flags(analyze, precision=False)


def run(args: argparse.Namespace) -> None:
    """Analyze."""
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"out={args.out}: is a file; name a folder")
    for place, path in enumerate(args.weights):
        if any(find_weights(path).resolve() == find_weights(other).resolve() for other in args.weights[:place]):
            raise UsageError(f"{path}: given twice; name different weights")
    from wideresnet.analysis import analyze
    from wideresnet.report.blocks import write_analysis
    from wideresnet.report.pages import write_report
    from wideresnet.weights.hub import read_weights

    for path in args.weights:
        read_weights(path)  # all of them, before minutes are spent on the first
    analyses, files, reports = [], list[Path](), list[Path]()
    for path in args.weights:
        analysis = analyze(path, args.data, limit=args.limit, device=args.device, skip_unreadable=args.skip_unreadable)
        analyses.append(analysis)
        folder = None if args.out else _finished_run(path)
        if folder:  # at once: if the next weights fail, these have their page
            files += write_analysis([analysis], folder.path)
            reports.append(write_report(folder.path).page)
    if args.out or len(analyses) > 1 or not files:
        files = write_analysis(analyses, args.out or new_run_folder("analyze", analyses[0].network)) + files
    document = {
        "networks": [analysis.to_json() for analysis in analyses],
        "page": str(files[0]),
        "files": [str(path) for path in files + reports],
    }
    show(args, document, render)


def _finished_run(weights: Path) -> RunFolder | None:
    """Return the finished run that has these weights."""
    folder = RunFolder(weights if weights.is_dir() else weights.parent)
    is_own = weights.is_dir() or weights.name == folder.weights.name
    return folder if is_own and folder.is_run() and folder.result.is_file() else None


def render(document: dict[str, Any]) -> RenderableType:
    """A table of the blocks of each network, a table of several networks, and where the page is."""
    from wideresnet.report.blocks import (
        BLOCK_HEADER,
        SUMMARY_HEADER,
        block_rows,
        images_text,
        name_networks,
        summary_row,
    )
    from wideresnet.spec.analysis import Analysis

    analyses = [Analysis.from_json(network, Path(document["page"])) for network in document["networks"]]
    labels, parts = name_networks(analyses), list[RenderableType]()
    for analysis, label in zip(analyses, labels, strict=True):
        about = f"  {analysis.error_pct:.2f} % test error, {images_text(analysis)}"
        parts += [Text.assemble((label, "bold"), about), _table(BLOCK_HEADER, block_rows(analysis), 2)]
        parts += [*(Text(f"note: {note}") for note in analysis.notes), Text()]
    if len(analyses) > 1:
        rows = [summary_row(analysis, label) for analysis, label in zip(analyses, labels, strict=True)]
        parts += [_table(SUMMARY_HEADER, rows, 1), Text()]
    return Group(*parts, Text(f"page  {document['page']}"))


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]], num_texts: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for place, heading in enumerate(header):
        lines = "\n".join(textwrap.wrap(heading, HEADING_WIDTH))
        if place < num_texts:
            table.add_column(lines, overflow="fold")
        else:
            table.add_column(lines, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
