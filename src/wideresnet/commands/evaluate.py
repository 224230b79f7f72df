"""`wrn eval`: measure weights on a test set."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.commands.exported import open_weights
from wideresnet.commands.verbs import (
    WEIGHTS,
    add_engine_flag,
    add_int8_flag,
    add_machine_flags,
    add_reading_flags,
    add_verb,
    show,
    write_csv,
)
from wideresnet.kernels.library import start_build
from wideresnet.report.text import arithmetic

if TYPE_CHECKING:
    from wideresnet.data.readers.corrupted import CorruptedFiles
    from wideresnet.inference.evaluate import Subject

NUM_SHOWN = 10


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    evaluate = add_verb(verbs, "eval", run, "measure weights on a test set", "wrn eval runs/my-run --data cifar10")
    evaluate.add_argument(
        "weights", type=Path, nargs="+", help=f"{WEIGHTS}; or an exported model; several with --ensemble"
    )
    evaluate.add_argument(
        "--data",
        help="as for wrn train, or the folder of CIFAR-10-C's or CIFAR-100-C's .npy files (default: the data that the "
        "run was trained on)",
    )
    evaluate.add_argument(
        "--ensemble", action="store_true",
        help="average the probabilities of several networks, or of all seeds in a folder, and measure each, too",
    )  # fmt: skip
    evaluate.add_argument("--limit", type=int, metavar="N", help="test images, spread evenly over the set (all)")
    evaluate.add_argument(
        "--corruptions", action="store_true",
        help="also on corrupted images, as in CIFAR-10-C: noise, blur, fog, JPEG and others, ten at five "
        "severities; takes 51 times as long",
    )  # fmt: skip
    evaluate.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="also write a page, .html: mistakes, where the network looks, every class; of corrupted images curves and "
        "examples; of an ensemble the numbers",
    )
    evaluate.add_argument(
        "--csv", type=Path, metavar="FILE",
        help="also write a row per class, or with --corruptions per corruption and severity, for spreadsheets",
    )  # fmt: skip
    add_reading_flags(evaluate, class_order=False)
    add_int8_flag(evaluate)
    add_engine_flag(evaluate)
    add_machine_flags(evaluate)


def run(args: argparse.Namespace) -> None:
    """Evaluate."""
    _check_files(args)
    start_build()
    from wideresnet.inference.evaluate import evaluate_weights, prepare

    if len(args.weights) > 1 and not args.ensemble:
        raise UsageError(f"{len(args.weights)} networks: average them with ensemble=True, or evaluate them one by one")
    names = ("limit", "device", "precision", "skip_unreadable", "int8", "image_column", "label_column", "engine")
    how = {name: getattr(args, name) for name in names}
    published = _published_files(args)
    data, is_corrupted = published.dataset if published else args.data, published or args.corruptions
    if args.ensemble:
        from wideresnet.inference.ensemble import measure_ensemble, prepare_ensemble

        ensemble = prepare_ensemble(args.weights, data, **how)
        if is_corrupted:
            _run_corrupted(args, ensemble, published)
        else:
            _show_ensemble(args, measure_ensemble(ensemble))
        return
    args.weights = args.weights[0]
    weights = open_weights(args)
    if is_corrupted:
        _run_corrupted(args, prepare(weights, data, **how), published)
        return
    if args.page:
        from wideresnet.inference.page import measure_and_draw

        result = measure_and_draw(prepare(weights, args.data, **how), args.page)
    else:
        result = evaluate_weights(weights, args.data, **how)
    if args.csv:
        columns = ("class", "num_images", "num_errors", "error_pct")
        write_csv(args.csv, columns, ([row[name] for name in columns] for row in result["classes"]))
    show(args, result, render)


def _check_files(args: argparse.Namespace) -> None:
    """Refuse names of files that cannot be written before hours are spent on what they hold."""
    if args.page and (args.page.suffix.lower() not in (".html", ".htm") or args.page.is_dir()):
        raise UsageError(f"page={args.page}: must be a file whose name ends in .html")
    if args.csv and (args.csv.is_dir() or not args.csv.absolute().parent.is_dir()):
        raise UsageError(f"csv={args.csv}: must be a file in a folder that exists")


def _is_published(args: argparse.Namespace) -> bool:
    """Tell whether the data is a folder of published corrupted images."""
    if args.data is None or not Path(args.data).is_dir():
        return False
    from wideresnet.data.readers.corrupted import holds_corrupted

    return holds_corrupted(Path(args.data))


def _published_files(args: argparse.Namespace) -> CorruptedFiles | None:
    """Open published corrupted images, if the data is a folder of them."""
    if not _is_published(args):
        return None
    if args.corruptions:
        raise UsageError(f"corruptions=True: {args.data} holds corrupted images already; leave it out")
    if args.int8:
        raise UsageError(f"int8=True: is calibrated on training images, and {args.data} has none; leave it out")
    from wideresnet.data.readers.corrupted import read_corrupted

    return read_corrupted(Path(args.data))


def _show_ensemble(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Show an ensemble and its members, and write what was asked for."""
    if args.csv:
        columns = ("weights", "network", "error_pct", "loss", "ece_pct")
        own = {**result, "weights": "ensemble"}
        write_csv(args.csv, columns, ([row[name] for name in columns] for row in (*result["members"], own)))
    if args.page:
        from wideresnet.report.ensemble import write_ensemble

        write_ensemble(args.page, result)
        result["page"] = str(args.page)
    show(args, result, render_ensemble)


def _run_corrupted(args: argparse.Namespace, subject: Subject, published: CorruptedFiles | None) -> None:
    """Evaluate on clean and on corrupted images, or on published ones."""
    if published:
        from wideresnet.inference.published_corruptions import measure_published

        result = measure_published(subject, published)
    else:
        from wideresnet.inference.corruptions import measure_corruptions

        result = measure_corruptions(subject)
    if args.csv:
        columns = ("corruption", "severity", "error_pct", "loss", "ece_pct")
        write_csv(args.csv, columns, _csv_rows(result))
    if args.page:
        from wideresnet.report.corruptions import write_corruptions

        if published:
            first = subject.index[0]
            write_corruptions(args.page, result, None, lambda name, severity: published.at(name, severity)[first])
        else:
            write_corruptions(args.page, result, subject.images[0])
        result["page"] = str(args.page)
    show(args, result, render_corruptions)


def _csv_rows(result: dict[str, Any]) -> Iterator[tuple[str | float, ...]]:
    """Yield a row for the clean images, whose severity is 0, and one per corruption and severity."""
    if clean := result["clean"]:
        yield "clean", 0, clean["error_pct"], clean["loss"], clean["ece_pct"]
    for tables in (result, result.get("extra") or {"corruptions": {}}):
        for name, errors in tables["corruptions"].items():
            cells = zip(result["severities"], errors, tables["loss"][name], tables["ece_pct"][name], strict=True)
            yield from ((name, *cell) for cell in cells)


def render(result: dict[str, Any]) -> RenderableType:
    """The error, the worst classes and the most frequent mistakes."""
    parts: list[RenderableType] = [_summary(result)]
    if result["num_errors"]:
        parts += [Text(), _worst_classes(result), Text(), _frequent_mistakes(result)]
    page = [Text(), Text(f"page  {result['page']}")] if "page" in result else []
    return Group(*parts, *_notes(result["notes"]), *page)


def render_corruptions(result: dict[str, Any]) -> RenderableType:
    """The clean error, the mean error, and a table of errors by severity."""
    from wideresnet.report.corruptions import error_rows, likelihood_rows

    clean, extra = result["clean"], result.get("extra")
    about = clean or result["about"]
    table = _corruption_table("error, %, by severity; means of error, NLL and ECE", result["severities"])
    *rows, mean = error_rows(result)
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(*mean, style="bold")
    for row in likelihood_rows(result):
        table.add_row(*row)
    tables: list[RenderableType] = [table]
    if extra:
        others = _corruption_table("corruptions that do not count", result["severities"])
        for row in error_rows(extra)[:-1]:
            others.add_row(*row)
        tables += [Text(), others]
    summary = Text.assemble(
        (f"{result['mean_error_pct']:.2f} % mean corruption error", "bold"),
        f"  {len(result['corruptions'])} corruptions, {len(result['severities'])} severities\n",
        _scores(result["mean_loss"], result["mean_ece_pct"]),
    )
    page = [Text(), Text(f"page  {result['page']}")] if "page" in result else []
    head = _summary(clean) if clean else _about(about)
    return Group(head, Text(), summary, Text(), *tables, *_notes([*about["notes"], *result["notes"]]), *page)


def render_ensemble(result: dict[str, Any]) -> RenderableType:
    """The ensemble's scores, and those of each member."""
    from wideresnet.report.ensemble import HEADER, ensemble_rows

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in HEADER:
        table.add_column(heading, justify="right" if "," in heading else "left", overflow="fold")
    for row in ensemble_rows(result):
        table.add_row(*map(Text, row))
    page = [Text(), Text(f"page  {result['page']}")] if "page" in result else []
    return Group(_summary(result), Text(), table, *_notes(result["notes"]), *page)


def _corruption_table(title: str, severities: list[int]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title=title, title_justify="left")
    table.add_column("corruption", no_wrap=True)
    for heading in (*map(str, severities), "mean", "NLL", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _about(about: dict[str, Any]) -> Text:
    return Text(
        f"{about['network']} on {about['dataset']}, {about['num_images']:,} images per corruption and severity, "
        f"{arithmetic(about)}"
    )


def _summary(result: dict[str, Any]) -> Text:
    counts = f"{result['num_errors']:,} of {result['num_images']:,} test images"
    summary = Text.assemble(
        (f"{result['error_pct']:.2f} % test error", "bold"), f"  {counts}\n",
        f"{_scores(result['loss'], result['ece_pct'])}\n",
        f"{result['network']} on {result['dataset']}, {arithmetic(result)}, ",
        f"{result['images_per_s']:,.0f} images/s",
    )  # fmt: skip
    if result["top5_error_pct"] is not None:
        summary.append(f"\ntop-5 error {result['top5_error_pct']:.2f} %")
    return summary


def _scores(loss: float, ece_pct: float) -> str:
    return f"NLL {loss:.4f} nats, expected calibration error {ece_pct:.2f} %"


def _notes(notes: list[str]) -> list[RenderableType]:
    return [Text(), *(Text(f"note: {note}") for note in notes)] if notes else []


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
