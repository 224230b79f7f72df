"""`wrn train`: train a network and leave a run folder with its record."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.base.format import counted, human_seconds, printable
from wideresnet.commands.console import console, hide_progress, print_line
from wideresnet.commands.flags import add_recipe_flags, given_flags
from wideresnet.commands.processes import in_processes
from wideresnet.commands.translate import translator
from wideresnet.commands.verbs import WEIGHTS, add_track_flag, add_verb, new_run_folder, say, show, typed
from wideresnet.kernels.library import start_build
from wideresnet.spec.execution import AUTOTUNE_MODES
from wideresnet.spec.files import read_json
from wideresnet.spec.names import parse
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import RECIPES
from wideresnet.spec.record import RunFolder, SeedsFolder
from wideresnet.weights.pretrained import check_exists

MOST_WAITING_PCT = 5
"""From this share of the time on, waiting for images is named. Own choice."""

if TYPE_CHECKING:
    from wideresnet.distributed.world import World
    from wideresnet.training import Job, Plan


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    train = add_verb(verbs, "train", run, "train a network and leave a run folder with its record",
                  "wrn train WRN-28-10 --data cifar10 --dropout 0.3")  # fmt: skip
    train.add_argument(
        "network", nargs="?",
        help="e.g. WRN-28-10, 'WRN-40-2-B(3,1,3)' or WRN-40-2-B313, PreActResNet-164; with --resume, the run folder",
    )  # fmt: skip
    train.add_argument("--data", help="digits, cifar10, cifar100, svhn, or the path of your own images")
    train.add_argument(
        "--recipe", help=f"{', '.join(RECIPES)} (default: paper), or the path of a recipe.json; {_epochs_text()}"
    )
    train.add_argument(
        "--from", dest="init_from", metavar="WEIGHTS",
        help=f"start from trained weights, with a new head for other classes: {WEIGHTS}; for ImageNet's networks also "
        "a state dict of torchvision or timm (.pth, .pt, .safetensors), or torchvision, to download its newest",
    )  # fmt: skip
    train.add_argument("--out", type=Path, help="run folder (default: a new one under $WRN_RUNS or runs/)")
    train.add_argument("--resume", action="store_true", help="continue the run in --out, as in wrn train --resume RUN")
    train.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (60)"
    )
    train.add_argument(
        "--autotune",
        choices=AUTOTUNE_MODES,
        help="kernels, layout, threads and precision that are not given: cached: measured once for this machine; again:"
        " measured now; off: the usually fastest, without measuring (default: $WRN_AUTOTUNE, else cached)",
    )
    train.add_argument("--seeds", type=int, metavar="N", help="train N seeds, from --seed on, each in its own folder")
    train.add_argument(
        "--at-once", type=int, metavar="N", help="seeds that train at once (1 on a CPU; measured on a GPU)"
    )
    train.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="train in N processes of this machine, one per GPU (as torchrun does)",
    )
    add_track_flag(train, "; --resume keeps it")
    add_recipe_flags(train)


def _epochs_text() -> str:
    """Say how many epochs each recipe has: on CIFAR, on SVHN if that differs, and on digits, a small set."""
    texts = []
    for name, make in RECIPES.items():
        sets = ("cifar10", "svhn", "digits")
        cifar, svhn, digits = (make("WRN-16-2", data, "", None).schedule.epochs for data in sets)
        others = [f"svhn {svhn}"] * (svhn != cifar) + [f"digits {digits}"] * (digits != cifar)
        texts.append(f"{name} {cifar}" + (f" ({', '.join(others)})" if others else ""))
    return (
        f"epochs on CIFAR: {', '.join(texts)}; quick, fast and long take more on small sets, at most 200, finetune 100"
    )


def run(args: argparse.Namespace) -> None:
    """Train, in this process or in several."""
    args.began = time.monotonic()
    if args.resume:
        _take_folder_to_resume(args)
    if args.track:
        from wideresnet.training.track import check_tracker

        check_tracker(args.track)
    start_build()
    if args.seeds is not None:
        if args.processes is not None:
            raise UsageError("seeds= and processes=: each seed has its own process; choose one")
        _train_seeds(args)
        return
    if args.at_once is not None:
        raise UsageError(f"at_once={args.at_once}: is for several seeds; add seeds=")
    if args.resume:  # report what is wrong with the request before PyTorch is loaded and the data is read
        _recipe_to_resume(args)
    else:
        _asked_for(args)
    in_processes(args, _train_in)


def _train_in(world: World, args: argparse.Namespace) -> None:
    """Train in one of the processes that have joined; the first one writes and speaks."""
    if not world.is_first:
        hide_progress()
    with world.first_alone():
        recipe, base, dataset, out = _recipe_to_resume(args) if args.resume else _recipe_to_start(args)
    out = Path(world.agree(str(out)))  # a new folder is named after the time
    folder = RunFolder(out)
    args.resume_command = folder.resume_command(world.size)
    from wideresnet.training import fit

    was_finished = args.resume and folder.result.is_file()
    result = fit(
        recipe,
        out,
        dataset=dataset,
        resume=args.resume,
        overwrite=args.overwrite,
        checkpoint_every_s=args.checkpoint_every,
        autotune=args.autotune,
        announce=lambda job, plan: _announce(args, job, plan, base),
        world=world,
        command=typed(args),
        track=args.track,
        began=args.began,
    )
    if not world.is_first:
        return
    if was_finished:
        print_line(f"{out}: this run has finished; nothing to resume")
    show(args, {"run": str(out), **result}, lambda result: render(result, folder))


def render(result: dict[str, Any], folder: RunFolder) -> str:
    """The result and where its pictures are."""
    about = f"epoch {result['epochs']}, the last, on all {result['num_test_images']:,} test images"
    ece = result.get("test_ece_pct")  # a run that an older version finished lacks it
    more = f"NLL {result['test_loss']:.4f} nats" + ("" if ece is None else f", expected calibration error {ece:.2f} %")
    lines = [f"test error {result['test_error_pct']:.2f} % ({about})", more]
    if (top5 := result.get("test_top5_error_pct")) is not None and "data_wait_pct" in result:
        lines.append(f"top-5 error {top5:.2f} %")
    lines += _feed_lines(result)
    for label, path in (("curves", folder.curves), ("predictions", folder.pictures), ("run page", folder.report)):
        if path.is_file():
            lines.append(f"{label:<12} {printable(str(path))}")
    return "\n".join(lines)


def _feed_lines(result: dict[str, Any]) -> list[str]:
    """Say how long steps waited for the images of a stream, and what helps; and how many could not be read."""
    if "data_wait_pct" not in result:
        return []
    waited, workers = result["data_wait_pct"], result["workers"]
    lines = [f"training waited for images {waited:.1f} % of its time ({counted(workers, 'worker')})"]
    if waited > MOST_WAITING_PCT:
        lines[0] += (
            f": above {MOST_WAITING_PCT} %; use more --workers if there are idle CPUs, or scale the images "
            "down on the disk"
        )
    if unreadable := result["num_unreadable"]:
        lines.append(f"{counted(unreadable, 'training image')} could not be read; the next ones took their places")
    return lines


def _announce(args: argparse.Namespace, job: Job, plan: Plan, base: Recipe | None) -> None:
    """Show what is about to run: the main values, what was overridden, the data and the arithmetic."""
    from wideresnet.training.summary import summarize

    summary, translate = summarize(job, plan, base), translator(args)
    table = Table(title=Text(printable(summary.title)), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # a long path is shown whole
    for name, value in summary.rows():
        table.add_row(name, Text(printable(translate(value)), style="yellow" if name == "overridden" else ""))
    console().print(table)
    for note in summary.notes:
        print_line(translate(f"note: {note}"))


def _train_seeds(args: argparse.Namespace) -> None:
    if args.overwrite:
        raise UsageError(
            "seeds= and overwrite=True: several runs are not replaced; remove them, or choose another out="
        )
    if args.out and not args.resume:
        SeedsFolder(args.out).check_free()
    recipe, base, dataset, out = _recipe_to_resume(args) if args.resume else _recipe_to_start(args)
    args.resume_command = SeedsFolder(out).resume_command(args.seeds)
    from wideresnet.experiments import fit_seeds

    summary = fit_seeds(
        recipe,
        out,
        args.seeds,
        at_once=args.at_once,
        dataset=dataset,
        resume=args.resume,
        checkpoint_every_s=args.checkpoint_every,
        autotune=args.autotune,
        announce=lambda job, plan: _announce(args, job, plan, base),
        command=typed(args),
        track=args.track,
    )
    show(args, {"run": str(out), **summary}, render_seeds)
    if not args.json and SeedsFolder(out).page.is_file():
        say(f"comparison   {SeedsFolder(out).page}")


def _recipe_to_start(args: argparse.Namespace) -> tuple[Recipe, Recipe | None, Any, Path]:
    """Return recipe, recipe without overrides, data and folder of a new run."""
    name, network, data = _asked_for(args)
    from wideresnet.training import resolve_for_data
    from wideresnet.training.resolve import resolve_network

    given = given_flags(args) if args.init_from is None else {**given_flags(args), "init_from": args.init_from}
    recipe, base, dataset = resolve_for_data(name, network, data, given)
    canonical = resolve_network(recipe, dataset).network
    return recipe, base, dataset, args.out or new_run_folder(canonical, dataset.name, recipe.name)


def _asked_for(args: argparse.Namespace) -> tuple[str, str, str]:
    """Return names of recipe, network and data of a new run, whose folder is free."""
    name, network, data = args.recipe or "paper", args.network, args.data
    if Path(name).is_file():
        stored = read_json(Path(name))
        network, data = network or stored.get("network"), data or stored.get("data")
    if network is None or data is None:
        raise UsageError("needs NETWORK and --data, e.g. wrn train WRN-16-2 --data digits")
    if args.out:
        RunFolder(args.out).check_free(overwrite=args.overwrite)
    if args.init_from is not None:
        check_exists(args.init_from)
    return name, network, data


def _take_folder_to_resume(args: argparse.Namespace) -> None:
    """Read `wrn train --resume RUN` as `--out RUN`: what is no network's name is the folder."""
    if args.out is not None or args.network is None:
        return
    try:
        parse(args.network, getattr(args, "family", None))
        is_network = not Path(args.network).is_dir()
    except UsageError:
        is_network = False
    if not is_network:
        args.out, args.network = Path(args.network), None


def _recipe_to_resume(args: argparse.Namespace) -> tuple[Recipe, None, None, Path]:
    """Return the stored recipe with what was asked for on top, which `fit` compares, and the folder."""
    if args.overwrite:
        raise UsageError("resume=True and overwrite=True: one continues a run, the other replaces it; choose one")
    if args.out is None:
        raise UsageError("resume=True: needs out=, the run folder to continue")
    if args.seeds is not None:
        folder = SeedsFolder(args.out)
        folder.check_begun()
    elif SeedsFolder(args.out).is_begun():
        raise UsageError(f"resume=True: {args.out} holds several seeds; say how many with seeds=N")
    elif not (folder := RunFolder(args.out)).is_run():
        raise UsageError(f"resume=True: {args.out} holds no run; leave out resume=True to start one")
    what = ("network", "data", "recipe", "init_from")
    named = {name: getattr(args, name) for name in what if getattr(args, name) is not None}
    return folder.read_recipe().replace(**named, **given_flags(args)), None, None, args.out


def render_seeds(summary: dict[str, Any]) -> Table:
    """The document as a table."""
    table = Table(title=Text(f"{summary['recipe']['network']} on {summary['recipe']['data']}"))
    for name in ("seed", "last test error, %", "NLL, nats", "ECE, %", "time", "images/s"):
        table.add_column(name, justify="right")

    def metrics(values: dict[str, Any], end: str = "") -> list[str]:
        decimals = {"test_error_pct": 2, "test_loss": 4, "test_ece_pct": 2}
        found = [(values[name + end], places) for name, places in decimals.items()]
        return ["-" if value is None else f"{value:.{places}f}" for value, places in found]

    for run in summary["runs"]:
        speed = f"{run['images_per_s']:,.0f}"
        table.add_row(str(run["seed"]), *metrics(run), human_seconds(run["seconds"]), speed)
    table.add_section()
    for name in ("mean", "std", "median"):
        table.add_row(name, *metrics(summary, f"_{name}"))
    table.add_row("n", str(summary["n"]), "", "", human_seconds(summary["seconds"]), f"{summary['at_once']} at once")
    return table
