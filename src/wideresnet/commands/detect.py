"""`wrn detect`: train a detector on COCO or on one's own boxes, evaluate it, find objects in images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
from wideresnet.base.format import counted, printable
from wideresnet.commands.console import console, hide_progress, print_line
from wideresnet.commands.flags import add_field_flag
from wideresnet.commands.processes import in_processes
from wideresnet.commands.translate import translator
from wideresnet.commands.verbs import add_machine_flags, add_verb, new_run_folder, show, typed, write_csv
from wideresnet.spec.detection import (
    FIELDS,
    GROUPS,
    RECIPES,
    DetectionFolder,
    DetectionRecipe,
    is_detection,
    reference,
    resolve,
)
from wideresnet.spec.fields import brief_value, show_value, types_of
from wideresnet.spec.files import read_json, write_json

if TYPE_CHECKING:
    from wideresnet.detection.plan import DetectionPlan
    from wideresnet.detection.setup import DetectionJob
    from wideresnet.distributed.world import World

OWN_FLAGS = (*(key for group, keys in GROUPS.items() for key in keys if group != "what"), "backbone")

DETECTOR = "run folder of wrn detect train, or a folder with its config.json and model.safetensors"

MAIN_FIELDS = (
    "detector",
    "norm",
    "min_size",
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "flip",
    "scale_jitter",
    "seed",
)
"""What people look at before a run, in addition to what was overridden."""

NAMES = {
    "ap_pct": "AP, IoU 0.50:0.95", "ap50_pct": "AP50", "ap75_pct": "AP75", "ap_small_pct": "AP small",
    "ap_medium_pct": "AP medium", "ap_large_pct": "AP large",
}  # fmt: skip

NUM_SHOWN = 10


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    detect = verbs.add_parser(
        "detect", help="find objects in images: train, evaluate and use a detector",
        description="Train torchvision's Faster R-CNN or RetinaNet over one of ImageNet's networks, on COCO or on your "
        "own images with COCO's JSON; evaluate it by COCO's mAP; find objects in images.",
        epilog="example: wrn detect train --backbone WRN-34-2 --data path/to/coco --from runs/my-imagenet-run",
    )  # fmt: skip
    jobs = detect.add_subparsers(title="what to do", metavar="WHAT", required=True)
    _add_train(jobs)
    evaluate = add_verb(
        jobs, "eval", run_eval, "measure a detector by COCO's mAP", "wrn detect eval runs/my-run --data path/to/coco"
    )
    evaluate.add_argument("weights", type=Path, help=DETECTOR)
    evaluate.add_argument("--data", help="as for wrn detect train (default: the data that the run was trained on)")
    evaluate.add_argument("--split", choices=("val", "train"), default="val", help="the split to evaluate (val)")
    evaluate.add_argument("--coco", type=Path, metavar="FILE", help="also write the detections, COCO's results format")
    evaluate.add_argument("--csv", type=Path, metavar="FILE", help="also write a row per class, for spreadsheets")
    evaluate.add_argument("--evaluator", help="faster-coco-eval or pycocotools (the one that is installed)")
    evaluate.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    evaluate.add_argument("--workers", type=int, metavar="N", help="processes that decode images (by the CPUs)")
    add_machine_flags(evaluate)
    predict = add_verb(
        jobs, "predict", run_predict, "find objects in image files", "wrn detect predict runs/my-run street.jpg photos/"
    )
    predict.add_argument("weights", type=Path, help=DETECTOR)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders of them")
    predict.add_argument("--threshold", type=float, default=0.5, metavar="X", help="least score that is shown (0.5)")
    predict.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="also draw the boxes into copies of the images"
    )
    predict.add_argument("--coco", type=Path, metavar="FILE", help="also write all detections, COCO's results format")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="also write a row per object, for spreadsheets")
    predict.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    add_machine_flags(predict)


def _add_train(jobs: Any) -> None:
    train = add_verb(
        jobs, "train", run_train, "train a detector and leave a run folder with its record",
        "wrn detect train --backbone WRN-34-2 --data path/to/coco --from runs/my-imagenet-run",
    )  # fmt: skip
    train.add_argument("run", nargs="?", type=Path, help="with --resume: the run folder")
    train.add_argument("--backbone", help="one of ImageNet's networks, e.g. WRN-34-2, WRN-18-0.5 or ResNet-50")
    train.add_argument("--data", help="COCO's folder, or any folder with images and COCO's JSON for train and val")
    train.add_argument("--recipe", help=f"{', '.join(RECIPES)} (default: reference), or the path of a recipe.json")
    train.add_argument(
        "--from", dest="init_from", metavar="WEIGHTS",
        help="weights of the backbone: a run folder of wrn train, a weights folder, or a state dict with torchvision's "
        "names (.pth, .safetensors)",
    )  # fmt: skip
    train.add_argument("--out", type=Path, help="run folder (default: a new one under $WRN_RUNS or runs/)")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (60)"
    )
    train.add_argument("--processes", type=int, metavar="N", help="train in N processes of this machine, one per GPU")
    defaults, kinds = reference("", ""), types_of(DetectionRecipe)
    for title, keys in GROUPS.items():
        if title != "what":
            group = train.add_argument_group(f"{title} (flags override the recipe; values in brackets: reference)")
            for key in keys:
                add_field_flag(group, key, kinds[key], FIELDS[key].metadata, getattr(defaults, key))
    train.set_defaults(own_flags=OWN_FLAGS)


def run_train(args: argparse.Namespace) -> None:
    """Train, in this process or in several."""
    if args.resume and args.out is None:
        args.out = args.run
    elif args.run is not None:
        raise UsageError(f"{args.run}: unexpected; the folder of a new run is out=, its network backbone=")
    _recipe(args)  # report what is wrong with the request before PyTorch is loaded
    in_processes(args, _train_in)


def _recipe(args: argparse.Namespace) -> tuple[DetectionRecipe, DetectionRecipe | None]:
    """Return the recipe that was asked for, and the named one that it starts from; None for a run that is resumed."""
    given = {key: getattr(args, key) for key in OWN_FLAGS if key != "backbone" and hasattr(args, key)}
    if args.init_from is not None:
        given["init_from"] = args.init_from
    if args.resume:
        if args.overwrite:
            raise UsageError("resume=True and overwrite=True: one continues a run, the other replaces it; choose one")
        if args.out is None:
            raise UsageError("resume=True: needs out=, the run folder to continue")
        if not is_detection(args.out):
            raise UsageError(f"resume=True: {args.out} holds no run of wrn detect train; leave out resume=True")
        named = {key: value for key in ("backbone", "data", "recipe") if (value := getattr(args, key)) is not None}
        return DetectionFolder(args.out).read_detection_recipe().replace(**named, **given), None
    backbone, data, name = args.backbone, args.data, args.recipe or "reference"
    if Path(name).is_file():
        stored = read_json(Path(name))
        backbone, data = backbone or stored.get("backbone"), data or stored.get("data")
    if backbone is None or data is None:
        raise UsageError("needs backbone= and data=, e.g. wrn detect train --backbone WRN-34-2 --data path/to/coco")
    if args.out:
        DetectionFolder(args.out).check_free(overwrite=args.overwrite)
    return resolve(name, backbone, data, given)


def _train_in(world: World, args: argparse.Namespace) -> None:
    """Train in one of the processes that have joined; the first one writes and speaks."""
    if not world.is_first:
        hide_progress()
    recipe, base = _recipe(args)
    name = Path(recipe.data).resolve().name
    out = args.out or (new_run_folder(recipe.backbone, name, recipe.recipe) if world.is_first else None)
    out = Path(world.agree(str(out)))  # a new folder is named after the time
    folder = DetectionFolder(out)
    args.resume_command = folder.resume_command(world.size)
    from wideresnet.detection.fit import fit_detection

    was_finished = args.resume and folder.result.is_file()
    asked = [key for key in ("precision", "threads") if hasattr(args, key)]
    result = fit_detection(
        recipe, out, resume=args.resume, overwrite=args.overwrite, checkpoint_every_s=args.checkpoint_every,
        announce=lambda job, plan: _announce(args, job, plan, base), world=world, command=typed(args), asked=asked,
    )  # fmt: skip
    if not world.is_first:
        return
    if was_finished:
        print_line(f"{out}: this run has finished; nothing to resume")
    show(args, {"run": str(out), **result}, lambda result: _render_run(result, folder))


def _announce(args: argparse.Namespace, job: DetectionJob, plan: DetectionPlan, base: DetectionRecipe | None) -> None:
    """Show what is about to run."""
    recipe, translate = job.recipe, translator(args)
    rows = [("recipe", ", ".join(f"{key} {show_value(getattr(recipe, key))}" for key in MAIN_FIELDS))]
    if base is not None:
        settled = ("norm", "frozen_stages", "precision", "threads", "init_sha256", "backbone")
        changed = [key for key in FIELDS if key not in settled and getattr(recipe, key) != getattr(base, key)]
        if changed:
            pairs = (
                f"{key} {brief_value(getattr(recipe, key))} (recipe: {brief_value(getattr(base, key))})"
                for key in changed
            )
            rows.append(("overridden", ", ".join(pairs)))
    rows += [*(("data", text) for text in job.data.notes), *plan.lines()]
    rows.append(
        ("device", f"{job.execution.device}: {job.execution.precision}, {counted(job.data.feed.workers, 'worker')}")
    )
    title = f"{recipe.detector} on {recipe.backbone}, {job.data.name}, recipe {recipe.recipe}"
    table = Table(title=Text(printable(title)), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(printable(translate(value)), style="yellow" if name == "overridden" else ""))
    console().print(table)
    for note in job.notes:
        print_line(translate(f"note: {note}"))


def _render_run(result: dict[str, Any], folder: DetectionFolder) -> str:
    """The result and where its page is."""
    about = f"epoch {result['epochs']}, the last, on {result['num_images']:,} {result['split']} images"
    lines = [f"mAP {result['ap_pct']:.2f} % ({about})", _summary(result)]
    for label, path in (("weights", folder.weights), ("detections", folder.detections), ("run page", folder.report)):
        if path.is_file():
            lines.append(f"{label:<12} {printable(str(path))}")
    return "\n".join(lines)


def _summary(result: dict[str, Any]) -> str:
    shown = [f"{name} {result[key]:.2f} %" for key, name in NAMES.items() if key != "ap_pct" and key in result]
    return ", ".join(shown)


def run_eval(args: argparse.Namespace) -> None:
    """Evaluate."""
    for name in ("csv", "coco"):
        _check_file(name, getattr(args, name))
    from wideresnet.detection.predict import evaluate_detector

    result, detections = evaluate_detector(
        args.weights, args.data, split=args.split, evaluator=args.evaluator, device=args.device,
        precision=args.precision, workers=args.workers, skip_unreadable=args.skip_unreadable,
    )  # fmt: skip
    if args.coco:
        write_json_list(args.coco, detections)
    if args.csv:
        columns = ("class", "category_id", "num_objects", "ap_pct", "ap50_pct")
        write_csv(args.csv, columns, ([row[name] for name in columns] for row in result["classes"]))
    show(args, result, _render_eval)


def _render_eval(result: dict[str, Any]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", overflow="fold")
    for heading in ("AP", "AP50", "objects"):
        table.add_column(heading, justify="right")
    known = [row for row in result["classes"] if row["ap_pct"] is not None]
    for row in sorted(known, key=lambda row: row["ap_pct"])[:NUM_SHOWN]:
        table.add_row(
            Text(row["class"]), f"{row['ap_pct']:.1f} %", f"{row['ap50_pct']:.1f} %", f"{row['num_objects']:,}"
        )
    if len(known) > NUM_SHOWN:
        table.caption = f"the worst {NUM_SHOWN} of {len(known)} classes"
    summary = Text.assemble(
        (f"mAP {result.get('ap_pct', 0):.2f} %", "bold"),
        f"  {result['num_objects']:,} objects in {result['num_images']:,} {result['split']} images\n",
        f"{_summary(result)}\n{result['detector']} on {result['backbone']}, {result['device']}, {result['precision']}, "
        f"{result['images_per_s']:.1f} images/s, {result['evaluator']}",
    )
    notes = [Text(), *(Text(f"note: {note}") for note in result["notes"])] if result["notes"] else []
    return Group(summary, Text(), table, *notes)


def run_predict(args: argparse.Namespace) -> None:
    """Find objects."""
    for name in ("csv", "coco"):
        _check_file(name, getattr(args, name))
    if not 0 <= args.threshold <= 1:
        raise UsageError(f"threshold={args.threshold}: must be at least 0 and at most 1")
    from wideresnet.detection.predict import detect_files

    found = detect_files(
        args.weights, args.images, threshold=args.threshold, pictures=args.pictures, device=args.device,
        precision=args.precision, skip_unreadable=args.skip_unreadable,
    )  # fmt: skip
    if args.coco:
        write_json_list(args.coco, [each for image in found for each in image.pop("coco")])
    if args.csv:
        columns = ("file", "class", "score", "left", "top", "width", "height", "picture")
        rows = (
            [image["file"], each["class"], each["score"], *each["bbox"], image.get("picture")]
            for image in found
            for each in image["objects"]
        )
        write_csv(args.csv, columns, rows)
    show(args, [{key: value for key, value in image.items() if key != "coco"} for image in found], _render_objects)


def write_json_list(path: Path, values: list[dict[str, Any]]) -> None:
    """Write detections in COCO's results format, a list."""
    write_json(path, values)


def _render_objects(found: list[dict[str, Any]]) -> str:
    lines = []
    for image in found:
        lines.append(image["file"])
        lines += [
            f"  {100 * each['score']:5.1f} %  {each['class']}  at {left:.0f}, {top:.0f}: {wide:.0f} x {high:.0f} px"
            for each in image["objects"]
            for left, top, wide, high in [each["bbox"]]
        ]
        if not image["objects"] and not image["notes"]:
            lines.append("  nothing above the threshold")
        lines += [f"  {note}" for note in image["notes"]]
        if "picture" in image:
            lines.append(f"  picture: {image['picture']}")
    return "\n".join(lines)


def _check_file(name: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before work is spent on what it holds."""
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(f"{name}={path}: must be a file in a folder that exists")
