"""Write the tables of docs/detection.md and its figures from the committed records in results/detection/.

python tools/detection.py           write them
python tools/detection.py --check   exit 1 if they are not what the records say

A record is the run folder of `wrn detect train` without weights, detections and page: COCO's photographs have licenses
of their own, most of them for non-commercial use, so no picture of them is committed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pages import ROOT, between, write_or_check
from paper_figures import Drawing
from wideresnet.base.format import counted, human_seconds
from wideresnet.detection.coco import RULES
from wideresnet.report.detection_figures import draw_precision_recall, draw_training
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.spec.detection import DetectionFolder
from wideresnet.spec.detection_results import COCO_RESULTS
from wideresnet.spec.files import read_json

PAGE, FIGURES = ROOT / "docs" / "detection.md", ROOT / "docs" / "figures"
SHOWN = "wrn-18-0.5-coco-tiny-train"
"""The record whose curves are drawn."""

COLUMNS = ("ap_pct", "ap50_pct", "ap75_pct", "ap_small_pct", "ap_medium_pct", "ap_large_pct")


def rules_table() -> str:
    """Write what is done about each kind of finding."""
    rows = ["| found | what is done |", "|---|---|"]
    return "\n".join([*rows, *(f"| {kind} | {rule} |" for kind, rule in RULES.items())])


def records_table(folders: list[DetectionFolder]) -> str:
    """Write a row for each published result and each record, and the figures."""
    rows = [
        "| backbone | detector | data | AP | AP50 | AP75 | small | medium | large | training | memory | on |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for published in COCO_RESULTS:
        about = (published.network, published.detector, published.split, f"{published.ap_pct:.1f}", *["-"] * 7)
        rows.append(_row(*about, published.source))
    for folder in folders:
        result, env, recipe = folder.read_result(), read_json(folder.env), folder.read_detection_recipe()
        link = f"[{result['detector']}, {recipe.recipe}](../{folder.path.relative_to(ROOT).as_posix()}/recipe.json)"
        measured = (f"{result[name]:.1f}" if name in result else "-" for name in COLUMNS)
        speed = f"{human_seconds(result['train_s'])} ({result['images_per_s']:.2f} images/s)"
        about = f"{counted(result['epochs'], 'epoch')}, {speed}"
        on = f"{hardware_text(env)}, {result['precision']}, {torch_text(env)}"
        data = f"{result['dataset']}, {result['num_images']} {result['split']} images"
        memory = f"{result['peak_memory_mib']:,.0f} MiB"
        rows.append(_row(result["backbone"], link, data, *measured, about, memory, on))
    return "\n".join(rows)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Write or check."""
    folders = [DetectionFolder(path.parent) for path in sorted((ROOT / "results" / "detection").glob("*/result.json"))]
    shown = DetectionFolder(ROOT / "results" / "detection" / SHOWN)
    metrics: list[dict[str, Any]] = shown.read_metrics()
    curves = read_json(shown.evaluation)["curves"]
    drawings = (
        Drawing("detection-training", metrics, lambda: draw_training(metrics)),
        Drawing("detection-precision-recall", curves, lambda: draw_precision_recall(curves)),
    )
    text = PAGE.read_text()
    for name, content in (("rules", rules_table()), ("records", records_table(folders))):
        text = between(text, f"<!-- {name}: made by tools/detection.py -->", f"<!-- end of {name} -->", content)
    pages: dict[Path, str] = {PAGE: text}
    for drawing in drawings:
        path = FIGURES / f"{drawing.name}.svg"
        is_current = "--check" in sys.argv[1:] and path.is_file() and drawing.mark in path.read_text()
        pages[path] = path.read_text() if is_current else drawing.svg()
    return write_or_check(pages, "results/detection/")


if __name__ == "__main__":
    sys.exit(main())
