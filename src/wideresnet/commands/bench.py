"""`wrn bench`: measure speed and memory, also against other implementations."""

from __future__ import annotations

import argparse
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_count, human_number
from wideresnet.bench.words import (
    ENGINES,
    OURS,
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
    short_name,
    verdict,
)
from wideresnet.commands.verbs import add_machine_flags, add_verb, new_run_folder, say, show
from wideresnet.spec.recipe import CHOICES

BAR_WIDTH = 8

ENGINES_HELP = (
    f". Inference engines, with our weights and as many threads, in the precision of their name or fp32: "
    f"{', '.join(ENGINES)}; openvino-int8 needs nncf, ncnn also pnnx, and opencv is opencv-python-headless"
)


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    bench = verbs.add_parser(
        "bench", help="measure speed and memory, also against other implementations",
        description="Measure speed and memory, also against other implementations; writes bench.json and bench.png.",
        epilog="example: wrn bench train WRN-16-4 --against pytorchcv --json",
    )  # fmt: skip
    jobs = bench.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    for job, help in (("train", "whole training steps"), ("infer", "forward passes")):
        measure = add_verb(jobs, job, run, help, f"wrn bench {job} WRN-16-4 WRN-40-2 --against torchvision pytorchcv")
        measure.set_defaults(job=job)
        trained = (
            " with random weights, or trained weights: a run folder, a weights folder, or the name of a shipped network"
        )
        measure.add_argument(
            "networks", nargs="+", metavar="NETWORK", help=f"e.g. WRN-28-10{trained * (job == 'infer')}"
        )
        if job == "infer":
            measure.add_argument(
                "--data", metavar="D", help="images for trained weights, as for wrn train: their test images are timed "
                "and compared, their training images calibrate 8 bits (the data that the run was trained on)",
            )  # fmt: skip
        measure.add_argument(
            "--batch-size", type=_sizes, default=(), metavar="N,N", help="images per step; several separated by commas "
            f"({'128' if job == 'train' else '1,64'})",
        )  # fmt: skip
        measure.add_argument(
            "--against", nargs="+", action="extend", default=[], metavar="OTHER",
            help="torchvision, timm, pytorchcv (if installed), plain (our network in a plain PyTorch loop), and "
            "module:callable or file.py:callable for any other: its code is imported from the current folder and RUN; "
            "the callable gets whichever of depth, width (widen_factor, k), num_classes, dropout = 0, ... it accepts, "
            "and returns a torch.nn.Module. Peers run eagerly in fp32, NCHW; with +careful appended to the name, in "
            "channels_last and our precision" + (ENGINES_HELP if job == "infer" else ""),
        )  # fmt: skip
        measure.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")
        if job == "infer":
            measure.add_argument("--int8", action="store_true", help="also run ours in 8 bits")
        _bench_flags(measure)
    start = add_verb(
        jobs, "start", run, "the time to the first training step: of wrn train with an empty cache (cold) and a filled "
        "one (warm), and of a plain loop, each in a fresh process", "wrn bench start WRN-28-10",
    )  # fmt: skip
    start.set_defaults(job="start")
    start.add_argument("networks", nargs="+", metavar="NETWORK", help="e.g. WRN-28-10")
    start.add_argument("--batch-size", type=int, metavar="N", help="images per step (128)")
    start.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")
    _bench_flags(start)
    figure4 = add_verb(jobs, "figure4", run, "the paper's Figure 4 on this machine, next to the paper's bars",
                    "wrn bench figure4")  # fmt: skip
    figure4.set_defaults(job="figure4")
    _bench_flags(figure4)


def _bench_flags(parser: argparse.ArgumentParser) -> None:
    add_machine_flags(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (PyTorch's choice)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="maximum number of rounds (20)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S",
        help="time limit for each network and batch size; at least three rounds are run (60)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the record (default: a new one under $WRN_RUNS or runs/)")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be whole numbers separated by commas, e.g. 1,64") from None


def run(args: argparse.Namespace, **method: Any) -> None:
    """Measure; `method` is given on to the function that does, which has the usual one."""
    from wideresnet.bench.run import PLOT, RECORD

    out = args.out or new_run_folder("bench", args.job, *(args.networks[:1] if "networks" in args else ()))
    try:
        document = _measured(args, out, method)
    except UsageError:
        if not args.out:
            with suppress(OSError):  # the folder holds other runs
                out.rmdir()
                out.parent.rmdir()
        raise
    show(args, document, render)
    if not args.json:
        say(f"record {out / RECORD}, plot {out / PLOT}")


def _measured(args: argparse.Namespace, out: Path, method: dict[str, Any]) -> dict[str, Any]:
    from wideresnet.bench.run import run_bench, run_figure4

    machine = {
        "device": args.device,
        "precision": args.precision,
        "threads": args.threads,
        "repeats": args.repeats,
        "seconds": args.seconds,
        "command": shlex.join(["wrn", *args.argv]),
        **method,
    }
    if args.job == "figure4":
        return run_figure4(out, **machine)
    if args.job == "start":
        from wideresnet.bench.start import run_start

        return run_start(args.networks, out, batch_size=args.batch_size, family=args.family, **machine)
    return run_bench(
        args.job, args.networks, out, batch_sizes=args.batch_size, against=args.against, family=args.family,
        data=getattr(args, "data", None), int8=getattr(args, "int8", False), **machine,
    )  # fmt: skip


def render(document: dict[str, Any]) -> RenderableType:
    """The record for people; times are medians over rounds."""
    parts: list[RenderableType] = [Text(machine_line(document))]
    if document["job"] == "figure4":
        return Group(*parts, Text(), _figure4(document), *_warnings(document["cases"]))
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
        parts += [Text(f"fastest of all in {line}", style="bold") for line in fastest_lines(case)]
        if line := answers_line(case):
            parts.append(Text(line, style="dim"))
        parts.append(Text(f"one of our steps in pieces: {parts_line(case)}"))
        parts.append(
            Text(f"matrix product {human_count(case['matmul']['flops_per_s'])}FLOP/s ({case['matmul']['what']}); "
                 f"median of {case['num_rounds']} rounds", style="dim")
        )  # fmt: skip
        parts += _warnings([case])
    return Group(*parts)


def _warnings(cases: list[dict[str, Any]]) -> list[Text]:
    return [
        Text(f"warning: {case['network']}: {warning}", style="yellow")
        for case in cases
        for warning in case.get("warnings", ())
    ]


def _contenders(case: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    middle = "as ours\nin fp32" if has_answers(case) else ""  # or bars, which the plot has, too
    for heading in ("images/s", middle, "ms, min\nquartiles", "FLOP/s\nof matmul", "peak\nMiB", "ours is\nquartiles"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    rows = [row for row in case["contenders"] if "problem" not in row]
    fastest = max(row["images_per_s"] for row in rows)
    for row in rows:
        call = row["call_s"]
        memory, faster = row["peak_memory_mib"], row.get("ours_is_faster")
        bar = Text("█" * max(1, round(BAR_WIDTH * row["images_per_s"] / fastest)), style="blue")
        name = Text(short_name(row), style="bold" if row["name"] == OURS else "")
        if "precision" in row and not row["name"].endswith(row["precision"]):
            name.append(f"\n{row['precision']}", style="dim")
        table.add_row(
            name,
            human_number(row["images_per_s"], 4),
            answers_text(row) if middle else bar,
            f"{_ms(call, 'median')}, {_ms(call, 'min')}\n{_ms(call, 'quartile1')}-{_ms(call, 'quartile3')}",
            f"{human_count(row['flops_per_s'])}\n{100 * row['share_of_matmul']:.0f} %",
            "-" if memory is None else f"{memory:,.0f}",
            f"{faster['median']:.2f} x\n{quartiles(faster, '.2f', between='-')}" if faster else "",
        )
    return table


def _ms(spread: dict[str, float], name: str, digits: int = 3) -> str:
    return human_number(1000 * spread[name], digits)


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
        table.add_row(row["name"], f"{stepped['median']:.1f}", quartiles(stepped, ".1f", between="-"),
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
        ms = 1000 * row["call_s"]["median"]
        table.add_row(
            f"{case['network']}\n{case['precision']}",
            f"{error[0]:.2f} %" if error else "-",
            f"{case['paper_ms']:g}",
            f"{case['paper_ms'] / cases[-1]['paper_ms']:.2f}",
            f"{human_number(ms, 4)}\n{_ms(row['call_s'], 'quartile1', 4)}-{_ms(row['call_s'], 'quartile3', 4)}",
            f"{ms / last_ms:.2f}",
            f"{100 * row['share_of_matmul']:.0f} %",
        )
    return table
