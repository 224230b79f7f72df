"""Write README.md's speed table, docs/speed.md and its plots from the committed records in results/speed/.

python tools/speed.py           write them
python tools/speed.py --check   exit 1 if they are not what the records say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pages import ROOT, between, portable, write_or_check
from wideresnet.base.format import human_count
from wideresnet.bench.plots import write_plot
from wideresnet.bench.words import (
    OURS,
    OURS_BF16,
    OURS_INT8,
    OWN,
    START_WAYS,
    answers_line,
    answers_text,
    case_title,
    errors_of,
    fastest_lines,
    has_answers,
    machine_line,
    parts_line,
    quartiles,
    row_of,
    short_name,
)
from wideresnet.report.environment import hardware_text

BEGIN, END = "<!-- speed: made by tools/speed.py -->", "<!-- end of speed -->"
EMPTY = "No record has been committed yet: `wrn bench train WRN-16-4 --out results/speed/NAME` makes one."


def read_records(root: Path = ROOT) -> list[dict[str, Any]]:
    """Read every record in results/speed/, in the order of their names."""
    return [
        {**json.loads(path.read_text()), "folder": path.parent.relative_to(root).as_posix()}
        for path in sorted((root / "results" / "speed").glob("*/bench.json"))
    ]


def summary(records: list[dict[str, Any]]) -> str:
    """Write the table for README.md: one row per network, job and batch size, one column per machine."""
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    for record in records:
        if record["job"] in ("figure4", "start"):
            continue
        for case in record["cases"]:
            for ours in case["contenders"]:
                if ours["name"] not in OWN or "problem" in ours:
                    continue
                name = ours["name"]
                kind = {OURS_INT8: ", 8 bits", OURS_BF16: ", bf16"}.get(name, "")
                precision = "int8" if name == OURS_INT8 else ours.get("precision", case["precision"])
                peer, faster = _rival(case, name, precision)
                text = f"[{_rate(ours['images_per_s'])}]({record['folder']}/bench.json) {precision}"
                text += f", **{faster['median']:.2f} x** {short_name(peer)}" if faster and peer else ""
                job = {"train": "training", "infer": "inference"}[case["job"]] + kind
                cells.setdefault((case["network"], job, case["batch_size"]), {})[hardware_text(record["env"])] = text
    machines = list(dict.fromkeys(machine for row in cells.values() for machine in row))
    rows = [_row("network", "job", "batch", *machines), "|---" * (3 + len(machines)) + "|"]
    for key, row in sorted(cells.items(), key=lambda item: not item[0][1].startswith("training")):
        rows.append(_row(*key, *(row.get(machine, "-") for machine in machines)))
    return "\n".join(rows) if cells else EMPTY


def _rival(case: dict[str, Any], name: str, precision: str) -> tuple[dict[str, Any] | None, dict[str, float] | None]:
    """Find the fastest other that one of ours is compared with, in equal precision, and how many times as fast ours is.

    It may be faster than ours: then the ratio is below 1.
    """
    best = row_of(case, case["best_peer"]) if case["best_peer"] else None
    if name == OURS:
        return best, best and best["ours_is_faster"]
    if name == OURS_INT8 and "int8_is_faster" in case:  # an old record, which compared with a peer in fp32
        return best, case["int8_is_faster"]
    rivals = [
        row for row in case["contenders"]
        if row["name"] not in OWN and "ours_is_faster" in row and row.get("precision", case["precision"]) == precision
    ]  # fmt: skip
    rival = max(rivals, key=lambda row: row["images_per_s"], default=None)
    return rival, rival and rival["ours_is_faster"]


def details(records: list[dict[str, Any]]) -> str:
    """Write the page docs/speed.md: every record with all its contenders."""
    parts = [
        "# Speed",
        "Made from the records in `results/speed/` by `tools/speed.py`. All contenders take turns in one process after "
        "a warm-up (first steps: each in a fresh process); the device is synchronized around every turn. A time is the "
        "median over rounds, a ratio the median of the ratios of the rounds, with its quartiles in parentheses. A "
        "training step is the loss, backward pass and update for a batch that is already in memory. FLOP are 2 x the "
        "multiply-accumulates of direct convolution, three times as many for training; the matrix product is timed in "
        "the same rounds. Other implementations run eagerly in fp32, NCHW, as their users run them; with `+careful`, "
        "in channels_last and our precision; `plain` is our own network run in the same way. Inference engines run our "
        "weights, as many threads as ours, and the fastest of their settings; the fastest of all is named for each "
        "precision, ours or not, and ratios are between equal precisions. tools/peers.py says how "
        "to get the code behind `tools.peers:authors` and `tools.peers:xternalz`.",
    ]
    for record in records:
        folder = record["folder"]
        command = portable(record["env"]["command"])
        parts += [f"## {folder.rpartition('/')[2]}", f"`{command}`", machine_line(record) + "."]
        if record["job"] == "figure4":
            parts.append(_figure4(record))
        elif record["job"] == "start":
            parts.append(_starts(record))
        else:
            for case in record["cases"]:
                parts += [f"### {case_title(case)}", _contenders(case)]
                parts += [f"Fastest of all in {'; in '.join(lines)}."] if (lines := fastest_lines(case)) else []
                parts += [f"{line[0].upper()}{line[1:]}."] if (line := answers_line(case)) else []
                parts.append(f"A step of ours in pieces: {parts_line(case)}.")
        drawn = {"figure4": "Figure 4", "start": "first steps"}.get(record["job"], "images per second")
        parts.append(f"![{drawn}](../{folder}/bench.png)")
    return "\n\n".join(parts if records else [*parts, EMPTY]) + "\n"


def _contenders(case: dict[str, Any]) -> str:
    columns = ["", "runs as", "images/s", "ms", "quartiles", "FLOP/s", "of matmul", "peak memory", "ours is"]
    columns += ["as ours in fp32"] * (compared := has_answers(case))
    rows = [_row(*columns).replace("|  |", "| |", 1), "|---" * len(columns) + "|"]
    for row in case["contenders"]:
        name = f"{short_name(row)} {row['version']}" if "version" in row else short_name(row)
        if "problem" in row:
            rows.append(_row(name, row["problem"], *[""] * (len(columns) - 2)))
            continue
        call = row["call_s"]
        rows.append(
            _row(
                name,
                row["configuration"],
                _rate(row["images_per_s"]),
                f"{1000 * call['median']:.4g}",
                quartiles(call, ".4g", 1000),
                human_count(row["flops_per_s"]),
                f"{100 * row['share_of_matmul']:.0f} %",
                _memory(row),
                _times(row["ours_is_faster"]) if "ours_is_faster" in row else "",
                *[answers_text(row)] * compared,
            )
        )
    return "\n".join(rows)


def _figure4(record: dict[str, Any]) -> str:
    rows = [
        f"The paper's Figure 4: a training step of {record['cases'][0]['batch_size']} images.\n",
        "| network | CIFAR-10 error in the paper | ms in the paper, Titan X | ms here | quartiles | of matmul | in |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        row, error = case["contenders"][0], errors_of(case["network"])
        rows.append(
            _row(
                case["network"],
                f"{error[0]:.2f} % (Table {error[1]})" if error else "-",
                f"{case['paper_ms']:g}",
                f"{1000 * row['call_s']['median']:,.4g}",
                quartiles(row["call_s"], ",.4g", 1000),
                f"{100 * row['share_of_matmul']:.0f} %",
                case["precision"],
            )
        )
    return "\n".join(rows)


def _starts(record: dict[str, Any]) -> str:
    rows = [
        "From the start of a fresh process to the end of its first step; the three take turns.\n",
        "| network | batch | | s | quartiles | what | ran as |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        for row in case["starts"]:
            stepped = row["stepped_s"]
            rows.append(
                _row(
                    case["network"],
                    case["batch_size"],
                    row["name"],
                    f"{stepped['median']:.1f}",
                    quartiles(stepped, ".1f"),
                    START_WAYS[row["name"]],
                    "; ".join(row["configurations"]),
                )
            )
    return "\n".join(rows)


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 1000 else f"{images_per_s:.4g}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _memory(row: dict[str, Any]) -> str:
    return "-" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:,.0f} MiB"


def _times(faster: dict[str, float]) -> str:
    return f"{faster['median']:.2f} x ({quartiles(faster, '.2f')})"


def main() -> int:
    """Write or check both pages; the plots, whose bytes depend on matplotlib's version, are only written."""
    records, readme = read_records(), ROOT / "README.md"
    if "--check" not in sys.argv[1:]:
        for record in records:
            write_plot(record, ROOT / record["folder"] / "bench.png")
    pages = {
        readme: between(readme.read_text(), BEGIN, END, summary(records)),
        ROOT / "docs" / "speed.md": details(records),
    }
    return write_or_check(pages, "results/speed/")


if __name__ == "__main__":
    sys.exit(main())
