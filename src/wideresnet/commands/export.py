"""`wrn export`: trained weights for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import counted, human_bytes
from wideresnet.commands.verbs import add_verb, show


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    export = add_verb(verbs, "export", run, "write trained weights for another runtime, preprocessing included",
                      "wrn export runs/my-run --format onnx --check photos/")  # fmt: skip
    export.add_argument("weights", type=Path, help="run folder, weights folder or model.safetensors")
    export.add_argument(
        "--format", choices=("onnx", "torch", "openvino"), required=True,
        help="ONNX, an archive of torch.export (.pt2), or OpenVINO's .xml and .bin",
    )  # fmt: skip
    export.add_argument(
        "--out", type=Path, metavar="PATH", help="file, or folder for model.onnx and so on (the folder of the weights)"
    )
    export.add_argument("--int8", action="store_true", help="quantize the convolutions to 8 bits; not for torch")
    export.add_argument(
        "--calibrate", metavar="DATA",
        help="with --int8: quantize by its training images, up to 1,000 (the data that the run was trained on)",
    )  # fmt: skip
    export.add_argument(
        "--check", nargs="+", type=Path, metavar="IMAGE",
        help="compare with wrn predict on image files, or folders of them; a difference beyond rounding is a failure",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Export."""
    if args.calibrate and not args.int8:
        raise UsageError("calibrate=: is for int8=True; add it, or leave calibrate= out")
    for path in args.check or ():
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    with progress.status("importing"):
        from wideresnet.export.load import read_exported, reopen_written
        from wideresnet.export.write import calibration_images, check_format, export_weights, target
        from wideresnet.weights.hub import read_weights
        from wideresnet.weights.matching import data_of_run, load_matching, run_of

    folder = args.weights if args.weights.is_dir() else args.weights.parent
    out = args.out or folder
    check_format(args.format, int8=args.int8)
    target(out, args.format)
    weights = read_weights(args.weights)
    for note in weights.notes:
        progress.report(f"note: {note}")
    images = None
    if args.int8:
        data = args.calibrate or data_of_run(args.weights, option="calibrate")
        dataset, notes = load_matching(weights, data, run=run_of(args.weights))
        images, more = calibration_images(weights, dataset)
        for note in (*notes[len(weights.notes) :], *more):
            progress.report(f"note: {note}")
    with progress.status(f"exporting to {args.format}"):
        result = export_weights(weights, args.format, out, calibration=images)
    if args.check:
        from wideresnet.export.check import compare
        from wideresnet.inference.predict import predict_logits

        file = Path(result["file"])
        exported = reopen_written(file, weights) if args.format == "torch" else read_exported(file)
        ours, theirs = predict_logits(weights, args.check, others=[exported])
        result["check"] = compare(ours, theirs, result["metadata"]["precision"])
    show(args, result, render)
    if args.check and (failure := result["check"]["failure"]):
        raise WRNError(f"{result['file']}: {failure}")


def render(result: dict[str, Any]) -> str:
    """The files, what the model takes and gives, and how near it is to the network."""
    about = result["metadata"]
    image = about["input"]
    lines = [f"{file}  {human_bytes(Path(file).stat().st_size)}" for file in result["files"]]
    free = ", ".join(image["dynamic"]) or "nothing, one image at a time"
    lines += [
        f"input   {image['type']} {image['color']} pixels {image['range']}, {image['layout']}, "
        f"{image['width']} x {image['height']} px; free: {free}",
        f"output  {', '.join(about['outputs'])} of {counted(len(about['class_names']), 'class', 'classes')}",
        f"golden  {_comparison(result['golden'])}",
    ]
    if "check" in result:
        lines.append(f"check   {_comparison(result['check'])}")
    return "\n".join(lines)


def _comparison(found: dict[str, Any]) -> str:
    text = (
        f"{counted(found['num_images'], 'image')}: logits differ by at most {found['max_logit_difference']:.1e}, "
        f"probabilities by {found['max_probability_difference']:.1e}"
    )
    if found["precision"] != "fp32":
        text += (
            f"; the best class agrees on {found['top1_agreement_pct']:.1f} %, "
            f"logits of nine in ten change by at most {100 * found['logit_change']:.1f} %"
        )
    return text
