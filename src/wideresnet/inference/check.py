"""A data set before anyone trains on it: the content of `wrn check`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import counted
from wideresnet.data.catalog import ReadOptions
from wideresnet.data.depth import white_of
from wideresnet.data.inspection import describe, fetch_pictures, find_duplicates, give_verdict, survey
from wideresnet.data.load import open_data
from wideresnet.machine.device import pick_device
from wideresnet.weights.hub import Weights, read_weights

PICTURE_PX = 160
NUM_GROUPS, NUM_SUSPICIOUS = 24, 48
"""Groups of duplicates and doubtful labels that are shown as pictures. This package's choice."""

Pictures = Callable[[list[int]], dict[int, Any]]


def check_data(
    data: str | Path,
    weights: str | Path | Weights | Sequence[str | Path | Weights] | None = None,
    *,
    skip_unreadable: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    class_order: str | None = None,
    device: str = "auto",
) -> tuple[dict[str, Any], dict[int, Any]]:
    """Look at every image of a data set, without loading them all, and give a verdict.

    Args:
        data, image_column, label_column, class_order: as for `load_dataset`, whose reader is used.
        weights: run folders, weights folders or `model.safetensors`, one or several, that know the classes; their
            networks say which labels they doubt. Runs with `holdout` also judge the training images that they held out.
        skip_unreadable: count images that cannot be read as a warning, since training leaves them out.
        device: "auto", "cpu" or "cuda".

    Returns:
        Values for JSON: data, layout, splits, classes, sizes, formats, modes, unreadable, num_unreadable, duplicates
        (of exact and near ones groups, images, across_splits, across_classes; and the groups), blank, suspicious,
        problems, warnings, notes, ready, verdict, seconds; and pictures for the page, index -> uint8 (H, W, C).

    Raises:
        UsageError: there is no such data, or the weights do not know its classes.
        DataError: the weights cannot be read. Data that cannot be used is a verdict, not an error.
    """
    started = time.monotonic()
    sources = [weights] if isinstance(weights, str | Path | Weights) else list(weights or ())
    read = [read_weights(source) if isinstance(source, str | Path) else source for source in sources]
    options = ReadOptions(
        skip_unreadable=skip_unreadable, image_column=image_column, label_column=label_column, class_order=class_order
    )
    device = pick_device(device)
    try:
        opened = open_data(data, options)
        seen = survey(opened)
    except UsageError:
        raise
    except DataError as error:
        return _finished(_empty(str(data), str(error)), started), {}
    document = describe(opened, seen, find_duplicates(seen), skip_unreadable=skip_unreadable)
    if read:
        from wideresnet.inference.labels import doubtful_labels, learned_images

        learned = [learned_images(source, opened, seen) for source in sources]
        doubts = doubtful_labels(
            list(zip(read, learned, strict=True)), opened, seen, device=device, white=white_of(seen.peaks)
        )
        document["suspicious"] = doubts.images
        document["notes"] += dict.fromkeys(note for each in read for note in each.notes)
        if doubts.num_learned:
            half = max(1, doubts.num_learned // 2)
            remedy = (
                f"To find them, train with holdout={half} and seeds=5, and check with all these runs"
                if len(read) == 1
                else "No run held these out; more seeds do"
            )
            document["notes"].append(
                f"the network agrees with {doubts.num_agreed:,} labels of the {counted(doubts.num_learned, 'image')} "
                f"that it learned from; it learns wrong labels by heart, so few of those are found. {remedy}"
            )
        if number := len(document["suspicious"]):
            are = "is" if number == 1 else "are"
            text = f"{counted(number, 'label')} {are} doubtful: the network is sure of another class"
            document["warnings"].append(text)
    groups = document["duplicates"]["groups"][:NUM_GROUPS]
    wanted = [image["image"] for group in groups for image in group["images"]]
    wanted += [image["image"] for image in document["suspicious"][:NUM_SUSPICIOUS]]
    return _finished(document, started), fetch_pictures(opened, wanted, PICTURE_PX)


def _empty(data: str, problem: str) -> dict[str, Any]:
    """The document of data that could not be opened."""
    none = {"groups": 0, "images": 0, "across_splits": 0, "across_classes": 0}
    return {
        "data": data, "layout": None, "splits": {"train": 0, "test": 0}, "classes": [], "sizes": None, "formats": {},
        "modes": {}, "unreadable": [], "num_unreadable": 0,
        "duplicates": {"exact": none, "near": none, "groups": []}, "blank": [], "suspicious": [],
        "problems": [problem], "warnings": [], "notes": [],
    }  # fmt: skip


def _finished(document: dict[str, Any], started: float) -> dict[str, Any]:
    seconds = round(time.monotonic() - started, 3)
    return {**document, "ready": not document["problems"], "verdict": give_verdict(document), "seconds": seconds}
