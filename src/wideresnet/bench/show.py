"""A record as a terminal shows it: a table a case, its bars, the pieces of a step."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.bench.contenders import OURS
from wideresnet.bench.words import START_WAYS, case_title, errors_of, machine_line, parts_line, short_name, verdict
from wideresnet.text import human_count

BAR_WIDTH = 8


def render(document: dict[str, Any]) -> RenderableType:
    """The record for people; times are medians over rounds."""
    parts: list[RenderableType] = [Text(machine_line(document))]
    if document["job"] == "figure4":
        return Group(*parts, Text(), _figure4(document))
    if document["job"] == "start":
        return Group(*parts, Text(), *(_starts(case) for case in document["cases"]))
    for case in document["cases"]:
        parts += [Text(), Text(case_title(case), style="bold"), _contenders(case)]
        for row in case["contenders"]:
            problem = row.get("problem")
            parts.append(
                Text(f"{row['name']}: {problem or row['configuration']}", style="yellow" if problem else "dim")
            )
        if verdict(case):
            parts.append(Text(f"ours is {verdict(case)}, the fastest other as its users run it", style="bold"))
        if case.get("int8_is_faster"):
            parts.append(Text(f"ours in 8 bits is {case['int8_is_faster']['median']:.2f} x the same", style="bold"))
        parts.append(Text(f"a step of ours in pieces: {parts_line(case)}"))
        parts.append(
            Text(f"matrix product {human_count(case['matmul']['flops_per_s'])}FLOP/s ({case['matmul']['what']}); "
                 f"median of {case['num_rounds']} rounds", style="dim")
        )  # fmt: skip
    return Group(*parts)


def _contenders(case: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    for heading in ("images/s", "", "ms, min\nquartiles", "FLOP/s\nof matmul", "peak\nMiB", "ours is\nquartiles"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    rows = [row for row in case["contenders"] if "problem" not in row]
    fastest = max(row["images_per_s"] for row in rows)
    for row in rows:
        call = {key: f"{1000 * value:.3g}" for key, value in row["call_s"].items()}
        memory, faster = row["peak_memory_mib"], row.get("ours_is_faster")
        table.add_row(
            Text(short_name(row), style="bold" if row["name"] == OURS else ""),
            f"{row['images_per_s']:,.4g}",
            Text("█" * max(1, round(BAR_WIDTH * row["images_per_s"] / fastest)), style="blue"),
            f"{call['median']}, {call['min']}\n{call['quartile1']}-{call['quartile3']}",
            f"{human_count(row['flops_per_s'])}\n{100 * row['share_of_matmul']:.0f} %",
            "-" if memory is None else f"{memory:,.0f}",
            f"{faster['median']:.2f} x\n{faster['quartile1']:.2f}-{faster['quartile3']:.2f}" if faster else "",
        )
    return table


def _starts(case: dict[str, Any]) -> Table:
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left",
        title=f"{case['network']}, batch {case['batch_size']}: from a process's start to its first step's end",
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for heading in ("s", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in case["starts"]:
        stepped, ran = row["stepped_s"], "; ".join(row["configurations"])
        table.add_row(row["name"], f"{stepped['median']:.1f}", f"{stepped['quartile1']:.1f}-{stepped['quartile3']:.1f}",
                      f"{START_WAYS[row['name']]}; {ran}")  # fmt: skip
    return table


def _figure4(document: dict[str, Any]) -> Table:
    cases = document["cases"]
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
        title=f"Figure 4: ms of a training step of {cases[0]['batch_size']} images; CIFAR-10 errors of Tables 4 and 5",
        title_justify="left",
    )
    table.add_column("network", no_wrap=True)
    last = cases[-1]["network"]
    for heading in ("error", "paper,\nTitan X", f"to\n{last}", "here\nquartiles", f"to\n{last}", "of\nmatmul"):
        table.add_column(heading, justify="right", no_wrap=True)
    last_ms = 1000 * cases[-1]["contenders"][0]["call_s"]["median"]
    for case in cases:
        row, error = case["contenders"][0], errors_of(case["network"])
        call = {key: 1000 * value for key, value in row["call_s"].items()}
        table.add_row(
            f"{case['network']}\n{case['precision']}",
            f"{error[0]:.2f} %" if error else "-",
            f"{case['paper_ms']:g}",
            f"{case['paper_ms'] / cases[-1]['paper_ms']:.2f}",
            f"{call['median']:,.4g}\n{call['quartile1']:,.4g}-{call['quartile3']:,.4g}",
            f"{call['median'] / last_ms:.2f}",
            f"{100 * row['share_of_matmul']:.0f} %",
        )
    return table
