"""COCO's JSON and the images that it names: found, checked and handled by rule before the first step.

What is wrong with an annotation file is counted and named, one line for each kind, see `RULES`. Nothing is dropped
silently, and evaluation counts the file as COCO's own code does.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import counted
from wideresnet.data.limits import check_fits
from wideresnet.spec.files import digest, read_file

MEMORY_PER_BYTE = 8
"""What a byte of JSON may take: as Python values 1.3 on COCO's instances and 3.7 without their outlines (measured), and
what is made of them. Own choice."""

NAMED = 3
"""Examples that a message names."""

SHOWN = 20
"""Characters of a wrong value in a message."""

TOLERANCE_PX = 1.0
"""How far a box may stand out of its image by rounding."""

RULES: dict[str, str] = {
    "missing images": "left out with skip_unreadable=True, else an error",
    "images with an id that an earlier one has": "the first one is kept",
    "images without objects": "not trained on, evaluated",
    "annotations without an id": "left out",
    "annotations with an id that an earlier one has": "the first one is kept",
    "annotations of unknown images": "left out",
    "annotations of unknown categories": "left out",
    "boxes that are not four numbers": "left out",
    "boxes without area": "not trained on; evaluation counts them as the file has them",
    "boxes outside their image": "not trained on; evaluation counts them as the file has them",
    "boxes that stand out of their image": "cut off in training; evaluation counts them as the file has them",
    "crowd boxes": "not trained on; detections in them count neither as right nor as wrong, as COCO defines it",
}
"""Kind of finding -> what is done."""


@dataclass(frozen=True)
class CocoImage:
    """An image of a set: its id, file, and size in the JSON, px."""

    id: int
    file: Path
    height: int
    width: int


@dataclass(frozen=True)
class CocoSet:
    """One split, checked.

    Attributes:
        name: "train" or "val".
        root: the folder of the data.
        source: the JSON.
        images: in the order of the file.
        boxes: of each image, what is trained on, float32 (n, 4): left, top, right, bottom, px.
        labels: int64 (n,) each, from 0: the place in `categories`.
        categories: (id, name), in the order of the ids.
        truth: what an evaluator takes: `images`, `annotations` (boxes alone) and `categories`, as in COCO's JSON.
        findings: kind -> examples, all of them.
        digest: SHA-256 of the JSON.
    """

    name: str
    root: Path
    source: Path
    images: list[CocoImage]
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    categories: tuple[tuple[int, str], ...]
    truth: dict[str, list[dict[str, Any]]]
    findings: dict[str, list[str]]
    digest: str

    def notes(self) -> list[str]:
        """Return a line for each kind of finding: how many, which, and what is done."""
        lines = []
        for kind, rule in RULES.items():
            if examples := self.findings.get(kind):
                more = ", ..." if len(examples) > NAMED else ""
                lines.append(f"{self.name}: {len(examples):,} {kind} ({', '.join(examples[:NAMED])}{more}): {rule}")
        return lines

    def trained_on(self) -> np.ndarray:
        """Return the places of the images that have objects, int64."""
        return np.flatnonzero(np.array([len(boxes) > 0 for boxes in self.boxes]))


def find_split(root: str | Path, split: str) -> Path | None:
    """Find a split in COCO's layout or a plain one.

    Known are `annotations/instances_train2017.json` beside `train2017/`, `train.json` beside `train/` or `images/`, and
    `train/_annotations.coco.json` in the folder of its images. A folder with one JSON has one split, "train".

    Args:
        root: the folder.
        split: "train" or "val" ("valid", "validation" and "test" are taken for it).

    Returns:
        The JSON; None if there is no such split.

    Raises:
        UsageError: there is no such folder, or several files could be meant.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"data={root}: no such folder; name one with images and COCO's JSON")
    found = _json_files(root)
    for names in (("train",),) if split == "train" else (("val", "valid", "validation"), ("test",)):
        fits = [path for path in found if _split_of(path, root).startswith(names)]
        instances = [path for path in fits if path.stem.startswith("instances")]
        fits = instances or fits
        if len(fits) > 1:
            listed = ", ".join(str(path.relative_to(root)) for path in fits[:NAMED])
            raise UsageError(f"data={root}: several files could be the {split} split ({listed}); keep one there")
        if fits:
            return fits[0]
    return found[0] if split == "train" and len(found) == 1 else None


def read_split(root: str | Path, split: str, *, skip_unreadable: bool = False) -> CocoSet:
    """Read and check a split.

    Args:
        root, split: as for `find_split`.
        skip_unreadable: leave out images whose files are missing.

    Raises:
        UsageError: there is no such split.
        DataError: the JSON is not COCO's, or images are missing.
    """
    source = find_split(root, split)
    if source is None:
        raise UsageError(
            f"data={root}: no {split} split; expected annotations/instances_{split}*.json, {split}.json or "
            f"{split}/_annotations.coco.json"
        )
    return read_coco(source, Path(root), split, skip_unreadable=skip_unreadable)


def read_coco(source: Path, root: Path, name: str = "train", *, skip_unreadable: bool = False) -> CocoSet:
    """Read and check an annotation file in COCO's format.

    Args:
        source: the JSON.
        root: the folder in which its images are, at one of the usual places.
        name: of the split.
        skip_unreadable: leave out images whose files are missing.

    Raises:
        DataError: it is not in COCO's format, or images are missing.
    """
    check_fits(source.stat().st_size * MEMORY_PER_BYTE, f"{source}: its annotations", "use a machine with more")
    content = read_file(source)
    document = _document(content, source)
    folder = _image_folder(source, root, document)
    findings: dict[str, list[str]] = defaultdict(list)
    categories = _categories(document, source)
    images, entries = _images(document, source, folder, findings)
    if (missing := findings.get("missing images")) and not (skip_unreadable and images):
        more = ", ..." if len(missing) > NAMED else ""
        raise DataError(
            f"{source}: {len(missing):,} of {len(missing) + len(images):,} images are not in {folder} "
            f"({', '.join(missing[:NAMED])}{more}); put them there, or leave them out with skip_unreadable=True"
        )
    annotations, boxes, labels = _annotations(document, source, images, dict(categories), findings)
    numbers = {category: label for label, (category, _) in enumerate(categories)}
    kept = [np.array(each, dtype=np.float32).reshape(-1, 4) for each in boxes]
    numbered = [np.array([numbers[category] for category in each], dtype=np.int64) for each in labels]
    findings["images without objects"] += [
        image.file.name for image, each in zip(images, kept, strict=True) if not len(each)
    ]
    truth = {
        "images": entries, "annotations": annotations,
        "categories": [{"id": category, "name": text} for category, text in categories],
    }  # fmt: skip
    return CocoSet(name, root, source, images, kept, numbered, categories, truth, dict(findings), digest(content))


def _json_files(root: Path) -> list[Path]:
    every = [path for pattern in ("*.json", "*/*.json") for path in sorted(root.glob(pattern))]
    return [path for path in every if not path.stem.startswith(("captions", "person_keypoints", "stuff", "panoptic"))]


def _split_of(path: Path, root: Path) -> str:
    """Return what says which split a JSON is of: its name, or that of its folder."""
    stem = path.stem.lower().removeprefix("instances_")
    if stem.startswith(("train", "val", "test")) or path.parent in (root, root / "annotations"):
        return stem
    return path.parent.name.lower()


def _image_folder(source: Path, root: Path, document: dict[str, Any]) -> Path:
    """Return the first of the usual places that has one of the first images of a JSON."""
    stem = source.stem.removeprefix("instances_")
    places = [
        root / stem, root / "images" / stem, source.parent / stem, root / stem.rstrip("0123456789"), source.parent,
        source.parent / "images", root / "images", root,
    ]  # fmt: skip
    existing = [place for place in dict.fromkeys(places) if place.is_dir()]
    names = [str(image.get("file_name")) for image in _entries(document, "images", source)[:100]]
    return next((place for place in existing if any((place / name).is_file() for name in names)), existing[0])


def _document(content: bytes, source: Path) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(document, dict):
        raise DataError(f"{source}: must be an object with images, annotations and categories, as COCO's")
    return document


def _entries(document: dict[str, Any], key: str, source: Path) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{source}: {key} must be a list of objects, as in COCO's instances; this is another file")
    return entries


def _categories(document: dict[str, Any], source: Path) -> tuple[tuple[int, str], ...]:
    pairs = [(entry.get("id"), entry.get("name")) for entry in _entries(document, "categories", source)]
    if not all(_is_id(number) and isinstance(name, str) for number, name in pairs):
        raise DataError(f"{source}: each category needs an id, a whole number, and a name")
    twice = [number for number, times in Counter(number for number, _ in pairs).items() if times > 1]
    if twice:
        raise DataError(f"{source}: category {twice[0]} is there twice; give each category an id of its own")
    return tuple(sorted((int(number), str(name)) for number, name in pairs))  # type: ignore[arg-type]


def _images(
    document: dict[str, Any], source: Path, folder: Path, findings: dict[str, list[str]]
) -> tuple[list[CocoImage], list[dict[str, Any]]]:
    """Return the images whose files are there, and their entries for an evaluator."""
    images, entries, seen, present = [], [], set[int](), _Present(folder)
    for entry in _entries(document, "images", source):
        values: list[Any] = [entry.get(key) for key in ("id", "file_name", "height", "width")]
        number, name, height, width = values
        if not (isinstance(name, str) and all(map(_is_id, (number, height, width))) and min(height, width) > 0):
            raise DataError(f"{source}: each image needs id, file_name, height and width; one is {str(entry)[:80]}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{source}: file_name {name!r} leads out of {folder}; use names in that folder")
        if number in seen:
            findings["images with an id that an earlier one has"].append(f"{number}: {name}")
            continue
        seen.add(number)
        if not present.has(name):
            findings["missing images"].append(name)
            continue
        images.append(CocoImage(number, folder / name, height, width))
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
    return images, entries


class _Present:
    """Which files a folder has, with one look at each folder: a hundred thousand files are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, dict[str, set[str]]()

    def has(self, name: str) -> bool:
        inner, _, file = name.rpartition("/")
        if inner not in self.names:
            try:
                self.names[inner] = {path.name for path in (self.folder / inner).iterdir()}
            except OSError:
                self.names[inner] = set()
        return file in self.names[inner]


def _annotations(
    document: dict[str, Any], source: Path, images: list[CocoImage], categories: dict[int, str],
    findings: dict[str, list[str]],
) -> tuple[list[dict[str, Any]], list[list[list[float]]], list[list[int]]]:  # fmt: skip
    """Return the annotations for an evaluator, and boxes and categories to train on, image by image."""
    known = {entry["id"] for entry in document["images"] if isinstance(entry, dict)}
    place = {image.id: index for index, image in enumerate(images)}
    boxes: list[list[list[float]]] = [[] for _ in images]
    labels: list[list[int]] = [[] for _ in images]
    kept, seen = [], set[Any]()
    for entry in _listed(document, source):
        number, image, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        about = f"{number}"
        if not _is_id(number):
            findings["annotations without an id"].append(str(number)[:SHOWN])
            continue
        if number in seen:
            findings["annotations with an id that an earlier one has"].append(about)
            continue
        seen.add(number)
        if not _is_id(image) or image not in known:
            findings["annotations of unknown images"].append(about)
            continue
        if image not in place:  # its file is missing, and it is left out
            continue
        if not _is_id(category) or category not in categories:
            findings["annotations of unknown categories"].append(f"{about}: category {str(category)[:SHOWN]}")
            continue
        box = entry.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            findings["boxes that are not four numbers"].append(about)
            continue
        left, top, width, height = map(float, box)
        # numbered anew: pycocotools takes the id 0 for no match
        crowd, area = int(bool(entry.get("iscrowd"))), entry.get("area")
        kept.append(
            {
                "id": len(kept) + 1, "image_id": image, "category_id": category, "bbox": [left, top, width, height],
                "area": float(area) if _is_number(area) else width * height, "iscrowd": crowd,
            }
        )  # fmt: skip
        about = f"{number} in {images[place[image]].file.name}"
        if crowd:
            findings["crowd boxes"].append(about)
        elif not (width > 0 and height > 0):
            findings["boxes without area"].append(about)
        elif cut := _within(left, top, width, height, images[place[image]], about, findings):
            boxes[place[image]].append(cut)
            labels[place[image]].append(category)
    return kept, boxes, labels


def _within(
    left: float, top: float, width: float, height: float, image: CocoImage, about: str, findings: dict[str, list[str]]
) -> list[float] | None:
    """Return the part of a box that lies in its image: left, top, right, bottom; None if nothing does."""
    right, bottom = left + width, top + height
    cut = [max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height))]
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        findings["boxes outside their image"].append(about)
        return None
    if max(abs(new - old) for new, old in zip(cut, (left, top, right, bottom), strict=True)) > TOLERANCE_PX:
        findings["boxes that stand out of their image"].append(about)
    return cut


def _listed(document: dict[str, Any], source: Path) -> Iterator[dict[str, Any]]:
    annotations = document.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
        raise DataError(
            f"{source}: annotations must be a list of objects, as in COCO's instances; this is another file"
        )
    yield from annotations


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def summary(found: CocoSet) -> str:
    """Say what a split holds."""
    objects = sum(map(len, found.boxes))
    return (
        f"{counted(len(found.images), 'image')}, {counted(objects, 'object')}, "
        f"{counted(len(found.categories), 'category', 'categories')}"
    )
