"""A trained detector at work: on a split with its annotations, and on image files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.data.feeds.workers import chosen_workers
from wideresnet.data.images import UnreadableError, decode_quietly, silent_pillow
from wideresnet.data.readers.walk import image_files
from wideresnet.detection.coco import read_split
from wideresnet.detection.evaluate import detect, detect_one, judge
from wideresnet.detection.feed import scaled, unreadable
from wideresnet.detection.metrics import pick_evaluator
from wideresnet.detection.model import set_precision
from wideresnet.detection.weights import Detector, read_detector
from wideresnet.machine.device import pick_device, pick_precision
from wideresnet.report.boxes import Box, draw_boxes
from wideresnet.spec.detection import DetectionFolder, is_detection

MAX_DRAWN_PX = 1600
"""Longer side of a picture with boxes. Own choice."""


def evaluate_detector(
    weights: str | Path | Detector,
    data: str | Path | None = None,
    *,
    split: str = "val",
    evaluator: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a detector by COCO's mAP.

    Args:
        weights: as for `read_detector`, or what that returned.
        data: the folder; None for that of the run.
        split: "val" or "train".
        evaluator: "faster-coco-eval" or "pycocotools"; None for the one that is installed.
        device, precision: as for `wrn eval`.
        workers: processes that decode images.
        skip_unreadable: leave out images that are missing or cannot be read.

    Returns:
        What `evaluate.judge` returns, with `backbone`, `detector`, `device`, `precision`, `images_per_s` and `notes`;
        and the detections in COCO's results format.

    Raises:
        UsageError: there are no weights, no data, or no evaluator; or the categories are others.
        DataError: files are damaged, or images cannot be read.
    """
    evaluator, device = pick_evaluator(evaluator), pick_device(device)
    precision = pick_precision(precision, device)
    read = weights if isinstance(weights, Detector) else read_detector(weights)
    if data is None:
        if isinstance(weights, Detector) or not is_detection(Path(weights)):
            raise UsageError("data=None: the weights are not in the folder of a run, so the data is not known")
        data = DetectionFolder(weights).read_detection_recipe().data
    images = read_split(data, split, skip_unreadable=skip_unreadable)
    if images.categories != read.categories:
        raise UsageError(
            f"data={data}: {len(images.categories)} categories that are not the {len(read.categories)} of the weights "
            f"({', '.join(name for _, name in read.categories[:3])}, ...); use data with the same list"
        )
    set_precision(read.model, precision)
    started = time.monotonic()
    detections, notes = detect(
        read.model.to(device), images, min_size=read.min_size, max_size=read.max_size, device=device,
        workers=chosen_workers(workers, device, 1), skip_unreadable=skip_unreadable,
    )  # fmt: skip
    seconds = time.monotonic() - started
    about = {
        "backbone": read.architecture.network, "detector": read.architecture.values["detector"], "device": device,
        "precision": precision, "images_per_s": round(len(images.images) / max(seconds, 1e-9), 2),
        "notes": [*read.notes, *images.notes(), *notes],
    }  # fmt: skip
    return {**about, **judge(images, detections, evaluator)}, detections


def detect_files(
    weights: str | Path | Detector,
    images: Sequence[str | Path],
    *,
    threshold: float = 0.5,
    pictures: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_unreadable: bool = False,
) -> list[dict[str, Any]]:
    """Find objects in image files.

    Args:
        weights: as for `read_detector`, or what that returned.
        images: files, folders of them, or patterns.
        threshold: least score of an object, 0..1.
        pictures: a folder for copies with the boxes drawn; old ones of the same names are replaced.
        device, precision: as for `wrn eval`.
        skip_unreadable: go on without files that cannot be read; they get a note.

    Returns:
        For each file `file`, `image_id` (the number that is its name, as COCO's files have, else its place from 1),
        `objects` from the threshold on, the surest first (`class`, `category_id`, `score`, `bbox`: left, top, width,
        height, px), `coco` (all detections in COCO's results format), `notes`, and `picture`, if it was drawn.

    Raises:
        UsageError: there are no weights or no such images.
        DataError: an image cannot be read.
    """
    device = pick_device(device)
    precision = pick_precision(precision, device)
    files = image_files(images)
    read = weights if isinstance(weights, Detector) else read_detector(weights)
    for note in read.notes:
        progress.report(f"note: {note}")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    set_precision(read.model, precision)
    model, names = read.model.to(device), dict(read.categories)
    answers: list[dict[str, Any]] = []
    drawn: set[str] = set()
    with silent_pillow():
        for place, file in enumerate(progress.track(files, "finding objects"), 1):
            answer: dict[str, Any] = {"file": str(file), "image_id": _image_id(file, place)}
            try:
                pixels, conversions = decode_quietly(file, 3)
            except UnreadableError as error:
                if not skip_unreadable:
                    raise unreadable(str(file), str(error)) from None
                answers.append({**answer, "objects": [], "coco": [], "notes": [f"skipped: {error}"]})
                continue
            rows = _detected(model, pixels, read, device)
            found = [
                {
                    "image_id": answer["image_id"], "category_id": read.categories[int(label)][0],
                    "bbox": [left, top, right - left, bottom - top], "score": score,
                }
                for _, label, score, left, top, right, bottom in rows
            ]  # fmt: skip
            objects = [
                {"class": names[each["category_id"]], **{key: each[key] for key in ("category_id", "score", "bbox")}}
                for each in found
                if each["score"] >= threshold
            ]
            answer |= {"objects": objects, "coco": found, "notes": sorted(conversions)}
            if pictures is not None:
                path = _picture_path(pictures, file, drawn)
                boxes = [Box(tuple(each["bbox"]), each["class"], each["score"]) for each in objects]
                Image.fromarray(draw_boxes(pixels, boxes, max_side=MAX_DRAWN_PX)).save(path)
                answer["picture"] = str(path)
            answers.append(answer)
    return answers


def _detected(model: torch.nn.Module, pixels: np.ndarray, detector: Detector, device: str) -> list[list[float]]:
    small, factors = scaled(pixels, detector.min_size, detector.max_size)
    tensor = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
    return detect_one(model, tensor, factors, device=device).double().tolist()


def _image_id(file: Path, place: int) -> int:
    return int(file.stem) if file.stem.isascii() and file.stem.isdecimal() and len(file.stem) <= 15 else place


def _picture_path(folder: Path, file: Path, taken: set[str]) -> Path:
    """Return a name for a picture that no other one of this call has."""
    number, name = 2, f"{file.stem}.png"
    while name in taken:
        name, number = f"{file.stem}-{number}.png", number + 1
    taken.add(name)
    return folder / name
