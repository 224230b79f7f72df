"""`wrn bench train` and `wrn bench infer`: from the request to the record."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from wideresnet.base.console import bar
from wideresnet.base.errors import UsageError
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import Contender, make_contender
from wideresnet.bench.measure import Lane, attempt, matmul_contender, num_rounds, take_turns
from wideresnet.bench.memory import PeakMemory, memory_in_own_process
from wideresnet.bench.peers import check_peer
from wideresnet.bench.plots import write_plot
from wideresnet.bench.summary import case_document
from wideresnet.bench.words import OURS, OURS_INT8
from wideresnet.machine.description import describe
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.machine.memory import reset_peak_memory
from wideresnet.spec.names import parse
from wideresnet.spec.published import FIGURE4_BATCH_SIZE, FIGURE4_MS
from wideresnet.spec.record import write_json

RECORD, PLOT = "bench.json", "bench.png"

BATCH_SIZES = {"train": (128,), "infer": (1, 64)}
"""Without --batch-size: the paper's for training; one image, and enough to fill a processor, for inference."""


@dataclass(frozen=True)
class Settings:
    """Where and how long to measure.

    Attributes:
        device: "cpu" or "cuda".
        precision: of this package's networks: "fp32", "bf16", or "auto" for what is fastest.
        num_threads: threads of the CPU.
        repeats: rounds at most.
        seconds: of timing that a network and batch size may take; three rounds are made whatever they take.
    """

    device: str
    precision: str
    num_threads: int
    repeats: int
    seconds: float


def run_bench(
    job: str,
    networks: Sequence[str],
    out: Path,
    *,
    batch_sizes: Sequence[int] = (),
    against: Sequence[str] = (),
    family: str | None = None,
    int8: bool = False,
    **machine: Any,
) -> dict[str, Any]:
    """Measure networks, each beside other implementations in this process; the record grows with every case.

    Args:
        job: "train" or "infer".
        networks: names.
        out: folder for `bench.json` and `bench.png`.
        batch_sizes: images a step; none for 128 (train), or 1 and 64 (infer).
        against: "plain"; "torchvision", "timm", "pytorchcv" or "module:callable", these also with "+careful" behind.
        family: for names that both families have.
        int8: measure this package's networks in 8 bits too; "infer" only.
        machine: as for `settled`.

    Returns:
        What `bench.json` holds.

    Raises:
        UsageError: an unknown network or implementation, or a used folder.
    """
    names = [parse(network, family) for network in networks]
    peers = list(dict.fromkeys(against))
    contenders = [OURS, OURS_INT8, *peers] if int8 else [OURS, *peers]
    for size in batch_sizes:
        if size < 1:
            raise UsageError(f"--batch-size {size}: must be at least 1")
    check_free(out)
    for peer in peers:
        check_peer(peer)
    with settled(**machine) as settings, bar("{task.fields[what]}") as progress:
        document = start_document(job, settings)
        for name in dict.fromkeys(names):
            for size in batch_sizes or BATCH_SIZES[job]:
                case = Case(
                    job, str(name), name.family, size, settings.device, settings.precision, settings.num_threads
                )
                document["cases"] += _measure([(case, contenders)], settings, progress)
                write_record(document, out)
    return document


def run_figure4(out: Path, **machine: Any) -> dict[str, Any]:
    """Repeat the paper's Figure 4 on this machine: a training step of its five networks, in turns.

    Args:
        out: folder for `bench.json` and `bench.png`.
        machine: as for `settled`.

    Returns:
        What `bench.json` holds; each case with the paper's `paper_ms`.
    """
    check_free(out)
    with settled(**machine) as settings, bar("{task.fields[what]}") as progress:
        document = start_document("figure4", settings)
        cases = [
            Case("train", network, "cifar", FIGURE4_BATCH_SIZE, settings.device, settings.precision,
                 settings.num_threads)
            for network in FIGURE4_MS
        ]  # fmt: skip
        measured = _measure([(case, [OURS]) for case in cases], settings, progress)
        document["cases"] = [{**case, "paper_ms": FIGURE4_MS[case["network"]]} for case in measured]
        write_record(document, out)
    return document


@contextmanager
def settled(
    *, device: str = "auto", precision: str = "auto", num_threads: int | None = None, repeats: int = 20,
    seconds: float = 60.0,
) -> Iterator[Settings]:  # fmt: skip
    """What is wanted of the machine, made definite; PyTorch's own settings are as before afterwards.

    Raises:
        UsageError: a number that is too small, or a device that is not there.
    """
    for flag, value, low in (
        ("--threads", 1 if num_threads is None else num_threads, 1),
        ("--repeats", repeats, 1),
        ("--seconds", seconds, 0),
    ):
        if not low <= value < float("inf"):
            raise UsageError(f"{flag} {value}: must be at least {low}")
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    device = pick_device(device)
    try:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        torch.backends.cudnn.benchmark = True  # the published training scripts set it
        if precision != "auto":
            precision = pick_precision(precision, device)
        yield Settings(device, precision, torch.get_num_threads(), repeats, seconds)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]


def check_free(out: Path) -> None:
    """Refuse a folder that holds a record, or something else in its place."""
    if (out / RECORD).exists():
        raise UsageError(f"--out {out}: holds {RECORD} already; choose another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: exists and is not a folder; choose another --out")


def start_document(job: str, settings: Settings) -> dict[str, Any]:
    """The record without its cases."""
    return {
        "job": job,
        "env": describe(settings.device),
        "load_average": round(os.getloadavg()[0], 2),
        "cases": [],
    }


def write_record(document: dict[str, Any], out: Path) -> None:
    """Write the record and its picture."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, document)
    write_plot(document, out / PLOT)


def _measure(
    entries: Sequence[tuple[Case, Sequence[str]]], settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Measure cases in common rounds: all contenders of all of them, and the matrix product, take turns."""
    label = entries[0][0].network if len(entries) == 1 else "figure 4"
    if len(entries) == 1:
        label += f", batch {entries[0][0].batch_size}"
    task = progress.add_task(label, total=None, what="")

    def tell(what: str) -> None:
        progress.update(task, what=what)

    gc.collect()
    reset_peak_memory(settings.device)  # the heap that the case before left in pieces would slow this one
    entered: list[tuple[Case, list[Lane]]] = []
    for asked, (ours, *others) in entries:
        first = _enter(ours, asked, tell)
        case = dataclasses.replace(asked, precision=first.contender.precision)  # which careful others take over
        entered.append((case, [first, *(_enter(name, case, tell) for name in others)]))
    products, flops = dict[str, Lane](), 0
    for precision in dict.fromkeys(case.precision for case, _ in entered):
        product, flops = matmul_contender(settings.device, precision, settings.num_threads)
        products[precision] = Lane(product)
        products[precision].warm_up(settings.device)
    lanes = [lane for _, case_lanes in entered for lane in case_lanes]
    running = [*(lane for lane in lanes if not lane.problem), *products.values()]
    rounds = num_rounds(running, settings.repeats, settings.seconds * len(entries))
    progress.update(task, total=rounds * sum(lane.turn_s for lane in running), what=f"{rounds} rounds")
    take_turns(running, rounds, settings.device, advance=lambda seconds: progress.advance(task, seconds))
    documents = []
    for (asked, _), (case, case_lanes) in zip(entries, entered, strict=True):
        _measure_memory(asked, case, case_lanes, tell)
        documents.append(case_document(case, case_lanes, products[case.precision], flops))
    progress.update(task, what=f"{rounds} rounds")
    return documents


def _enter(name: str, case: Case, tell: Callable[[str], None]) -> Lane:
    """Build a contender, warm it up, and on a GPU measure its memory, for which all can share a process."""
    tell(f"warming up {name}")
    nobody = Contender(name, "", lambda: None, case.num_threads)
    lane = Lane(nobody, may_fail=name != OURS)

    def build_and_warm_up() -> None:
        peak = PeakMemory(case.device)
        lane.contender = make_contender(name, case)
        if case.device == "cuda":
            lane.warm_up(case.device, after_first=peak.restart)
            lane.peak_memory_mib = peak.mib()
        else:
            lane.warm_up(case.device)
        if lane.contender.parts:
            lane.contender.parts()  # makes its data, which must not count above

    attempt(lane, build_and_warm_up)
    return lane


def _measure_memory(asked: Case, case: Case, lanes: Sequence[Lane], tell: Callable[[str], None]) -> None:
    """On a CPU, each contender's peak in a process of its own, where ours is asked as before, so that it runs alike."""
    if case.device != "cpu":
        return
    for lane in lanes:
        if not lane.problem:
            tell(f"memory of {lane.contender.name}, {case.network}")
            lane.peak_memory_mib = memory_in_own_process(
                lane.contender.name, asked if lane.contender.name == OURS else case
            )
