"""`wrn bench train` and `wrn bench infer`: from the request to the record."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.bench.answers import compare_answers
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import Contender, make_contender
from wideresnet.bench.measure import TURN_S, WARM_UP_S, Lane, attempt, matmul_contender, num_rounds, take_turns
from wideresnet.bench.memory import PeakMemory, memory_in_own_process
from wideresnet.bench.peers import check_peer
from wideresnet.bench.plots import write_plot
from wideresnet.bench.summary import case_document
from wideresnet.bench.trained import are_weights, data_for, read_trained
from wideresnet.bench.words import ENGINES, OURS, OURS_BF16, OURS_INT8
from wideresnet.machine.cpu import BF16_FLAGS, cpu_flags
from wideresnet.machine.description import describe
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.machine.memory import reset_peak_memory
from wideresnet.spec.names import parse
from wideresnet.spec.published import FIGURE4_BATCH_SIZE, FIGURE4_MS
from wideresnet.spec.record import write_json

RECORD, PLOT = "bench.json", "bench.png"

BATCH_SIZES = {"train": (128,), "infer": (1, 64)}
"""The default: for training the paper's; for inference one image, and enough images to fill a processor."""


@dataclass(frozen=True)
class Settings:
    """Where and how long to measure.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" to measure that too.
        num_threads: threads of the CPU.
        repeats: number of rounds, at most.
        seconds: duration of the rounds of a network and batch size, at most; three rounds are run however long they
            take.
    """

    device: str
    precision: str
    num_threads: int
    repeats: int
    seconds: float


@dataclass(frozen=True)
class Method:
    """How to measure. The defaults are what `wrn bench` does; a test measures less, or something else.

    Attributes:
        turn_s: duration of a turn, at least.
        warm_up_s: duration of a contender's warm-up, at least.
        matmul_side: rows and columns of the matrices of the matrix product; None for what suits the device.
        make: builds a contender from its name and case.
        memory: measures the peak memory of a contender on the CPU in MiB, from its name and case; None if unknown.
    """

    turn_s: float = TURN_S
    warm_up_s: float = WARM_UP_S
    matmul_side: int | None = None
    make: Callable[[str, Case], Contender] = make_contender
    memory: Callable[[str, Case], float | None] = memory_in_own_process


USUAL = Method()


def run_bench(
    job: str,
    networks: Sequence[str],
    out: Path,
    *,
    batch_sizes: Sequence[int] = (),
    against: Sequence[str] = (),
    family: str | None = None,
    data: str | None = None,
    int8: bool = False,
    command: str | None = None,
    method: Method = USUAL,
    **machine: Any,
) -> dict[str, Any]:
    """Measure networks together with other implementations, in one process. The record is written after every case.

    Args:
        job: "train" or "infer".
        networks: names, of networks with random weights; for "infer" also trained weights, as for `read_weights`.
        out: folder for `bench.json` and `bench.png`.
        batch_sizes: images per step; empty for 128 (train), or 1 and 64 (infer).
        against: "plain"; "torchvision", "timm", "pytorchcv" or "module:callable", which may be followed by "+careful";
            for "infer" also `ENGINES`, with ours in the precision of each.
        family: of names that both families have.
        data: images for trained weights, as for `load_dataset`; None for those of their runs.
        int8: measure this package's networks in int8 as well; "infer" only.
        command: the command line that was typed, for the record; None if there was none.
        method: how to measure.
        machine: as for `settled`.

    Returns:
        What `bench.json` holds.

    Raises:
        UsageError: the network or implementation is unknown, weights and data do not fit, or the folder is used.
    """
    peers = list(dict.fromkeys(against))
    for size in batch_sizes:
        if size < 1:
            raise UsageError(f"batch_size={size}: must be at least 1")
    check_free(out)
    for peer in peers:
        check_peer(peer)
        if job == "train" and peer in ENGINES:
            raise UsageError(f"against={peer}: an engine for inference, which does not train; use wrn bench infer")
    subjects = dict.fromkeys(_subject(job, network, family, data) for network in networks)
    if data is not None and not any(subject.weights for subject in subjects):
        raise UsageError(f"data={data}: is for trained weights, and none are named; leave it out")
    with settled(**machine) as settings:
        document = start_document(job, settings, command)
        precisions = {ENGINES[peer] for peer in peers if peer in ENGINES}
        bf16 = settings.precision == "bf16" or ("bf16" in precisions and bool(BF16_FLAGS & cpu_flags()))
        lower = [OURS_BF16] * bf16 + [OURS_INT8] * (int8 or "int8" in precisions)
        contenders = [OURS, *lower, *peers]
        for subject in subjects:
            for size in batch_sizes or BATCH_SIZES[job]:
                case = Case(
                    job, subject.network, subject.family, size, settings.device, "fp32", settings.num_threads,
                    subject.weights, subject.data,
                )  # fmt: skip
                document["cases"] += _measure([(case, contenders)], settings, method)
                write_record(document, out)
    return document


@dataclass(frozen=True)
class _Subject:
    """What is measured: a network, and its trained weights with their data, if there are any."""

    network: str
    family: str
    weights: str | None = None
    data: str | None = None


def _subject(job: str, network: str, family: str | None, data: str | None) -> _Subject:
    """Read a word of the command line: trained weights, or the name of a network."""
    if job == "infer" and are_weights(network):
        data = data_for(network, data)
        name = read_trained(network, data).weights.network.name
        return _Subject(str(name), name.family, network, data)
    name = parse(network, family)
    return _Subject(str(name), name.family)


def run_figure4(
    out: Path,
    *,
    paper_ms: Mapping[str, float] = FIGURE4_MS,
    batch_size: int = FIGURE4_BATCH_SIZE,
    command: str | None = None,
    method: Method = USUAL,
    **machine: Any,
) -> dict[str, Any]:
    """Repeat the paper's Figure 4 on this machine: a training step of its five networks, in turns.

    Args:
        out: folder for `bench.json` and `bench.png`.
        paper_ms: the networks, with the milliseconds that each took in the paper.
        batch_size: images per step.
        command: the command line that was typed, for the record; None if there was none.
        method: how to measure.
        machine: as for `settled`.

    Returns:
        What `bench.json` holds; each case has the paper's `paper_ms`.

    Raises:
        UsageError: the folder is used.
    """
    check_free(out)
    with settled(**machine) as settings:
        document = start_document("figure4", settings, command)
        cases = [
            Case("train", network, "cifar", batch_size, settings.device, settings.precision, settings.num_threads)
            for network in paper_ms
        ]
        measured = _measure([(case, [OURS]) for case in cases], settings, method)
        document["cases"] = [{**case, "paper_ms": paper_ms[case["network"]]} for case in measured]
        write_record(document, out)
    return document


@contextmanager
def settled(
    *, device: str = "auto", precision: str = "auto", threads: int | None = None, repeats: int = 20,
    seconds: float = 60.0,
) -> Iterator[Settings]:  # fmt: skip
    """Apply what is asked of the machine, and restore PyTorch's settings afterwards.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        precision: "fp32", "bf16" to measure this package's network (and careful others) in bf16 too, or "auto" for
            fp32, in which the paper trains and users of other implementations run them.
        threads: threads of the CPU; None leaves them to PyTorch.
        repeats: number of rounds, at most.
        seconds: duration of the rounds of a network and batch size, at most.

    Raises:
        UsageError: a number is too small, or the device does not exist.
    """
    for name, value, low in (
        ("threads", 1 if threads is None else threads, 1),
        ("repeats", repeats, 1),
        ("seconds", seconds, 0),
    ):
        if not low <= value < float("inf"):
            raise UsageError(f"{name}={value}: must be at least {low}")
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    device = pick_device(device)
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True  # the published training scripts set it
        precision = "fp32" if precision == "auto" else pick_precision(precision, device)
        yield Settings(device, precision, torch.get_num_threads(), repeats, seconds)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]


def check_free(out: Path) -> None:
    """Refuse a folder that holds a record, or a path that is not a folder."""
    if (out / RECORD).exists():
        raise UsageError(f"out={out}: holds {RECORD} already; choose another out=")
    if out.exists() and not out.is_dir():
        raise UsageError(f"out={out}: exists and is not a folder; choose another out=")


def start_document(job: str, settings: Settings, command: str | None) -> dict[str, Any]:
    """Make the record without its cases.

    Args:
        job: "train", "infer", "start" or "figure4".
        settings: of the machine.
        command: the command line that was typed; None if there was none.
    """
    return {
        "job": job,
        "env": describe(settings.device, command),
        "load_average": round(os.getloadavg()[0], 2),
        "cases": [],
    }


def write_record(document: dict[str, Any], out: Path) -> None:
    """Write the record and its plot."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, document)
    write_plot(document, out / PLOT)


def _measure(entries: Sequence[tuple[Case, Sequence[str]]], settings: Settings, method: Method) -> list[dict[str, Any]]:
    """Measure cases in common rounds: the contenders of all cases and the matrix product take turns."""
    label = entries[0][0].network if len(entries) == 1 else "figure 4"
    if len(entries) == 1:
        label += f", batch {entries[0][0].batch_size}"
    with progress.task(label, fields=("what",)) as task:
        return _measure_in_rounds(entries, settings, method, task)


def _measure_in_rounds(
    entries: Sequence[tuple[Case, Sequence[str]]], settings: Settings, method: Method, task: progress.Task
) -> list[dict[str, Any]]:
    def tell(what: str) -> None:
        task.update(what=what)

    gc.collect()
    reset_peak_memory(settings.device)  # also returns the heap of the case before, whose fragments would slow this one
    entered: list[tuple[Case, list[Lane]]] = []
    for case, names in entries:
        entered.append((case, [_enter(name, _case_of(name, case, settings), method, tell) for name in names]))
    products, flops = dict[str, Lane](), 0
    for precision in dict.fromkeys(lane.contender.precision for _, lanes in entered for lane in lanes):
        if precision == "int8":  # compared with the product in fp32
            continue
        product, flops = matmul_contender(settings.device, precision, settings.num_threads, method.matmul_side)
        products[precision] = Lane(product)
        products[precision].warm_up(settings.device, turn_s=method.turn_s, warm_up_s=method.warm_up_s)
    lanes = [lane for _, case_lanes in entered for lane in case_lanes]
    running = [*(lane for lane in lanes if not lane.problem), *products.values()]
    rounds = num_rounds(running, settings.repeats, settings.seconds * len(entries))
    task.update(total=rounds * sum(lane.turn_s for lane in running), what=f"{rounds} rounds")
    take_turns(running, rounds, settings.device, advance=lambda seconds: task.update(advance=seconds))
    documents = []
    for case, case_lanes in entered:
        tell("comparing answers")
        compare_answers(case, case_lanes)
        _measure_memory(case, case_lanes, settings, method, tell)
        documents.append(case_document(case, case_lanes, products, flops))
    task.update(what=f"{rounds} rounds")
    return documents


def _enter(name: str, case: Case, method: Method, tell: Callable[[str], None]) -> Lane:
    """Build a contender and warm it up. On a GPU also measure its memory, for which all can share a process."""
    tell(f"warming up {name}")
    nobody = Contender(name, "", lambda: None, case.num_threads)
    lane = Lane(nobody, may_fail=name != OURS)

    def build_and_warm_up() -> None:
        peak = PeakMemory(case.device) if case.device == "cuda" else None
        lane.contender = method.make(name, case)
        after_first = peak.restart if peak else lambda: None
        lane.warm_up(case.device, after_first=after_first, turn_s=method.turn_s, warm_up_s=method.warm_up_s)
        if peak:
            lane.peak_memory_mib = peak.mib()
        if lane.contender.parts:
            lane.contender.parts()  # creates its data, which must not count as memory of a step

    attempt(lane, build_and_warm_up)
    return lane


def _case_of(name: str, case: Case, settings: Settings) -> Case:
    """Return the case as a contender gets it: in the precision that was asked for, of which careful others make use."""
    return case if name == OURS else dataclasses.replace(case, precision=settings.precision)


def _measure_memory(
    case: Case, lanes: Sequence[Lane], settings: Settings, method: Method, tell: Callable[[str], None]
) -> None:
    """On a CPU, measure each contender's peak."""
    if case.device != "cpu":
        return
    for lane in lanes:
        if not lane.problem:
            name = lane.contender.name
            tell(f"memory of {name}, {case.network}")
            lane.peak_memory_mib = method.memory(name, _case_of(name, case, settings))
