"""`wrn predict`: classify image files."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.exported import open_weights
from wideresnet.commands.verbs import (
    WEIGHTS,
    add_engine_flag,
    add_int8_flag,
    add_machine_flags,
    add_verb,
    show,
    write_csv,
)
from wideresnet.kernels.library import start_build
from wideresnet.weights.pretrained import DEFAULT

BAR_WIDTH = 10


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    predict = add_verb(verbs, "predict", run, "classify image files", "wrn predict runs/my-run cat.jpg photos/")
    predict.usage = "%(prog)s [WEIGHTS] IMAGE [IMAGE ...] [flags]"
    predict.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH",
        help=f"first, unless the shipped network {DEFAULT} is meant, the WEIGHTS: {WEIGHTS}, or an exported model; "
        "then the images: files, folders of them, or patterns such as 'photos/*.jpg'",
    )  # fmt: skip
    predict.add_argument("--top", type=int, default=5, metavar="N", help="classes to show (5)")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="also write a row per image, for spreadsheets")
    predict.add_argument(
        "--sheet", type=Path, metavar="FILE",
        help="also draw the images with their classes on a contact sheet, .png; many on several",
    )  # fmt: skip
    predict.add_argument(
        "--sheet-order", choices=("class", "given"), default="class",
        help="on the sheet: by class, the most probable first, or as given (class)",
    )  # fmt: skip
    predict.add_argument(
        "--explain", action="store_true", help="on the sheet: show which places of an image speak for its class"
    )
    predict.add_argument(
        "--skip-unreadable", action="store_true",
        help="leave out files that cannot be read; those in folders are left out anyway, but fail the command",
    )  # fmt: skip
    add_engine_flag(predict)
    add_int8_flag(predict)
    predict.add_argument(
        "--data", help="with --int8: whose training images it is calibrated on, as for wrn train (the run's)"
    )
    add_machine_flags(predict)


def run(args: argparse.Namespace) -> None:
    """Predict."""
    _check_files(args)
    start_build()
    from wideresnet.inference.predict import NUM_LISTED, predict_files, split_weights

    args.weights, args.images = split_weights(args.paths)
    weights = open_weights(args)
    skip = args.skip_unreadable or any(Path(path).is_dir() for path in args.images)
    how = {name: getattr(args, name) for name in ("top", "device", "engine", "precision", "int8", "data")}
    predictions = predict_files(weights, args.images, skip_unreadable=skip, **how)
    if args.csv:
        write_csv(args.csv, *table(predictions))
    if args.sheet:
        from wideresnet.inference.sheet import write_sheets

        for path in write_sheets(args.sheet, weights, predictions, order=args.sheet_order, explain=args.explain):
            progress.report(f"sheet  {path}")
    show(args, predictions, render)
    failed = [f"{image['file']} ({reason})" for image in predictions if (reason := why_skipped(image))]
    if failed and not args.skip_unreadable:
        listed = ", ".join(failed[:NUM_LISTED]) + ", ..." * (len(failed) > NUM_LISTED)
        raise DataError(
            f"{len(failed)} of {len(predictions)} images cannot be read: {listed}; the others are classified; "
            "skip_unreadable=True takes this for success"
        )


def _check_files(args: argparse.Namespace) -> None:
    """Refuse names of files that cannot be written before the images are read."""
    if args.explain and not args.sheet:
        raise UsageError("explain=True: marks places on the contact sheet; add sheet=out.png, or leave it out")
    if args.sheet and (args.sheet.suffix.lower() != ".png" or args.sheet.is_dir()):
        raise UsageError(f"sheet={args.sheet}: must be a file whose name ends in .png")
    for name in ("csv", "sheet"):
        path = getattr(args, name)
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"{name}={path}: must be a file in a folder that exists")


def why_skipped(image: dict[str, Any]) -> str:
    """Say why an image has no predictions; "" if it has some."""
    return "" if image["predictions"] else image["notes"][0].removeprefix("skipped: ")


def table(predictions: list[dict[str, Any]]) -> tuple[list[str], list[list[str | float | None]]]:
    """Return the header and a row for each image: its file, the classes with their probabilities, notes."""
    most = max(len(image["predictions"]) for image in predictions)
    guesses = [f"{name} {place}" for place in range(1, most + 1) for name in ("class", "probability")]
    rows = []
    for image in predictions:
        cells = [cell for guess in image["predictions"] for cell in (guess["class"], guess["probability"])]
        empty = [None] * (2 * most - len(cells))
        rows.append([image["file"], *cells, *empty, ", ".join(image["notes"])])
    return ["file", *guesses, "notes"], rows


def render(predictions: list[dict[str, Any]]) -> str:
    """Show the whole name of each file on one line, then its class with a bar, the runners-up and notes.

    A shipped network is introduced first, and another engine or precision is named last.
    """
    lines = _introduction(predictions[0]["pretrained"]) if "pretrained" in predictions[0] else []
    for image in predictions:
        lines.append(image["file"])
        if image["predictions"]:
            best, *others = image["predictions"]
            then = "".join(f", {other['class']} {100 * other['probability']:.1f} %" for other in others)
            lines.append(_folded(f"{_bar(best['probability'])} {best['class']}{then}"))
        if image["notes"]:
            lines.append(_folded(", ".join(image["notes"])))
    if "engine" in predictions[0]:
        lines += ["", f"computed by {predictions[0]['engine']}"]
    elif "precision" in predictions[0]:
        lines += ["", f"computed in {predictions[0]['precision']}"]
    return "\n".join(lines)


def _introduction(network: dict[str, Any]) -> list[str]:
    names = network["class_names"]
    about = (
        f"{network['name']}, which comes with wrn: {network['test_error_pct']:.2f} % test error on {network['dataset']}"
    )
    own = f"for classes of your own: {network['own_classes']}, then wrn predict RUN IMAGE"
    return [about, *map(_folded, (f"knows {len(names)} classes and nothing else: {', '.join(names)}", own)), ""]


def _bar(share: float) -> str:
    """Draw a bar that can be read without color."""
    full = round(share * BAR_WIDTH)
    return "█" * full + "░" * (BAR_WIDTH - full) + f" {100 * share:5.1f} %"


def _folded(text: str) -> str:
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
