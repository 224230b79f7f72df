"""The command `wrn`: one function a verb. PyTorch is imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wideresnet.config import CHOICES, Recipe
from wideresnet.errors import UsageError, WRNError
from wideresnet.flags import add_recipe_flags, given_flags
from wideresnet.kernels.library import start_build
from wideresnet.record import RunFolder, SeedsFolder

if TYPE_CHECKING:
    from wideresnet.training.distributed import World


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show must not end the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        argv = sys.argv[1:] if argv is None else argv
        args = make_parser().parse_args(argv, argparse.Namespace(argv=argv))
        args.verb(args)
        sys.stdout.flush()
        return 0
    except WRNError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        _leave_stdout()
        if isinstance(error, BrokenPipeError):  # the reader has gone, as in `wrn ... | head`
            return 0
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail("out of memory; use a smaller --batch-size, --image-size or --limit", 1)


def _fail(message: object, code: int) -> int:
    """Say what went wrong in one line, whatever a path or a library's message holds."""
    print("wrn:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _leave_stdout() -> None:
    """Where stdout cannot be written any more, see to it that what is in its buffer does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, PyTorch's CPU allocator or a GPU has no memory left; without importing PyTorch for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(
        prog="wrn",
        description="Wide Residual Networks: every network of the paper, trained to the paper's number.",
        epilog="wrn VERB --help explains a verb and shows an example.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    train = _verb(verbs, "train", _train, "train a network and leave a run folder with its record",
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

    evaluate = _verb(verbs, "eval", _eval, "measure weights on a test set", "wrn eval runs/my-run --data cifar10")
    evaluate.add_argument("weights", type=Path, help="run folder, weights folder or model.safetensors")
    evaluate.add_argument("--data", required=True, help="as for wrn train")
    evaluate.add_argument("--skip-unreadable", action="store_true", help="go on without files that cannot be read")
    evaluate.add_argument(
        "--int8", action="store_true", help="in 8 bits on a CPU, quantised by training images: fast, not exact"
    )
    _machine_flags(evaluate)

    predict = _verb(verbs, "predict", _predict, "classify image files", "wrn predict runs/my-run cat.jpg photos/")
    predict.add_argument("weights", type=Path, help="run folder, weights folder or model.safetensors")
    predict.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    predict.add_argument("--top", type=int, default=5, metavar="N", help="classes to show (5)")
    predict.add_argument("--skip-unreadable", action="store_true", help="go on without files that cannot be read")
    _machine_flags(predict, precision=False)

    info = _verb(verbs, "info", _info, "show a network's stages, parameters, operations and memory",
                 "wrn info WRN-28-10 --batch-size 128")  # fmt: skip
    info.add_argument("network", help="a network's name; `list` shows those of the paper")
    info.add_argument(
        "--num-classes", type=int, default=None, metavar="N", help="outputs (10; ImageNet's networks 1000)"
    )
    info.add_argument("--input-size", type=int, metavar="PX", help="side of the images (32; ImageNet's networks 224)")
    info.add_argument("--in-channels", type=int, default=3, metavar="N", help="channels of the images (3)")
    info.add_argument("--batch-size", type=int, default=128, metavar="N", help="batch for the memory (128)")
    info.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")

    report = _verb(verbs, "report", _report, "draw the page of a run, or compare several",
                   "wrn report runs/my-run")  # fmt: skip
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument("--out", type=Path, help="where a comparison goes (comparison.html)")

    _bench_verb(verbs)

    cache = _verb(verbs, "cache", _cache, "show or clear what is kept for the next run", "wrn cache --clear")
    cache.add_argument(
        "--clear", action="store_true", help="remove decoded images, kernels and measurements (never your own files)"
    )
    return parser


def _bench_verb(verbs: Any) -> None:
    bench = verbs.add_parser(
        "bench", help="measure speed and memory, also beside other implementations",
        description="Measure speed and memory, also beside other implementations; leaves bench.json and bench.png.",
        epilog="example: wrn bench train WRN-16-4 --against pytorchcv --json",
    )  # fmt: skip
    jobs = bench.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    for job, help in (("train", "whole training steps"), ("infer", "forward passes")):
        measure = _verb(jobs, job, _bench, help, f"wrn bench {job} WRN-16-4 WRN-40-2 --against torchvision pytorchcv")
        measure.set_defaults(job=job)
        measure.add_argument("networks", nargs="+", metavar="NETWORK", help="e.g. WRN-28-10")
        measure.add_argument(
            "--batch-size", type=_sizes, default=(), metavar="N,N", help="images a step; several with commas between "
            f"({'128' if job == 'train' else '1,64'})",
        )  # fmt: skip
        measure.add_argument(
            "--against", nargs="+", action="extend", default=[], metavar="OTHER",
            help="torchvision, timm, pytorchcv (where installed), plain (our network run as anybody would), and "
            "module:callable or file.py:callable for any other: its code is imported from the current folder and RUN; "
            "the callable gets those of depth, width (widen_factor, k), num_classes, dropout = 0, ... that it takes, "
            "and returns a torch.nn.Module. They run eagerly in fp32, NCHW; others with +careful behind "
            "the name in channels_last and our precision",
        )  # fmt: skip
        measure.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")
        if job == "infer":
            measure.add_argument("--int8", action="store_true", help="ours in 8 bits too")
        _bench_flags(measure)
    start = _verb(jobs, "start", _bench, "the time to the first training step, by wrn train with an empty cache (cold) "
                  "and again (warm), and by a plain loop, each round in three fresh processes",
                  "wrn bench start WRN-28-10")  # fmt: skip
    start.set_defaults(job="start")
    start.add_argument("networks", nargs="+", metavar="NETWORK", help="e.g. WRN-28-10")
    start.add_argument("--batch-size", type=int, metavar="N", help="images a step (128)")
    start.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")
    _bench_flags(start)
    figure4 = _verb(jobs, "figure4", _bench, "the paper's Figure 4 on this machine, beside its bars",
                    "wrn bench figure4")  # fmt: skip
    figure4.set_defaults(job="figure4")
    _bench_flags(figure4)


def _bench_flags(parser: argparse.ArgumentParser) -> None:
    _machine_flags(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (PyTorch's choice)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="rounds at most (20)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S",
        help="of timing a network and batch size; three rounds are made whatever they take (60)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the record (default: a new one under $WRN_RUNS or runs/)")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between, e.g. 1,64") from None


def _verb(verbs: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(verb=run)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; all else goes to stderr")
    return parser


def _machine_flags(parser: argparse.ArgumentParser, *, precision: bool = True) -> None:
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="where to run (auto)")
    if precision:
        parser.add_argument("--precision", choices=CHOICES["precision"], default="auto", help="arithmetic (auto)")


def _train(args: argparse.Namespace) -> None:
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
        from wideresnet.launch import is_launched, launch

        if not is_launched(args.processes):
            if code := launch(args.processes, args.argv):
                sys.exit(code)
            return
    from wideresnet.training.distributed import join

    with join() as world:
        _train_in(world, args)


def _train_in(world: World, args: argparse.Namespace) -> None:
    """Train in processes that are together, of which the first one writes and speaks."""
    with world.first_alone():
        recipe, base, dataset, out = _recipe_to_resume(args) if args.resume else _recipe_to_start(args)
    out = Path(world.agree(str(out)))  # a new folder is named after the time
    from wideresnet.announce import announce_run, show_pictures, show_result
    from wideresnet.training import fit

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
    from wideresnet.report import write_report  # which draws: nobody need wait for its libraries before the first step

    write_report(out, dataset)
    if not args.json:
        show_pictures(RunFolder(out))


def _train_seeds(args: argparse.Namespace) -> None:
    if args.overwrite:
        raise UsageError("--seeds --overwrite: several runs are not replaced; remove them, or choose another --out")
    if args.out and not args.resume:
        SeedsFolder(args.out).check_free()
    recipe, base, dataset, out = _recipe_to_resume(args) if args.resume else _recipe_to_start(args)
    from wideresnet.announce import announce_run
    from wideresnet.several import fit_seeds, render

    summary = fit_seeds(
        recipe,
        out,
        args.seeds,
        at_once=args.at_once,
        dataset=dataset,
        resume=args.resume,
        checkpoint_every_s=args.checkpoint_every,
        announce=lambda job, plan: announce_run(job, plan, base),
    )
    _show(args, summary, render)
    if not args.json and SeedsFolder(out).page.is_file():
        print(f"comparison   {SeedsFolder(out).page}")


def _recipe_to_start(args: argparse.Namespace) -> tuple[Recipe, Recipe | None, Any, Path]:
    """Recipe, recipe without overrides, data and folder of a new run."""
    name, network, data = _asked_for(args)
    from wideresnet.training import resolve_for_data

    recipe, base, dataset = resolve_for_data(name, network, data, given_flags(args))
    return recipe, base, dataset, args.out or _new_run_folder(recipe.network, dataset.name, recipe.recipe)


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


def _new_run_folder(*about: str) -> Path:
    name = "-".join((*about, time.strftime("%Y%m%d-%H%M%S")))
    return Path(os.path.expanduser(os.environ.get("WRN_RUNS") or "runs")) / "".join(
        c if c.isalnum() or c in "-._" else "_" for c in name
    )


def _eval(args: argparse.Namespace) -> None:
    start_build()
    from wideresnet.evaluation import evaluate_weights, render

    result = evaluate_weights(
        args.weights, args.data, device=args.device, precision=args.precision, skip_unreadable=args.skip_unreadable,
        int8=args.int8,
    )  # fmt: skip
    _show(args, result, render)


def _predict(args: argparse.Namespace) -> None:
    start_build()
    from wideresnet.predict import predict_files, render

    predictions = predict_files(
        args.weights, args.images, top=args.top, device=args.device, skip_unreadable=args.skip_unreadable
    )
    _show(args, predictions, render)


def _info(args: argparse.Namespace) -> None:
    if args.network == "list":
        from wideresnet.names import list_networks

        names = list_networks()
        print(json.dumps(names) if args.json else "\n".join(names))
        return
    from wideresnet.info import describe, render

    description = describe(
        args.network,
        num_classes=args.num_classes,
        input_size=args.input_size,
        in_channels=args.in_channels,
        batch_size=args.batch_size,
        family=args.family,
    )
    _show(args, description, render)


def _report(args: argparse.Namespace) -> None:
    from wideresnet.report import write_comparison, write_report

    if len(args.runs) == 1 and args.out is None:
        page = write_report(args.runs[0]).page
    else:
        page = write_comparison(args.runs, args.out or Path("comparison.html"))
    print(json.dumps({"page": str(page)}) if args.json else page)


def _bench(args: argparse.Namespace) -> None:
    from wideresnet.bench.run import PLOT, RECORD, run_bench, run_figure4
    from wideresnet.bench.show import render

    machine = {
        "device": args.device,
        "precision": args.precision,
        "num_threads": args.threads,
        "repeats": args.repeats,
        "seconds": args.seconds,
    }
    out = args.out or _new_run_folder("bench", args.job, *(args.networks[:1] if "networks" in args else ()))
    if args.job == "figure4":
        document = run_figure4(out, **machine)
    elif args.job == "start":
        from wideresnet.bench.start import run_start

        document = run_start(args.networks, out, batch_size=args.batch_size, family=args.family, **machine)
    else:
        document = run_bench(args.job, args.networks, out, batch_sizes=args.batch_size, against=args.against,
                             family=args.family, int8=getattr(args, "int8", False), **machine)  # fmt: skip
    _show(args, document, render)
    if not args.json:
        print(f"record {out / RECORD}, plot {out / PLOT}")


def _cache(args: argparse.Namespace) -> None:
    from wideresnet.data.cache import cache_contents, clear_cache, downloads_bytes
    from wideresnet.places import data_root
    from wideresnet.text import human_bytes

    if args.clear:
        freed = clear_cache()
        print(json.dumps({"freed_bytes": freed}) if args.json else f"{human_bytes(freed)} freed under {data_root()}")
        return
    contents, downloads = cache_contents(), downloads_bytes()
    if args.json:
        print(json.dumps({"folder": str(data_root()), "contents": contents, "downloads_bytes": downloads}))
        return
    print(f"{data_root()} (set WRN_DATA to move it)")
    for name, num_bytes, what in contents:
        print(f"  {human_bytes(num_bytes):>10}  {what}  ({name})")
    print(f"  {human_bytes(downloads):>10}  downloads, which --clear leaves alone")


def _show(args: argparse.Namespace, document: Any, render: Any) -> None:
    if args.json:
        print(json.dumps(document))
        return
    from rich.console import Console

    Console().print(render(document))


if __name__ == "__main__":
    sys.exit(main())
