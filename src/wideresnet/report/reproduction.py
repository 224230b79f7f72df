"""The page of a reproduced table or figure: the paper's numbers and ours side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wideresnet.base.errors import WRNError
from wideresnet.base.format import human_seconds
from wideresnet.data.facts import FACTS
from wideresnet.report import html
from wideresnet.report.figures import Curve, to_svg
from wideresnet.report.reproduction_figures import draw_bands, draw_costs, draw_errors
from wideresnet.report.runs import read_run
from wideresnet.spec.exhibits import Protocol, protocol_of, runs_text
from wideresnet.spec.exhibits import exhibit as exhibit_of
from wideresnet.spec.files import write_atomic, write_json

Curves = Sequence[tuple[str, Sequence[Curve]]]
"""For each cell its label and the curves of its finished seeds."""


def write_reproduction(document: dict[str, Any], out: Path) -> list[Path]:
    """Write a reproduction as a page, JSON, a Markdown table, a CSV file and figures for print.

    Args:
        document: what `experiments.collect.collect` returns.
        out: folder of the files; it is made if it is missing.

    Returns:
        The files: NAME.html, NAME.json, NAME.md, NAME.csv, and for each data set with a finished run
        NAME-DATASET-errors.svg and NAME-DATASET-curves.svg.
    """
    out.mkdir(parents=True, exist_ok=True)
    name = document["name"]
    page, record, text, table = files = [out / f"{name}.{kind}" for kind in ("html", "json", "md", "csv")]
    by_data = {name: [cell for cell in document["cells"] if cell["dataset"] == name] for name in data_of(document)}
    curves = {name: _curves(cells, out) for name, cells in by_data.items()}
    write_atomic(page, _page(document, out, curves))
    write_json(record, document)
    write_atomic(text, markdown(document).encode())
    write_atomic(table, csv_text(document).encode())
    for data, cells in by_data.items():
        if curves[data]:
            errors, bands = (out / f"{name}-{data}-{kind}.svg" for kind in ("errors", "curves"))
            write_atomic(errors, to_svg(draw_errors(cells)))
            write_atomic(bands, to_svg(draw_bands(curves[data])))
            files += [errors, bands]
    return files


def data_of(document: dict[str, Any]) -> list[str]:
    """Return the data sets of a document."""
    return list(dict.fromkeys(cell["dataset"] for cell in document["cells"]))


def markdown(document: dict[str, Any]) -> str:
    """Write the cells as a Markdown table."""
    lines = [f"{_caption(document)}\n", "| network | data | paper, % | median, % | mean ± std, % | n | verdict |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [f"| {' | '.join(str(value).replace('|', '/') for value in row)} |" for row in _rows(document)]
    return "\n".join(lines) + "\n"


def csv_text(document: dict[str, Any]) -> str:
    """Write one line per run, with the published error of its cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["test_error_pct", "test_loss", "test_ece_pct", "params", "train_s"]
    about = ["exhibit", "scale", "width", "label", "dataset", "published_pct", "seed", "state"]
    writer.writerow([*about, *columns, "run"])
    for cell in document["cells"]:
        for run in cell["runs"]:
            values = [document["exhibit"]["name"], document["scale"], document["width"], cell["label"], cell["dataset"]]
            values += [cell["published_pct"], run["seed"], run["state"], *map(run.get, columns), run["name"]]
            writer.writerow(values)
    return text.getvalue()


def _page(document: dict[str, Any], out: Path, curves: Mapping[str, Curves]) -> bytes:
    exhibit, cells = document["exhibit"], document["cells"]
    body = [html.title(f"{exhibit['label']}: {exhibit['title']}", _caption(document))]
    if document["is_partial"]:
        missing = sum(run["state"] in ("begun", "missing") for cell in cells for run in cell["runs"])
        total = sum(len(cell["runs"]) for cell in cells)
        body.append(html.paragraph(f"Partial: {missing} of {total} runs have not finished.", "note"))
    if document["scaled_down"]:
        about = "Such runs show how rows compare with each other, not how they compare with the paper."
        body.append(html.paragraph(f"Scaled down: {document['scaled_down']}. {about}", "note"))
    header = ("network", "data", "paper, %", "median, %", "mean ± std, %", "n", "verdict")
    body += [
        html.table("paper and reproduction", header, _rows(document), numbers=(2, 3, 4, 5), wrapped=(6,)),
    ]
    for name in data_of(document):
        body += _pictures([cell for cell in cells if cell["dataset"] == name], FACTS[name].title, curves[name])
    if any(cell["half_width_pct"] is not None for cell in cells):
        body += [html.heading("Differences to the paper"), _differences(cells)]
    body += [html.heading("Runs"), _runs(cells, out)]
    for heading, texts in (
        ("Not run", document["left_out"]),
        ("The paper's inconsistencies", exhibit["inconsistencies"]),
        ("Protocol", _protocols(document)),
    ):
        if texts:
            body += [html.heading(heading), *map(html.paragraph, texts)]
    return html.page(f"{exhibit['label']}, reproduced", body)


def _caption(document: dict[str, Any]) -> str:
    exhibit = document["exhibit"]
    runs = runs_text(exhibit["num_runs"])
    text = (
        f"{exhibit['label']}, {exhibit['title']}. Paper: {exhibit['statistic']}, {runs}. Here: last epoch, all seeds."
    )
    if others := [FACTS[name].title for name in data_of(document) if name not in exhibit["data"]]:
        (table,) = exhibit_of(exhibit["name"]).tables  # of a figure, which shows fewer data sets
        text += f" The paper's errors on {' and '.join(others)} are those of its Table {table}."
    if document["scaled_down"]:
        text += f" Scaled down: {document['scaled_down']}."
    for name, rank in document["ranks"].items():
        p_value = f"p = {rank['p_value']:.2f}" if rank["p_value"] >= 0.01 else "p < 0.01"
        text += (
            f" Order of the {rank['n']} rows on {FACTS[name].title} against the paper's: Kendall's tau "
            f"{rank['tau']:.2f} ({p_value})."
        )
    return text


def _protocols(document: dict[str, Any]) -> list[str]:
    """Say how the authors trained on each data set, and what else their code does."""
    by_protocol: dict[Protocol, list[str]] = {}
    for name in data_of(document):
        by_protocol.setdefault(protocol_of(name), []).append(FACTS[name].title)
    return [
        f"{' and '.join(titles)}: {protocol.said}. The authors' code: {protocol.done}."
        for protocol, titles in by_protocol.items()
    ]


def _rows(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            cell["label"],
            FACTS[cell["dataset"]].title,
            _number(cell["published_pct"]),
            _number(cell["median_pct"]),
            f"{cell['mean_pct']:.2f} ± {cell['std_pct']:.2f}" if cell["std_pct"] is not None else "-",
            cell["n"],
            cell["verdict"],
        )
        for cell in document["cells"]
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _differences(cells: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            cell["label"],
            FACTS[cell["dataset"]].title,
            f"{cell['difference_pct']:+.2f} ± {cell['half_width_pct']:.2f}",
            f"{cell['detectable_pct']:.2f}",
            "; ".join(f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}" for low, high in
                      (other["error_pct"] for other in cell["others"])) or "-",
        )
        for cell in cells
        if cell["half_width_pct"] is not None
    ]  # fmt: skip
    header = ("network", "data", "mean - paper, 95 % interval", "smallest detectable", "other code, %")
    return html.table("differences to the paper", header, rows, numbers=(2, 3))


def _curves(cells: Sequence[dict[str, Any]], out: Path) -> Curves:
    """Read the curves of all finished seeds, by cell."""
    groups = []
    for cell in cells:
        curves = []
        for run in cell["runs"]:
            if run["state"] == "finished":
                with suppress(WRNError):  # its line in the table of runs is there without
                    curves.append(read_run(out / run["name"], cell["label"]).curve)
        if curves:
            groups.append((cell["label"], curves))
    return groups


def _pictures(cells: Sequence[dict[str, Any]], title: str, curves: Curves) -> list[str]:
    """Draw errors, errors against cost, and curves of one data set."""
    body = [
        html.heading(f"Errors, {title}"),
        html.picture(
            lambda theme, narrow: draw_errors(cells, theme, narrow=narrow), "the paper's errors and those of each seed"
        ),
    ]
    if curves:
        body += [
            html.heading(f"Error against cost, {title}"),
            html.picture(
                lambda theme, narrow: draw_costs(cells, theme, narrow=narrow),
                "median test error against parameters, multiply-accumulates and measured training time",
            ),
            html.heading(f"Curves, {title}"),
            html.paragraph("Medians over seeds, with a band from the lowest to the highest; in brackets their number."),
            html.picture(
                lambda theme, narrow: draw_bands(curves, theme, narrow=narrow), "test error and test loss by epoch"
            ),
        ]
    return body


def _runs(cells: Sequence[dict[str, Any]], out: Path) -> str:
    rows = []
    for cell in cells:
        for run in cell["runs"]:
            report, state = out / run["name"] / "report.html", run["state"]
            page = html.relative_address(out / "page", report)
            name = html.Link(cell["label"], page) if report.is_file() else cell["label"]
            rows.append(
                (
                    name,
                    FACTS[cell["dataset"]].title,
                    run["seed"],
                    {"begun": "not finished", "missing": "not started"}.get(state, state),
                    _number(run.get("test_error_pct")),
                    f"{run['test_loss']:.3f}" if "test_loss" in run else "-",
                    _number(run.get("test_ece_pct")),
                    f"{run['params']:,}" if "params" in run else "-",
                    human_seconds(run["seconds"]) if "seconds" in run else "-",
                )
            )
    header = ("run", "data", "seed", "state", "error, %", "NLL, nats", "ECE, %", "parameters", "time")
    return html.table("runs", header, rows, numbers=(2, 4, 5, 6, 7, 8))
