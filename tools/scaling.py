"""Write the tables of docs/scaling.md: what the paper's tables cost on one, 8 and 64 GPUs, and on measured CPUs.

python tools/scaling.py           write them
python tools/scaling.py --check   exit 1 if they are not what is computed

Operations are counted by the code that trains (`experiments.estimate`). Speeds of GPUs are assumptions until a record
in results/speed/ has one; speeds of CPUs are those of the records.
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pages import ROOT, between, write_or_check
from wideresnet.base.format import human_count
from wideresnet.data import FACTS, Dataset
from wideresnet.data.dataset import ImageSet
from wideresnet.data.facts import SVHN_WITH_EXTRA
from wideresnet.experiments.estimate import count_work
from wideresnet.experiments.plan import expand
from wideresnet.experiments.reproduce import list_tasks
from wideresnet.report.environment import hardware_text
from wideresnet.spec.exhibits import ERROR_FIELDS

BEGIN, END = "<!-- costs: made by tools/scaling.py -->", "<!-- end of costs -->"
CPU_BEGIN, CPU_END = "<!-- CPUs: made by tools/scaling.py -->", "<!-- end of CPUs -->"

EXHIBITS = ("table4", "table5", "table6")
NUM_SEEDS = 5
NUM_GPUS = (1, 8, 64)

ASSUMED_TFLOPS = (25, 100, 400)
"""Sustained speed of a run on one GPU, TFLOP/s. Assumptions, to be scaled by what `wrn bench train` measures."""

HOUR_S = 3600


@dataclass(frozen=True)
class Runs:
    """Runs in the order in which they are trained.

    Attributes:
        label: of the exhibit.
        names: of the runs; equal names are one run.
        flops: name -> operations, see `estimate.Work`.
        longest: what the longest run trains.
    """

    label: str
    names: tuple[str, ...]
    flops: Mapping[str, float]
    longest: str

    @property
    def total(self) -> float:
        return sum(self.flops[name] for name in self.names)

    @property
    def most(self) -> float:
        return max(self.flops[name] for name in self.names)


def stand_in(name: str) -> Dataset:
    """Return a data set of the published counts and sizes, whose pixels take no memory."""
    facts = SVHN_WITH_EXTRA if name == "svhn" else FACTS[name]
    side, channels = facts.image_size, facts.channels
    train, test = (
        ImageSet(np.broadcast_to(np.uint8(0), (num, side, side, channels)), np.broadcast_to(np.int64(0), (num,)))
        for num in (facts.num_train, facts.num_test)
    )
    return Dataset(name, name, train, test, facts.class_names, facts, ())


def count_runs() -> list[Runs]:
    """Count the operations of each exhibit, and of all together, without those that two exhibits share."""
    datasets = {name: stand_in(name) for name in ERROR_FIELDS}
    todos = [list_tasks(expand(exhibit, {}), dict.fromkeys(datasets, ""), NUM_SEEDS) for exhibit in EXHIBITS]
    tasks = {task.name: task for todo in todos for task in todo.all()}
    flops = {name: work.flops for name, work in count_work(list(tasks.values()), datasets).items()}
    labels = {
        task.name: f"{cell.label} on {cell.dataset}"
        for todo in todos
        for cell, of_cell in todo.tasks
        for task in of_cell
    }
    parts = [(f"Table {todo.expansion.name[-1]}", [task.name for task in todo.all()]) for todo in todos]
    return [_runs(label, names, flops, labels) for label, names in [*parts, ("all three", list(tasks))]]


def _runs(label: str, names: Sequence[str], flops: Mapping[str, float], labels: Mapping[str, str]) -> Runs:
    return Runs(label, tuple(names), flops, labels[max(names, key=lambda name: flops[name])])


def makespan(work: Sequence[float], num_workers: int) -> float:
    """Return when the last of several jobs ends, if each worker takes the next job as soon as it is free.

    Args:
        work: duration of each job, in the order in which they are taken; any unit.
        num_workers: how many work at the same time.
    """
    free_at = [0.0] * num_workers
    for each in work:
        heapq.heappush(free_at, heapq.heappop(free_at) + each)
    return max(free_at)


def gpu_tables(counted: Sequence[Runs]) -> str:
    """Write a row per exhibit at one assumed speed, and a row per assumed speed for all exhibits."""
    middle = ASSUMED_TFLOPS[1]
    headings = [f"{num} GPU{'s' * (num > 1)}" for num in NUM_GPUS]
    rows = [
        _row("", "runs", "operations", "longest run", *(f"{heading}, hours" for heading in headings)),
        "|---" * (4 + len(NUM_GPUS)) + "|",
    ]
    for runs in counted:
        work = [runs.flops[name] for name in runs.names]
        hours = [_hours(makespan(work, num), middle) for num in NUM_GPUS]
        longest = f"{runs.longest}: {human_count(runs.most)}FLOP"
        rows.append(_row(runs.label, len(runs.names), f"{human_count(runs.total)}FLOP", longest, *hours))
    together = counted[-1]
    work = [together.flops[name] for name in together.names]
    speeds = [
        _row("assumed speed of each GPU", *(f"{heading}, hours" for heading in headings), "longest run, hours"),
        "|---" * (2 + len(NUM_GPUS)) + "|",
    ]
    for tflops in ASSUMED_TFLOPS:
        hours = [_hours(makespan(work, num), tflops) for num in NUM_GPUS]
        speeds.append(_row(f"{tflops} TFLOP/s", *hours, _hours(together.most, tflops)))
    best = max(together.total / NUM_GPUS[-1], together.most)
    return "\n\n".join(
        [
            f"**Assumption: {middle} TFLOP/s sustained on each GPU, one run per GPU.** Not measured; hours at another "
            "speed are inversely proportional.",
            "\n".join(rows),
            f"All three tables together, {len(together.names)} runs, by assumed speed:",
            "\n".join(speeds),
            f"On {NUM_GPUS[-1]} GPUs no order of the runs could take less than {_hours(best, middle)} hours at "
            f"{middle} TFLOP/s: the larger of an even share of the work and of the longest run. Runs start seed by "
            "seed, so that early results are of all cells; that order is what the table has.",
        ]
    )


def cpu_table(counted: Sequence[Runs]) -> str:
    """Write a row per network and machine whose training speed is on record."""
    total = counted[-1].total
    rows = [
        "| machine | measured on | operations per second, measured | all three tables, years |",
        "|---|---|---|---|",
    ]
    for path in sorted((ROOT / "results" / "speed").glob("*/bench.json")):
        record = json.loads(path.read_text())
        if record["job"] != "train":
            continue
        for case in record["cases"]:
            (ours,) = [row for row in case["contenders"] if row["name"] == "wideresnet"]
            years = total / ours["flops_per_s"] / HOUR_S / 24 / 365
            link = f"[{case['network']}, batch {case['batch_size']}](../{path.relative_to(ROOT).as_posix()})"
            rows.append(_row(hardware_text(record["env"]), link, f"{human_count(ours['flops_per_s'])}FLOP/s",
                             f"{years:,.1f}"))  # fmt: skip
    return "\n".join(rows)


def _hours(flops: float, tflops: float) -> str:
    hours = flops / (tflops * 1e12) / HOUR_S
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def main() -> int:
    """Write or check the page."""
    counted, page = count_runs(), ROOT / "docs" / "scaling.md"
    text = between(page.read_text(), BEGIN, END, gpu_tables(counted))
    return write_or_check({page: between(text, CPU_BEGIN, CPU_END, cpu_table(counted))}, "results/speed/")


if __name__ == "__main__":
    sys.exit(main())
