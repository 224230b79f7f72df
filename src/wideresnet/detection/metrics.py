"""COCO's mAP by a maintained evaluator, per class and as curves; the most confident mistakes and the misses."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wideresnet.base.errors import UsageError

Truth = Mapping[str, Sequence[Mapping[str, Any]]]

EVALUATORS = ("faster-coco-eval", "pycocotools")
"""The packages that can evaluate, the preferred one first; the extra `detect` installs the first."""

SUMMARY = (
    "ap_pct", "ap50_pct", "ap75_pct", "ap_small_pct", "ap_medium_pct", "ap_large_pct",
    "ar1_pct", "ar10_pct", "ar100_pct", "ar_small_pct", "ar_medium_pct", "ar_large_pct",
)  # fmt: skip
"""COCO's twelve numbers in its order: mean average precision, then mean average recall. Areas: below 32^2 px, to 96^2
px, above. Source: cocodataset.org, detection evaluation."""

MATCH_IOU = 0.5
"""Overlap at which a detection counts as right where mistakes are listed."""

MAX_LISTED = 40
"""Mistakes and misses that are kept."""

ALL_AREAS, MOST_DETECTIONS = 0, -1
"""Places in the evaluator's arrays: objects of every size; up to 100 detections per image."""


def pick_evaluator(wanted: str | None = None) -> str:
    """Return the evaluator that is installed.

    Args:
        wanted: one of `EVALUATORS`; None for the first that is there.

    Raises:
        UsageError: it is not installed.
    """
    for name in EVALUATORS if wanted is None else (wanted,):
        with contextlib.suppress(ImportError):
            importlib.import_module(name.replace("-", "_"))
            return name
    missing = wanted or EVALUATORS[0]
    raise UsageError(f"evaluator={missing!r}: {missing} is not installed; pip install wideresnet[detect]")


def evaluate_coco(
    truth: Mapping[str, Sequence[Mapping[str, Any]]],
    detections: Sequence[Mapping[str, Any]],
    evaluator: str | None = None,
) -> dict[str, Any]:
    """Compute COCO's average precision.

    Args:
        truth: `images`, `annotations` and `categories`, as in COCO's JSON.
        detections: `image_id`, `category_id`, `bbox` (left, top, width, height, px) and `score` each, COCO's results
            format.
        evaluator: one of `EVALUATORS`; None for the one that is installed.

    Returns:
        The names of `SUMMARY` -> percent (those without an object are left out); `evaluator`; `classes`, a list of
        `class`, `category_id`, `num_objects`, `ap_pct` and `ap50_pct` (None without an object); `curves`, precision by
        recall, mean over classes, at IoU `0.50`, `0.75` and `mean`, which is over 0.50 to 0.95.

    Raises:
        UsageError: no evaluator is installed.
    """
    name = pick_evaluator(evaluator)
    summary, precision, category_ids = _run(name, truth, detections)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    counts = dict.fromkeys(names, 0)
    for annotation in truth["annotations"]:
        counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
    shown = precision[:, :, :, ALL_AREAS, MOST_DETECTIONS]  # IoU, recall, class
    classes = [
        {
            "class": names[category], "category_id": category, "num_objects": counts[category],
            "ap_pct": _percent(shown[:, :, place]), "ap50_pct": _percent(shown[0, :, place]),
        }
        for place, category in enumerate(category_ids)
    ]  # fmt: skip
    curves = {"0.50": _curve(shown[:1]), "0.75": _curve(shown[5:6]), "mean": _curve(shown)}
    found = {key: 100 * float(value) for key, value in zip(SUMMARY, summary, strict=True) if value >= 0}
    return {**found, "evaluator": name, "classes": classes, "curves": curves}


def _run(
    name: str, truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Run an evaluator; return its numbers, precision (IoU, recall, class, area, detections), classes."""
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO  # type: ignore[assignment]
        from faster_coco_eval import COCOeval_faster as Evaluation  # type: ignore[assignment]
    with contextlib.redirect_stdout(io.StringIO()):  # they print
        known: Any = COCO()
        known.dataset = {"info": {}, **{key: [dict(entry) for entry in truth[key]] for key in truth}}
        known.createIndex()
        if detections:
            found: Any = known.loadRes([dict(each) for each in detections])
        else:  # which loadRes refuses
            found = COCO()
            found.dataset = {**known.dataset, "annotations": []}
            found.createIndex()
        evaluation: Any = Evaluation(known, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return (
        np.asarray(evaluation.stats[:12]),
        np.asarray(evaluation.eval["precision"]),
        [int(number) for number in evaluation.params.catIds],
    )


def _percent(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _curve(precision: np.ndarray) -> list[float]:
    """Return the mean precision at each recall of 0, 0.01, ... 1, over (IoU, recall, class); -1 is unknown."""
    known = np.where(precision > -1, precision, np.nan).transpose(1, 0, 2).reshape(precision.shape[1], -1)
    known = known[:, ~np.isnan(known).all(axis=0)]
    return [round(float(value), 5) for value in known.mean(axis=1)] if known.size else []


def find_mistakes(truth: Truth, detections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Find the most confident detections that are wrong, and the largest objects that were missed.

    Detections are matched to objects of their class at `MATCH_IOU`, the most confident first, each object once. Crowds
    excuse any number of detections in them. What is `like` says why: "no object", or the class of an object that
    the box fits, or "twice".

    Args:
        truth, detections: as for `evaluate_coco`.

    Returns:
        `false_positives` and `misses`: lists of `image_id`, `category_id`, `bbox`, and `score` and `like` or `best`,
        the score of the best detection of another class on it, 0 if there is none; `num_false_positives` and
        `num_misses` at the score of 0.5.
    """
    objects: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in truth["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for detection in detections:
        by_image.setdefault(detection["image_id"], []).append(detection)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    wrong, missed, num_wrong, num_missed = [], [], 0, 0
    for image in truth["images"]:
        own, found = objects.get(image["id"], []), by_image.get(image["id"], [])
        found = sorted(found, key=lambda each: -each["score"])
        overlaps = box_iou(
            _boxes(found), _boxes(own), np.array([bool(each.get("iscrowd")) for each in own], dtype=bool)
        )
        taken: dict[int, float] = {}
        for row, each in enumerate(found):
            fits = [
                (float(overlaps[row, column]), column)
                for column, other in enumerate(own)
                if other["category_id"] == each["category_id"] and overlaps[row, column] >= MATCH_IOU
            ]
            free = [(iou, column) for iou, column in fits if column not in taken and not own[column].get("iscrowd")]
            if free:
                taken[max(free)[1]] = each["score"]
                continue
            if any(own[column].get("iscrowd") for _, column in fits):
                continue
            num_wrong += each["score"] >= 0.5
            like = "twice" if fits else "no object"
            if not fits and len(own) and overlaps[row].max() >= MATCH_IOU:
                like = names[own[int(overlaps[row].argmax())]["category_id"]]
            wrong.append({key: each[key] for key in ("image_id", "category_id", "bbox", "score")} | {"like": like})
        for column, each in enumerate(own):
            if each.get("iscrowd") or min(each["bbox"][2:]) <= 0:
                continue
            num_missed += taken.get(column, 0.0) < 0.5
            if column not in taken:
                others = overlaps[:, column] >= MATCH_IOU
                best = max((found[row]["score"] for row in np.flatnonzero(others)), default=0.0)
                missed.append({key: each[key] for key in ("image_id", "category_id", "bbox")} | {"best": best})
    wrong.sort(key=lambda each: -each["score"])
    missed.sort(key=lambda each: -each["bbox"][2] * each["bbox"][3])
    return {
        "false_positives": wrong[:MAX_LISTED], "misses": missed[:MAX_LISTED],
        "num_false_positives": int(num_wrong), "num_misses": int(num_missed),
    }  # fmt: skip


def _boxes(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)


def box_iou(boxes: np.ndarray, others: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Return the overlaps of boxes (left, top, width, height); with a crowd, the share of the box that lies in it.

    Args:
        boxes: float64 (n, 4).
        others: float64 (m, 4).
        crowds: bool (m,).

    Returns:
        float64 (n, m), 0..1.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
    common = np.clip(high - low, 0, None).prod(-1)
    area, other_area = boxes[:, 2:].prod(-1)[:, None], others[:, 2:].prod(-1)[None]
    whole = np.where(crowds[None], area, area + other_area - common)
    return common / np.maximum(whole, 1e-12)
