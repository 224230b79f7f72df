"""A detector on a whole split: detections in COCO's results format, and what they are worth."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wideresnet.base import progress
from wideresnet.base.errors import DAMAGED, DataError
from wideresnet.data.feeds.resident import share_of
from wideresnet.data.feeds.workers import InOrder
from wideresnet.detection.coco import CocoSet
from wideresnet.detection.feed import Scaled, to_input, unreadable
from wideresnet.detection.metrics import evaluate_coco, find_mistakes
from wideresnet.distributed.collectives import all_gather
from wideresnet.distributed.world import World

NUM_PICTURES, MAX_BOXES, PICTURE_THRESHOLD = 12, 30, 0.5
"""Images that a page shows, the boxes in each, and their least score."""

COLUMNS = 7
"""Of a row of detections: place of the image in the set, label from 0, score, left, top, right, bottom."""


@torch.no_grad()
def detect(
    model: nn.Module, images: CocoSet, *, min_size: int, max_size: int, device: str, workers: int,
    world: World | None = None, skip_unreadable: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Run a detector over all images, one at a time, so that neither batches nor processes change a number.

    Args:
        model: on its device; it is left in the mode that it was in.
        images: the split.
        min_size, max_size: see `model.scaled_size`.
        device: "cpu" or "cuda".
        workers: processes that decode.
        world: the processes that share the images.
        skip_unreadable: leave out images that cannot be read, which then have no detections.

    Returns:
        Detections in COCO's results format, in the order of the images and of their scores; and a note for each image
        that could not be read.

    Raises:
        DataError: an image cannot be read.
    """
    world = world or World.single()
    share = share_of(len(images.images), world.rank, world.size)
    results = InOrder(Scaled(images, min_size, max_size), range(share.start, share.stop), workers)
    was_training, rows, notes = model.training, list[Tensor](), list[str]()
    model.eval()
    try:
        with progress.task("evaluating", total=len(images.images), fields=("rate",)) as task:
            started = time.monotonic()
            for done, place in enumerate(range(share.start, share.stop), 1):
                result = next(results)
                if isinstance(result, str):
                    name = str(images.images[place].file)
                    if not skip_unreadable:
                        raise unreadable(name, result)
                    notes.append(f"{name} cannot be read ({result}): its objects count as missed")
                    continue
                pixels, factors = result
                rows.append(detect_one(model, pixels, factors, place, device=device))
                rate = done * world.size / max(time.monotonic() - started, 1e-9)
                task.update(completed=done * world.size, rate=f"{rate:.1f} images/s")
    finally:
        results.close()
        model.train(was_training)
    own = torch.cat(rows) if rows else torch.zeros(0, COLUMNS)
    return to_coco(_gathered(own, world), images), notes


def detect_one(model: nn.Module, pixels: Tensor, factors: np.ndarray, place: int = 0, *, device: str) -> Tensor:
    """Detect objects in an image.

    Args:
        model: in evaluation mode.
        pixels: uint8 (3, H, W), scaled by `factors`.
        factors: float32 (4,), see `feed.read_scaled`.
        place: what the rows begin with.

    Returns:
        float32 (n, `COLUMNS`) on the CPU, the most confident first; boxes in px of the image before it was scaled.

    Raises:
        DataError: the outputs are not finite.
    """
    with torch.no_grad():
        (found,) = model([to_input(pixels, device)])
    boxes = found["boxes"].float().cpu() / torch.from_numpy(factors)
    scores, labels = found["scores"].float().cpu(), found["labels"].float().cpu()
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise DataError(DAMAGED)
    first = torch.full((len(scores), 1), float(place))
    return torch.cat((first, labels[:, None] - 1, scores[:, None], boxes), 1)


def _gathered(own: Tensor, world: World) -> Tensor:
    """Return the rows of all processes."""
    if world.size == 1:
        return own
    counts = [int(count) for count in all_gather(torch.tensor([len(own)]))[:, 0]]
    return world.gather_rows([own], counts) if sum(counts) else own


def to_coco(rows: Tensor, images: CocoSet) -> list[dict[str, Any]]:
    """Write rows of detections in COCO's results format."""
    found = []
    for place, label, score, left, top, right, bottom in rows.double().tolist():
        box = [left, top, right - left, bottom - top]
        image, category = images.images[int(place)].id, images.categories[int(label)][0]
        found.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    return found


def judge(images: CocoSet, detections: list[dict[str, Any]], evaluator: str | None = None) -> dict[str, Any]:
    """Return what `evaluate_coco` and `find_mistakes` say of detections, with the files of the images.

    Args:
        images: the split.
        detections: in COCO's results format.
        evaluator: as for `evaluate_coco`.
    """
    files = {image.id: image.file.relative_to(images.root).as_posix() for image in images.images}
    names = dict(images.categories)
    found = evaluate_coco(images.truth, detections, evaluator)
    mistakes = find_mistakes(images.truth, detections)
    for key in ("false_positives", "misses"):
        mistakes[key] = [
            {"file": files[each["image_id"]], "class": names[each["category_id"]], **each} for each in mistakes[key]
        ]
    shown = [images.images[int(place)].id for place in np.linspace(0, len(files) - 1, min(NUM_PICTURES, len(files)))]
    pictures: dict[int, list[dict[str, Any]]] = {number: [] for number in shown}
    for each in detections:
        if each["score"] >= PICTURE_THRESHOLD and len(pictures.get(each["image_id"], [None] * MAX_BOXES)) < MAX_BOXES:
            about = {"class": names[each["category_id"]], "score": each["score"], "bbox": each["bbox"]}
            pictures[each["image_id"]].append(about)
    num_objects = sum(not annotation["iscrowd"] for annotation in images.truth["annotations"])
    assert all(math.isfinite(value) for key, value in found.items() if key.endswith("_pct"))
    return {
        "split": images.name,
        "num_images": len(images.images),
        "num_objects": num_objects,
        **found,
        **mistakes,
        "picture_threshold": PICTURE_THRESHOLD,
        "pictures": [{"file": files[number], "image_id": number, "objects": pictures[number]} for number in shown],
    }
