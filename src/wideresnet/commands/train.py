"""`wrn train`: train a network and leave a run folder with its record."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_seconds
from wideresnet.commands.flags import add_recipe_flags, given_flags
from wideresnet.commands.verbs import add_verb, new_run_folder, show
from wideresnet.kernels.library import start_build
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder, SeedsFolder

if TYPE_CHECKING:
    from wideresnet.distributed.world import World


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    train = add_verb(verbs, "train", run, "train a network and leave a run folder with its record",
                  "wrn train WRN-28-10 --data cifar10 --dropout 0.3")  # fmt: skip
    train.add_argument("network", nargs="?", help="e.g. WRN-28-10, WRN-40-2-B(3,1,3), PreActResNet-164")
    train.add_argument("--data", help="digits, cifar10, cifar100, svhn, or the path of your own images")
    train.add_argument("--recipe", help="paper (default), quick, fast, or the path of a recipe.json")
    train.add_argument("--out", type=Path, help="run folder (default: a new one under $WRN_RUNS or runs/)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (60)"
    )
    train.add_argument("--seeds", type=int, metavar="N", help="train N seeds, from --seed on, each in its own folder")
    train.add_argument(
        "--at-once", type=int, metavar="N", help="seeds that train at once (1 on a CPU; measured on a GPU)"
    )
    train.add_argument(
        "--processes", type=int, metavar="N", help="train in N processes of this machine, one a GPU (as torchrun does)"
    )
    add_recipe_flags(train)


def run(args: argparse.Namespace) -> None:
    """Train, in this process or in several."""
    start_build()
    if args.seeds is not None:
        if args.processes is not None:
            raise UsageError("--seeds --processes: each seed is a process of its own; choose one")
        _train_seeds(args)
        return
    if args.at_once is not None:
        raise UsageError(f"--at-once {args.at_once}: is for several seeds; add --seeds N")
    if args.resume:  # what is wrong with the request is told before PyTorch is loaded and the data is read
        _recipe_to_resume(args)
    else:
        _asked_for(args)
    if args.processes is not None:
        from wideresnet.distributed.launch import is_launched, launch

        if not is_launched(args.processes):
            if code := launch(args.processes, args.argv):
                sys.exit(code)
            return
    from wideresnet.distributed.world import join

    with join() as world:
        _train_in(world, args)


def _train_in(world: World, args: argparse.Namespace) -> None:
    """Train in processes that are together, of which the first one writes and speaks."""
    with world.first_alone():
        recipe, base, dataset, out = _recipe_to_resume(args) if args.resume else _recipe_to_start(args)
    out = Path(world.agree(str(out)))  # a new folder is named after the time
    from wideresnet.training import fit
    from wideresnet.training.summary import announce_run, show_pictures, show_result

    result = fit(
        recipe,
        out,
        dataset=dataset,
        resume=args.resume,
        overwrite=args.overwrite,
        checkpoint_every_s=args.checkpoint_every,
        announce=lambda job, plan: announce_run(job, plan, base),
        world=world,
    )
    if not world.is_first:
        return
    if args.json:
        print(json.dumps(result))
    else:
        show_result(result)
    from wideresnet.report.pages import (
        write_report,  # which draws: nobody need wait for its libraries before the first step
    )

    write_report(out, dataset)
    if not args.json:
        show_pictures(RunFolder(out))


def _train_seeds(args: argparse.Namespace) -> None:
    if args.overwrite:
        raise UsageError("--seeds --overwrite: several runs are not replaced; remove them, or choose another --out")
    if args.out and not args.resume:
        SeedsFolder(args.out).check_free()
    recipe, base, dataset, out = _recipe_to_resume(args) if args.resume else _recipe_to_start(args)
    from wideresnet.experiments import fit_seeds
    from wideresnet.training.summary import announce_run

    summary = fit_seeds(
        recipe,
        out,
        args.seeds,
        at_once=args.at_once,
        dataset=dataset,
        resume=args.resume,
        checkpoint_every_s=args.checkpoint_every,
        announce=lambda job, plan: announce_run(job, plan, base),
        command=shlex.join(["wrn", *args.argv]),
    )
    show(args, summary, render_seeds)
    if not args.json and SeedsFolder(out).page.is_file():
        print(f"comparison   {SeedsFolder(out).page}")


def _recipe_to_start(args: argparse.Namespace) -> tuple[Recipe, Recipe | None, Any, Path]:
    """Recipe, recipe without overrides, data and folder of a new run."""
    name, network, data = _asked_for(args)
    from wideresnet.training import resolve_for_data

    recipe, base, dataset = resolve_for_data(name, network, data, given_flags(args))
    return recipe, base, dataset, args.out or new_run_folder(recipe.network, dataset.name, recipe.recipe)


def _asked_for(args: argparse.Namespace) -> tuple[str, str, str]:
    """Names of recipe, network and data of a new run, whose folder is free."""
    name, network, data = args.recipe or "paper", args.network, args.data
    if Path(name).is_file():
        stored = Recipe.from_file(Path(name))
        network, data = network or stored.network, data or stored.data
    if network is None or data is None:
        raise UsageError("wrn train: needs NETWORK and --data, e.g. wrn train WRN-16-2 --data digits")
    if args.out:
        RunFolder(args.out).check_free(overwrite=args.overwrite)
    return name, network, data


def _recipe_to_resume(args: argparse.Namespace) -> tuple[Recipe, None, None, Path]:
    """The stored recipe with what was asked for on top, which `fit` compares, and the folder."""
    if args.overwrite:
        raise UsageError("--resume --overwrite: one goes on with a run, the other replaces it; choose one")
    if args.out is None:
        raise UsageError("--resume: needs --out, the run folder to go on with")
    if args.seeds is not None:
        folder = SeedsFolder(args.out)
        folder.check_begun()
    elif SeedsFolder(args.out).is_begun():
        raise UsageError(f"--resume --out {args.out}: holds several seeds; say how many by --seeds N")
    elif not (folder := RunFolder(args.out)).is_run():
        raise UsageError(f"--resume --out {args.out}: no run there; leave out --resume to start one")
    named = {name: getattr(args, name) for name in ("network", "data", "recipe") if getattr(args, name) is not None}
    return Recipe.from_json({**folder.read_recipe().to_json(), **named, **given_flags(args)}), None, None, args.out


def render_seeds(summary: dict[str, Any]) -> Table:
    """The document as a table."""
    table = Table(title=escape(f"{summary['recipe']['network']} on {summary['recipe']['data']}"))
    for name in ("seed", "last test error, %", "time", "images/s"):
        table.add_column(name, justify="right")
    for run in summary["runs"]:
        speed = f"{run['images_per_s']:,.0f}"
        table.add_row(str(run["seed"]), f"{run['test_error_pct']:.2f}", human_seconds(run["seconds"]), speed)
    table.add_section()
    for name in ("mean", "std", "median"):
        value = summary[f"test_error_pct_{name}"]
        table.add_row(name, "-" if value is None else f"{value:.2f}")
    table.add_row("n", str(summary["n"]), human_seconds(summary["seconds"]), f"{summary['at_once']} at once")
    return table
