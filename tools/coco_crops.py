"""Cut the objects of COCO out of its photographs, into class folders that `wrn train` reads.

python tools/coco_crops.py path/to/coco out/crops --least 15

The folder of COCO has `annotations/instances_train2017.json` and `instances_val2017.json` beside `train2017/` and
`val2017/`. All images are pooled and split by image, so that no photograph has crops in both `train/` and `val/`: the
image with the smallest SHA-256 of its file name goes first, until a quarter of them is in `val/`. A class needs at
least `--least` crops, and some in both parts. A crop is the object's box with a tenth of its sides around it; boxes of
crowds and boxes with a side below `--side` px are left out. Nothing of COCO is part of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

from PIL import Image

MARGIN = 0.1
"""Of a box's sides, around it. Own choice."""

VAL_SHARE = 0.25


def read_boxes(coco: Path, side: int) -> list[tuple[Path, str, tuple[int, int, int, int]]]:
    """List (photograph, class, box with its margin) of all objects that are large enough, in the order of the files."""
    found = []
    for split in ("train2017", "val2017"):
        document = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        names = {category["id"]: category["name"] for category in document["categories"]}
        images = {image["id"]: image for image in document["images"]}
        for each in document["annotations"]:
            left, top, width, height = each["bbox"]
            if each.get("iscrowd") or min(width, height) < side:
                continue
            image = images[each["image_id"]]
            box = (
                max(0, round(left - MARGIN * width)),
                max(0, round(top - MARGIN * height)),
                min(image["width"], round(left + (1 + MARGIN) * width)),
                min(image["height"], round(top + (1 + MARGIN) * height)),
            )
            found.append((coco / split / image["file_name"], names[each["category_id"]], box))
    return found


def validation_images(photographs: list[Path]) -> set[Path]:
    """Choose a quarter of the photographs, by their names alone."""
    order = sorted(set(photographs), key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return set(order[: round(VAL_SHARE * len(order))])


def cut(coco: Path, out: Path, least: int, side: int) -> dict[str, Counter[str]]:
    """Write the crops; return how many each part has of each class."""
    boxes = read_boxes(coco, side)
    held = validation_images([path for path, _, _ in boxes])
    counts = {"train": Counter[str](), "val": Counter[str]()}
    for path, name, _ in boxes:
        counts["val" if path in held else "train"][name] += 1
    kept = {
        name for name in counts["train"] if counts["val"][name] and counts["train"][name] + counts["val"][name] >= least
    }
    for number, (path, name, box) in enumerate(boxes):
        if name not in kept:
            continue
        folder = out / ("val" if path in held else "train") / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            photograph.convert("RGB").crop(box).save(folder / f"{path.stem}-{number:05d}.png")
    return {split: Counter({name: count[name] for name in sorted(kept)}) for split, count in counts.items()}


def main() -> None:
    """Read the command line, cut, and say what was cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path, help="folder of COCO")
    parser.add_argument("out", type=Path, help="where train/ and val/ are written")
    parser.add_argument("--least", type=int, default=15, help="crops of a class (15)")
    parser.add_argument("--side", type=int, default=16, help="shortest side of a box, px (16)")
    args = parser.parse_args()
    counts = cut(args.coco, args.out, args.least, args.side)
    for name in counts["train"]:
        print(f"{name:<16} {counts['train'][name]:>4} train {counts['val'][name]:>4} val")
    print(f"{len(counts['train'])} classes, {counts['train'].total()} and {counts['val'].total()} crops")


if __name__ == "__main__":
    main()
