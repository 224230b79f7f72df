"""The page of a detection run: mAP beside the paper's, curves, pictures with boxes, the most confident mistakes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import human_seconds
from wideresnet.data.images import decode
from wideresnet.report import html
from wideresnet.report.boxes import Box, draw_boxes, wide_pictures
from wideresnet.report.detection_figures import draw_precision_recall, draw_training
from wideresnet.report.environment import hardware_text
from wideresnet.report.figures import LIGHT
from wideresnet.report.text import shell_command
from wideresnet.spec.detection import FIELDS, GROUPS, RECIPES, DetectionFolder, DetectionRecipe, resolve
from wideresnet.spec.detection_results import COCO_RESULTS
from wideresnet.spec.fields import show_value
from wideresnet.spec.files import parse_json, read_json, write_atomic

MAX_CLASSES = 100
"""Classes in the table; of more, the most frequent ones are shown."""

SHOWN_MISTAKES = 16
"""Of each kind, as pictures."""

CROP_MARGIN, MIN_CROP_PX = 0.6, 96
"""What is shown around the box of a mistake, as a share of its side, and the least side of the cut."""

PICTURE_PX, TILE_PX, TILE_LINE_PX = 480, 220, 3
"""Longer sides of a whole picture and of a mistake, which is shown at half of its size; the lines of its box."""

COLUMNS = {
    "ap_pct": "AP", "ap50_pct": "AP50", "ap75_pct": "AP75", "ap_small_pct": "small", "ap_medium_pct": "medium",
    "ap_large_pct": "large",
}  # fmt: skip

LIKE = {"no object": "no object there", "twice": "found already"}
"""What is wrong with a detection, if it does not fit an object of another class."""

Read = Callable[[str], np.ndarray | None]


def write_detection_report(run: str | Path) -> Path:
    """Write `report.html` of a detection run.

    Args:
        run: its folder.

    Returns:
        The page. An unfinished run has only its curves; without the images, the page has no pictures and says so.

    Raises:
        UsageError: no epoch has finished.
        DataError: a file of the run is damaged.
    """
    folder = DetectionFolder(run)
    recipe, records = folder.read_detection_recipe(), folder.read_metrics()
    if not records:
        raise UsageError(f"{folder.path}: no epoch has finished, so there is nothing to report yet; try again later")
    result = folder.read_result() if folder.result.is_file() else None
    env = read_json(folder.env) if folder.env.is_file() else {}
    title = f"{recipe.detector} on {recipe.backbone}, {Path(recipe.data).name}"
    body = [html.title(title, f"recipe {recipe.recipe}; seed {recipe.seed}")]
    body += _unfinished(records, recipe) if result is None else _headline(result, env)
    body += [html.heading("Training"), html.picture(functools.partial(draw_training, records), _training_alt(records))]
    if result is not None and folder.evaluation.is_file():
        found = parse_json(folder.read(folder.evaluation), str(folder.evaluation))
        try:
            body += _evaluation(found, recipe)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{folder.evaluation}: not an evaluation ({type(error).__name__}: {error}); the file was damaged"
            ) from None
    body += [*_recipe_section(recipe, folder), html.heading("Environment")]
    body.append(
        html.facts([(key, "-" if value is None else str(value)) for key, value in env.items() if key != "asked"])
    )
    write_atomic(folder.report, html.page(title, body))
    return folder.report


def _unfinished(records: Sequence[Mapping[str, Any]], recipe: DetectionRecipe) -> list[str]:
    last = next((record["ap_pct"] for record in reversed(records) if "ap_pct" in record), None)
    shown = "-" if last is None else f"{last:.2f} %"
    return [html.headline(shown, f"mAP so far, after {len(records)} of {recipe.epochs} epochs, not the result")]


def _headline(result: Mapping[str, Any], env: Mapping[str, Any]) -> list[str]:
    about = f"mAP (IoU 0.50 to 0.95) after the last epoch, on {result['num_images']:,} {result['split']} images"
    pairs = [
        ("AP50", f"{result['ap50_pct']:.2f} %"),
        ("objects", f"{result['num_objects']:,}"),
        ("parameters", f"{result['params']:,}"),
        ("epochs", f"{result['epochs']:,}"),
        ("time", human_seconds(result["seconds"])),
        ("training speed", f"{result['images_per_s']:.2f} images/s"),
        ("device", f"{result['device']}: {hardware_text(env)}" if "num_threads" in env else result["device"]),
        ("precision", result["precision"]),
        (
            "peak memory",
            f"{result['peak_memory_mib']:,.0f} MiB (predicted: {result.get('predicted_memory_mib', 0):,.0f})",
        ),
        ("evaluator", result.get("evaluator", "-")),
    ]
    rows = [
        (
            f"{result['backbone']} (this run)",
            *(f"{result[key]:.1f}" if key in result else "-" for key in COLUMNS),
            f"{result['dataset']}, {result['split']}",
            result["detector"],
        ),
        *(
            (row.network, f"{row.ap_pct:.1f}", *["-"] * (len(COLUMNS) - 1), row.split, f"{row.detector} ({row.source})")
            for row in COCO_RESULTS
        ),
    ]
    about_paper = (
        "The paper's detector is another one, and its hyper-parameters were not published: its number is a neighbor, "
        "not a target. docs/detection.md says how they differ."
    )
    return [
        html.headline(f"{result['ap_pct']:.2f} %", about),
        html.facts(pairs),
        html.heading("Beside the paper"),
        html.paragraph(about_paper, "muted"),
        html.table(
            "average precision", ("backbone", *COLUMNS.values(), "measured on", "detector"), rows,
            numbers=tuple(range(1, 1 + len(COLUMNS))), wrapped=(len(COLUMNS) + 2,),
        ),
    ]  # fmt: skip


def _training_alt(records: Sequence[Mapping[str, Any]]) -> str:
    last = next((record for record in reversed(records) if "ap_pct" in record), {})
    return (
        f"Average precision, loss and learning rate by epoch. Last loss {records[-1]['train_loss']:.3f}, last mAP "
        f"{last.get('ap_pct', float('nan')):.2f} %."
    )


def _evaluation(found: Mapping[str, Any], recipe: DetectionRecipe) -> Iterator[str]:
    yield html.heading("Precision and recall")
    areas = ", ".join(
        f"{name} {100 * sum(curve) / len(curve):.1f} %" for name, curve in found["curves"].items() if curve
    )
    yield html.picture(
        functools.partial(draw_precision_recall, found["curves"]), f"Precision by recall; areas: {areas}."
    )
    read, missing = _reader(Path(recipe.data)), set[str]()

    def image(file: str) -> np.ndarray | None:
        pixels = read(file)
        if pixels is None:
            missing.add(file)
        return pixels

    pictures = [
        (draw_boxes(pixels, [_box(each) for each in entry["objects"]], max_side=PICTURE_PX), entry)
        for entry in found["pictures"]
        if (pixels := image(entry["file"])) is not None
    ]
    if pictures:
        yield html.heading("Detections")
        yield html.paragraph(
            f"Images spread evenly over the {found['split']} split, with the detections of a score of "
            f"{found['picture_threshold']:g} or more.",
            "muted",
        )
        yield wide_pictures((pixels, Path(entry["file"]).name, _listed(entry["objects"])) for pixels, entry in pictures)
    yield from _mistakes(found, image)
    if missing:
        yield html.paragraph(
            f"No pictures of {len(missing):,} images, which are not in {recipe.data} or cannot be read.", "note"
        )
    yield from _classes(found["classes"])
    if found.get("notes"):
        yield html.heading("What was found and decided")
        yield from (html.paragraph(note, "muted") for note in found["notes"])


def _mistakes(found: Mapping[str, Any], image: Read) -> Iterator[str]:
    wrong, missed = found["false_positives"], found["misses"]
    yield html.heading("Most confident false positives")
    yield html.paragraph(
        f"Of {found['num_false_positives']:,} detections with a score of 0.5 or more that fit no object of their class "
        "at IoU 0.5, or one that a better one has. Objects that nobody annotated count, too.",
        "muted",
    )
    yield _tiles(wrong, image, _about_wrong, LIGHT.wrong)
    yield html.heading("Largest misses")
    yield html.paragraph(
        f"Of {found['num_misses']:,} objects without a detection of their class and a score of 0.5 or more; shown are "
        "those without any.",
        "muted",
    )
    yield _tiles(
        missed, image,
        lambda each: (each["class"], f"best other class: {each['best']:.2f}" if each["best"] else "nothing there"),
        LIGHT.accent,
    )  # fmt: skip


def _about_wrong(each: Mapping[str, Any]) -> tuple[str, str]:
    return f"{each['class']} {each['score']:.2f}", LIKE.get(each["like"], f"it is: {each['like']}")


def _tiles(
    entries: Sequence[Mapping[str, Any]],
    image: Read,
    say: Callable[[Mapping[str, Any]], tuple[str, str]],
    color: str,
) -> str:
    if not entries:
        return html.paragraph("None.", "muted")
    shown = []
    for each in entries[:SHOWN_MISTAKES]:
        line, text = say(each)
        pixels = image(each["file"])
        cut = None if pixels is None else cut_around(pixels, each["bbox"], color)
        shown.append((cut, line, f"{text}; {Path(each['file']).name}"))
    return html.captioned(shown)


def cut_around(pixels: np.ndarray, bbox: Sequence[float], color: str) -> np.ndarray:
    """Cut a box out of an image with something of what is around it, and draw the box.

    Args:
        pixels: uint8 (H, W, 3).
        bbox: left, top, width, height, px.
        color: of the box.

    Returns:
        uint8 (H', W', 3).
    """
    height, width = pixels.shape[:2]
    left, top, wide, high = map(float, bbox)
    side = max((1 + CROP_MARGIN) * max(wide, high), MIN_CROP_PX)
    x0, y0 = (int(np.clip(place, 0, most - 1)) for place, most in (
        (left + wide / 2 - side / 2, width), (top + high / 2 - side / 2, height),
    ))  # fmt: skip
    x1, y1 = min(width, max(x0 + 1, round(x0 + side))), min(height, max(y0 + 1, round(y0 + side)))
    cut = pixels[y0:y1, x0:x1]
    return draw_boxes(
        cut, [Box((left - x0, top - y0, wide, high), "", None, color)], max_side=TILE_PX, width=TILE_LINE_PX
    )


def _box(each: Mapping[str, Any]) -> Box:
    left, top, wide, high = map(float, each["bbox"])
    return Box((left, top, wide, high), str(each["class"]), float(each["score"]))


def _listed(objects: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{each['class']} {each['score']:.2f}" for each in objects[:4]) or "nothing found"


def _reader(root: Path) -> Read:
    """Return a function that reads an image of a set once; None if it cannot be read or leads out of the set."""

    @functools.lru_cache(maxsize=64)
    def read(file: str) -> np.ndarray | None:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            return None
        try:
            return decode(root / file)[0]
        except DataError:
            return None

    return read


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [row for row in classes if row["ap_pct"] is not None]
    shown = sorted(known, key=lambda row: -row["num_objects"])[:MAX_CLASSES]
    rows = [
        (row["class"], f"{row['ap_pct']:.1f}", f"{row['ap50_pct']:.1f}", f"{row['num_objects']:,}") for row in shown
    ]
    about = f"{len(shown)} of {len(classes)} classes, the most frequent first."
    header = ("class", "AP, %", "AP50, %", "objects")
    return [
        html.heading("Classes"),
        html.paragraph(about, "muted"),
        html.table("classes", header, rows, numbers=(1, 2, 3)),
    ]


def _recipe_section(recipe: DetectionRecipe, folder: DetectionFolder) -> list[str]:
    base = None
    if recipe.recipe in RECIPES:
        base = resolve(recipe.recipe, recipe.backbone, recipe.data, {"detector": recipe.detector})[1]
    settled = ("norm", "frozen_stages", "precision", "threads", "init_sha256")

    def was(key: str) -> str | None:
        differs = base is not None and key not in settled and getattr(recipe, key) != getattr(base, key)
        return show_value(getattr(base, key)) if differs else None

    groups = {
        group: [(key, show_value(getattr(recipe, key)), was(key), FIELDS[key].metadata["help"]) for key in keys]
        for group, keys in GROUPS.items()
    }
    again = ["wrn", "detect", "train", "--recipe", str(folder.recipe), "--out", f"{folder.path}-again"]
    return [
        html.heading("Run it again"),
        html.command(shell_command(again)),
        html.heading("Recipe"),
        html.recipe_table(groups),
    ]
