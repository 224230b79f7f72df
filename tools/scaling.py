"""Write the tables of docs/scaling.md: what the paper's tables cost on one, 8 and 64 GPUs, and on measured CPUs.

python tools/scaling.py           write them
python tools/scaling.py --check   exit 1 if they are not what is computed

Operations are counted by the code that trains (`experiments.estimate`); speeds are those of the records in
results/speed/.
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
from wideresnet.bench.words import OURS, OURS_BF16
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

TYPICAL = ("WRN-28-10", "fp32")
"""Whose speed on a GPU counts for all runs: wide networks have most of the operations; the paper's recipe is fp32."""

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


@dataclass(frozen=True)
class Speed:
    """A measured training speed of this package.

    Attributes:
        machine: in words.
        device: "cpu" or "cuda".
        network, precision: what was trained.
        link: to the record, Markdown.
        flops_per_s: operations of direct convolution.
    """

    machine: str
    device: str
    network: str
    precision: str
    link: str
    flops_per_s: float


def read_speeds() -> list[Speed]:
    """Read the training speeds of all records."""
    speeds = []
    for path in sorted((ROOT / "results" / "speed").glob("*/bench.json")):
        record = json.loads(path.read_text())
        for case in record["cases"] if record["job"] == "train" else ():
            link = f"[{case['network']}, batch {case['batch_size']}](../{path.relative_to(ROOT).as_posix()})"
            for row in case["contenders"]:
                if row["name"] in (OURS, OURS_BF16):
                    speeds.append(
                        Speed(
                            hardware_text(record["env"]), case["device"], case["network"],
                            row.get("precision", case["precision"]), link, row["flops_per_s"],
                        )
                    )  # fmt: skip
    return speeds


def gpu_tables(counted: Sequence[Runs], speeds: Sequence[Speed]) -> str:
    """Write a row per exhibit at one measured speed, and a row per measured speed for all exhibits."""
    measured = sorted((speed for speed in speeds if speed.device == "cuda"), key=lambda speed: speed.flops_per_s)
    (typical,) = [speed for speed in measured if (speed.network, speed.precision) == TYPICAL]
    middle = typical.flops_per_s
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
    others = [
        _row("measured on", "in", "speed", *(f"{heading}, hours" for heading in headings), "longest run, hours"),
        "|---" * (4 + len(NUM_GPUS)) + "|",
    ]
    for speed in measured:
        hours = [_hours(makespan(work, num), speed.flops_per_s) for num in NUM_GPUS]
        rate = f"{human_count(speed.flops_per_s)}FLOP/s"
        others.append(_row(speed.link, speed.precision, rate, *hours, _hours(together.most, speed.flops_per_s)))
    best = max(together.total / NUM_GPUS[-1], together.most)
    return "\n\n".join(
        [
            f"**{typical.machine}, one run per GPU, each at the {human_count(middle)}FLOP/s of {typical.link} in "
            f"{typical.precision}.** Hours at another speed are inversely proportional.",
            "\n".join(rows),
            f"All three tables together, {len(together.names)} runs, if all reached one of the measured speeds:",
            "\n".join(others),
            f"On {NUM_GPUS[-1]} GPUs no order of the runs could take less than {_hours(best, middle)} hours at "
            f"{human_count(middle)}FLOP/s: the larger of an even share of the work and of the longest run. Runs start "
            "seed by seed, so that early results are of all cells; that order is what the table has.",
        ]
    )


def cpu_table(counted: Sequence[Runs], speeds: Sequence[Speed]) -> str:
    """Write a row per network and CPU whose training speed is on record."""
    total = counted[-1].total
    rows = [
        "| machine | measured on | operations per second, measured | all three tables, years |",
        "|---|---|---|---|",
    ]
    for speed in speeds:
        if speed.device == "cpu" and speed.precision == "fp32":
            years = total / speed.flops_per_s / HOUR_S / 24 / 365
            rows.append(_row(speed.machine, speed.link, f"{human_count(speed.flops_per_s)}FLOP/s", f"{years:,.1f}"))
    return "\n".join(rows)


def _hours(flops: float, flops_per_s: float) -> str:
    hours = flops / flops_per_s / HOUR_S
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def main() -> int:
    """Write or check the page."""
    counted, speeds, page = count_runs(), read_speeds(), ROOT / "docs" / "scaling.md"
    text = between(page.read_text(), BEGIN, END, gpu_tables(counted, speeds))
    return write_or_check({page: between(text, CPU_BEGIN, CPU_END, cpu_table(counted, speeds))}, "results/speed/")


if __name__ == "__main__":
    sys.exit(main())
