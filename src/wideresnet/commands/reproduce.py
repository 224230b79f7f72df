"""`wrn reproduce`: train what a table or figure of the paper reports, and compare."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes, human_count, human_seconds
from wideresnet.commands.console import print_line
from wideresnet.commands.verbs import add_machine_flags, add_track_flag, add_verb, runs_folder, say, show, typed
from wideresnet.kernels.library import start_build
from wideresnet.spec.exhibits import ERROR_FIELDS, exhibit_name
from wideresnet.spec.files import read_json

if TYPE_CHECKING:
    from wideresnet.data import Dataset
    from wideresnet.experiments.estimate import Estimate
    from wideresnet.experiments.plan import Expansion
    from wideresnet.experiments.reproduce import Todo
    from wideresnet.experiments.store import Store

ALL = "all"


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    reproduce = add_verb(
        verbs, "reproduce", run, "train what a table or figure of the paper reports, and compare",
        "wrn reproduce table3 --data path/to/cifar10 --seeds 2 --scale 0.1",
    )  # fmt: skip
    reproduce.add_argument("exhibit", help="table2 to table6, table9, figure2 to figure4, or all; wrn paper lists them")
    reproduce.add_argument(
        "--data", nargs="+", action="extend", default=[], metavar="D",
        help="paths of CIFAR-10, CIFAR-100 or SVHN, which are recognized; those not given are downloaded",
    )  # fmt: skip
    reproduce.add_argument("--dataset", nargs="+", metavar="NAME", help="only cifar10, cifar100 or svhn")
    reproduce.add_argument("--network", nargs="+", metavar="NAME", help="only these networks")
    reproduce.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 of each number (5)")
    reproduce.add_argument(
        "--scale", type=float, default=1.0, metavar="F",
        help="share of the paper's epochs, for machines that are too slow for all; its numbers are marked (1)",
    )  # fmt: skip
    reproduce.add_argument(
        "--width", type=float, metavar="K", help="another widening factor for all networks, likewise marked"
    )
    reproduce.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="runs that train at once (1, or one per GPU; on a cluster as many as fit)",
    )
    reproduce.add_argument(
        "--on", choices=("local", "ray"), default="local",
        help="this machine (local), or the Ray cluster of $RAY_ADDRESS or of this machine; all its nodes must see "
        "--out, which holds the checkpoints, and the data under the same paths",
    )  # fmt: skip
    reproduce.add_argument(
        "--cpus-each", type=int, metavar="N",
        help="with --on ray: CPUs, and so threads, of each run (1; with GPUs, its part of the node's)",
    )  # fmt: skip
    reproduce.add_argument(
        "--gpus-each", type=float, metavar="F",
        help="with --on ray: GPUs of each run; with 0.5, two runs share one (1 if there are any)",
    )  # fmt: skip
    add_machine_flags(reproduce)
    add_track_flag(reproduce, ", each run by itself")
    reproduce.add_argument("--collect", action="store_true", help="train nothing; compare what is there")
    reproduce.add_argument("--merge", type=Path, metavar="DIR", help="first copy what another --out has")
    reproduce.add_argument("--yes", action="store_true", help="start without asking")
    reproduce.add_argument(
        "--out", type=Path, help="folder of all reproductions (default: $WRN_RUNS or runs/, then reproduce)"
    )
    reproduce.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (60)"
    )


def run(args: argparse.Namespace) -> None:
    """Show the cost, ask, train what is missing, compare."""
    for name in ("seeds", "at_once"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise UsageError(f"{name}={number}: must be at least 1")
    for name in ("cpus_each", "gpus_each"):
        if (number := getattr(args, name)) is not None and args.on != "ray":
            raise UsageError(f"{name}={number:g}: is for a cluster; add on='ray'")
    if args.track:
        from wideresnet.training.track import check_tracker

        check_tracker(args.track)
    name = ALL if args.exhibit.lower() == ALL else exhibit_name(args.exhibit)
    out = args.out or runs_folder() / "reproduce"
    if name == "figure4":
        _measure_figure4(args, out)
        return
    from wideresnet.experiments.store import Store

    store = Store(out)
    if args.merge:
        new = store.merge(args.merge)
        print_line(f"{args.merge}: {len(new)} runs copied")
    start_build()
    given = {dataset.name: dataset for dataset in map(_recognized, args.data)}
    expansions = _expand(args, name, {name: _absolute(dataset.source) for name, dataset in given.items()})
    if args.collect:
        todos = [_todo(expansion, _digests(expansion, given, store), args.seeds) for expansion in expansions]
    else:
        todos = _train(args, expansions, given, store)
    _compare(args, todos, store)


def _expand(args: argparse.Namespace, name: str, sources: Mapping[str, str]) -> list[Expansion]:
    """Return the runs of an exhibit, or of all that have what is wanted."""
    from wideresnet.experiments.plan import expand, matching, offers

    # "auto" is decided by the recipe, not by the machine, whose choice would change what is compared
    changes = {"device": args.device} | ({} if args.precision == "auto" else {"precision": args.precision})
    expansions = []
    for each in matching(args.dataset, args.network) if name == ALL else [name]:
        datasets, networks = args.dataset, args.network
        if name == ALL:  # of what is wanted, what this one has
            datasets, networks = (
                wanted and [one for one in wanted if one in own]
                for wanted, own in zip((datasets, networks), offers(each), strict=True)
            )
        filters = {"datasets": datasets, "networks": networks, "scale": args.scale, "width": args.width}
        expansions.append(expand(each, sources, changes=changes, **filters))
    if not expansions:
        raise UsageError("no table or figure has such networks and data; wrn paper lists what each one has")
    return expansions


def _train(
    args: argparse.Namespace, expansions: Sequence[Expansion], given: Mapping[str, Dataset], store: Store
) -> list[Todo]:
    """Train what is missing of several exhibits, and return their runs."""
    from wideresnet.experiments.estimate import count_work, estimate
    from wideresnet.experiments.reproduce import train_all

    needed = dict.fromkeys(cell.dataset for expansion in expansions for cell in expansion.cells)
    datasets = {name: given[name] if name in given else _recognized(name) for name in needed}
    digests = {name: _digest(dataset) for name, dataset in datasets.items()}
    todos = [_todo(expansion, digests, args.seeds) for expansion in expansions]
    tasks = list({task.name: task for todo in todos for task in todo.all()}.values())
    missing = [task for task in tasks if store.state(task.name) not in ("finished", "failed")]
    if not missing:
        print_line(f"all {len(tasks)} runs have ended; nothing to train")
        return todos
    work = count_work(tasks, datasets)
    with _workers(args, store, [dataset.source for dataset in datasets.values()]) as workers:
        _ask(args, estimate(missing, datasets, work), store, len(tasks))
        del datasets  # their memory is for the workers
        train_all(
            store, tasks, work, checkpoint_every_s=args.checkpoint_every, track=args.track, command=typed(args),
            **workers,
        )  # fmt: skip
    return todos


@contextmanager
def _workers(args: argparse.Namespace, store: Store, sources: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `train_all` that say what starts the runs, how many at once, and the threads of each."""
    if args.on == "local":
        yield _here(args)
        return
    from wideresnet.experiments.cluster import connect

    paths = [path for path in map(Path, map(_absolute, sources)) if path.exists()]
    with connect(store.path, paths=paths, cpus_each=args.cpus_each, gpus_each=args.gpus_each) as cluster:
        print_line(cluster.text)
        # all others are queued, so that nodes that join later get some, too
        yield {"at_once": args.at_once or sys.maxsize, "num_threads": cluster.share.cpus, "start_worker": cluster.start}


def _compare(args: argparse.Namespace, todos: Sequence[Todo], store: Store) -> None:
    """Show the tables and write the pages of several exhibits."""
    from wideresnet.experiments.collect import collect
    from wideresnet.report.reproduction import write_reproduction

    documents = []
    for todo in todos:
        document = collect(store, todo)
        documents.append(document | {"files": [str(path) for path in write_reproduction(document, store.path)]})
    show(args, documents if args.exhibit.lower() == ALL else documents[0], render)
    if not args.json:
        for document in documents:
            say(f"page  {document['files'][0]}")


def _measure_figure4(args: argparse.Namespace, out: Path) -> None:
    """Figure 4 has no runs: its times are measured, once."""
    from wideresnet.bench.run import RECORD, run_figure4
    from wideresnet.commands.bench import render as render_bench

    record = out / "figure4" / RECORD
    if not record.is_file():
        if args.collect:
            raise UsageError(f"collect=True: {record} does not exist; leave out collect=True to measure")
        precision = "fp32" if args.precision == "auto" else args.precision
        run_figure4(record.parent, device=args.device, precision=precision, command=typed(args))
    show(args, read_json(record), render_bench)
    if not args.json:
        say(f"record {record}")


def _todo(expansion: Expansion, digests: Mapping[str, str], num_seeds: int) -> Todo:
    from wideresnet.experiments.reproduce import list_tasks

    return list_tasks(expansion, digests, num_seeds)


def _digests(expansion: Expansion, given: Mapping[str, Dataset], store: Store) -> dict[str, str]:
    """Return the digest of each data set: of the images that were given, else of those that runs here have seen."""
    digests = {}
    for name in dict.fromkeys(cell.dataset for cell in expansion.cells):
        seen = [_digest(given[name])] if name in given else store.digests(name)
        if len(seen) > 1:
            print_line(f"{name}: runs here were trained on {len(seen)} versions of its images; comparing those of "
                       f"{seen[0]}, which most runs have seen; choose with --data", style="yellow")  # fmt: skip
        digests[name] = seen[0] if seen else ""
    return digests


def _recognized(source: str) -> Dataset:
    from wideresnet.data.load import load_dataset

    dataset = load_dataset(source, extra_data=source == "svhn")
    if dataset.name not in ERROR_FIELDS:
        raise UsageError(
            f"data={source}: is not CIFAR-10, CIFAR-100 or SVHN, but {dataset.name}; the paper has no error for it"
        )
    return dataset


def _absolute(source: str) -> str:
    """Return the path of data so that it means the same in another folder; names of published sets stay."""
    path = Path(os.path.expanduser(source)).absolute()
    return str(path) if path.exists() else source


def _digest(dataset: Dataset) -> str:
    from wideresnet.data.dataset import digest

    return digest(dataset.train, dataset.test)


def _here(args: argparse.Namespace) -> dict[str, Any]:
    """Return how runs are started on this machine: one at a time, or one on each GPU."""
    from wideresnet.experiments.process import OverGPUs
    from wideresnet.machine.device import visible_gpus

    gpus = [] if args.device == "cpu" else visible_gpus()
    at_once = args.at_once or max(1, len(gpus))
    return {"at_once": at_once, "num_threads": _threads_each(at_once)} | (
        {"start_worker": OverGPUs(gpus)} if len(gpus) > 1 else {}
    )


def _threads_each(at_once: int) -> int | None:
    """Return the threads of each of several runs; None for all of them."""
    if at_once == 1:
        return None
    import torch

    return max(1, torch.get_num_threads() // at_once)


def _ask(args: argparse.Namespace, cost: Estimate, store: Store, total: int) -> None:
    """Show what the missing runs cost, and go on if that is wanted."""
    free = shutil.disk_usage(next(path for path in (store.path, *store.path.absolute().parents) if path.exists())).free
    print_line(
        f"{args.exhibit}: {cost.num_runs} of {total} runs are missing: {human_count(cost.flops)}FLOP, about "
        f"{human_seconds(cost.seconds)} on this machine ({cost.how}), {human_bytes(cost.disk_bytes)} on the disk "
        f"({human_bytes(free)} is free)"
    )
    if args.yes:
        return
    if not os.isatty(0):
        raise UsageError("starting needs an answer, and standard input is not a terminal; use yes=True")
    if input("start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("not started")


def render(documents: dict[str, Any] | list[dict[str, Any]]) -> RenderableType:
    """The paper's numbers next to ours."""
    if isinstance(documents, list):
        return Group(*(part for document in documents for part in (render(document), Text())))
    exhibit = documents["exhibit"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("network", overflow="fold")
    table.add_column("data")
    for heading in ("paper", "median", "mean ± std", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for cell in documents["cells"]:
        spread = "-" if cell["std_pct"] is None else f"{cell['mean_pct']:.2f} ± {cell['std_pct']:.2f}"
        table.add_row(
            cell["label"],
            cell["dataset"],
            *("-" if cell[name] is None else f"{cell[name]:.2f}" for name in ("published_pct", "median_pct")),
            spread,
            str(cell["n"]),
            cell["verdict"],
        )
    about = f"{exhibit['label']}: {exhibit['title']}; test error, %, last epoch"
    parts: list[RenderableType] = [Text(about, style="bold"), table]
    if documents["scaled_down"]:
        parts.append(Text(f"scaled down: {documents['scaled_down']}", style="yellow"))
    if documents["is_partial"]:
        parts.append(Text("partial: not all runs have finished", style="yellow"))
        for settings, num_runs in documents["other_settings"].items():
            parts.append(Text(f"{num_runs} finished runs have other settings and are left out: {settings}"))
    return Group(*parts)
