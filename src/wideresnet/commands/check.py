"""`wrn check`: what is in a data set, before anyone trains on it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.commands.flags import FLAGS
from wideresnet.commands.translate import translator
from wideresnet.commands.verbs import add_machine_flags, add_reading_flags, add_verb, new_run_folder, show

NUM_CLASSES_SHOWN, NUM_SHOWN = 20, 10


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    check = add_verb(verbs, "check", run, "look at every image of a data set and say whether it is ready for training",
                     "wrn check path/to/images --with runs/my-run")  # fmt: skip
    check.add_argument("data", help="as --data of wrn train")
    check.add_argument(
        "--with", dest="with_run", type=Path, nargs="+", metavar="RUN",
        help="run folder, weights folder or model.safetensors: list the labels that its network doubts; several runs "
             "with --holdout judge what they did not learn from",
    )  # fmt: skip
    check.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="for check.json and check.html, the page with pictures (default: a new one under $WRN_RUNS or runs/)",
    )  # fmt: skip
    add_reading_flags(check)
    add_machine_flags(check, precision=False)
    check.set_defaults(own_flags=(*FLAGS, "seeds"))  # notes speak of training


def run(args: argparse.Namespace) -> None:
    """Check, and exit with 1 if the data is not ready."""
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"out={args.out}: is a file; name a folder")
    from wideresnet.inference.check import check_data
    from wideresnet.report.data_page import write_check

    document, pictures = check_data(
        args.data, args.with_run, skip_unreadable=args.skip_unreadable, image_column=args.image_column,
        label_column=args.label_column, class_order=args.class_order, device=args.device,
    )  # fmt: skip
    translate = translator(args)
    for name in ("problems", "warnings", "notes"):
        document[name] = [translate(text) for text in document[name]]
    document["verdict"] = translate(document["verdict"])
    name = Path(args.data).resolve().stem or "data"
    files = write_check(document, pictures, args.out or new_run_folder("check", name))
    document["page"], document["files"] = str(files[0]), [str(path) for path in files]
    show(args, document, render)
    if not document["ready"]:
        sys.exit(1)


def render(document: dict[str, Any]) -> RenderableType:
    """What there is, warnings, notes, and the verdict as the last line."""
    from wideresnet.report.data_page import counts_text, duplicates_text, sizes_text

    parts: list[RenderableType] = []
    if document["layout"] is not None:
        facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        facts.add_column(style="bold", no_wrap=True)
        facts.add_column(overflow="fold")
        splits, duplicates = document["splits"], document["duplicates"]
        for name, value in (
            ("layout", document["layout"]),
            ("images", f"{splits['train']:,} training, {splits['test']:,} test"),
            ("classes", f"{len(document['classes']):,}"),
            ("sizes", sizes_text(document["sizes"])),
            ("formats", counts_text(document["formats"])),
            ("color modes", counts_text(document["modes"])),
            ("unreadable", f"{document['num_unreadable']:,}"),
            ("equal pixels", duplicates_text(duplicates["exact"])),
            ("nearly equal", duplicates_text(duplicates["near"])),
        ):
            facts.add_row(name, Text(value))
        parts += [facts, Text(), _classes(document["classes"])]
    parts += _list("cannot be read", [f"{row['file']} ({row['reason']})" for row in document["unreadable"]])
    parts += _list("doubtful labels", [
        f"{row['file']} ({row['split']}): {row['class']} {100 * row['label_probability']:.1f} %, the network says "
        f"{row['predicted']} {100 * row['probability']:.1f} %" for row in document["suspicious"]
    ])  # fmt: skip
    parts += [Text()]
    parts += [Text(f"note: {note}") for note in document["notes"]]
    parts += [Text(f"warning: {text}", style="yellow") for text in document["warnings"]]
    parts += [Text(f"problem: {text}", style="red") for text in document["problems"][1:]]
    parts += [Text(f"page  {document['page']}"), Text(document["verdict"], style="bold")]
    return Group(*parts)


def _list(title: str, lines: list[str]) -> list[RenderableType]:
    if not lines:
        return []
    more = [Text(f"  and {len(lines) - NUM_SHOWN:,} more")] if len(lines) > NUM_SHOWN else []
    return [Text(), Text(title, style="bold"), *(Text(f"  {line}") for line in lines[:NUM_SHOWN]), *more]


def _classes(classes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for heading in ("training images", "test images"):
        table.add_column(heading, justify="right")
    shown = classes
    if len(classes) > NUM_CLASSES_SHOWN:
        by_size = sorted(classes, key=lambda row: -row["train"])
        shown = by_size[: NUM_CLASSES_SHOWN // 2] + by_size[-NUM_CLASSES_SHOWN // 2 :]
        table.caption = f"the {NUM_CLASSES_SHOWN // 2} largest and smallest of {len(classes):,}"
    for row in shown:
        table.add_row(Text(row["class"]), f"{row['train']:,}", f"{row['test']:,}")
    return table
