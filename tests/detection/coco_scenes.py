"""A set of colored rectangles on gray noise in COCO's format, which a small detector learns in a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wideresnet.spec.detection import DetectionRecipe

COLORS = {"red": (220, 40, 40), "blue": (40, 60, 230)}
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]


def write_scenes(root: Path, num_train: int = 8, num_val: int = 4, *, size: int = 64) -> Path:
    """Write COCO's layout: annotations/instances_{split}.json beside {split}/; sides are `size` and 1.5 times that."""
    (root / "annotations").mkdir(parents=True)
    for split, num, seed in (("train", num_train, 0), ("val", num_val, 1)):
        random = np.random.default_rng(seed)
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, num + 1):
            height, width = (size, size * 3 // 2) if number % 2 else (size * 3 // 2, size)
            pixels = random.integers(90, 140, (height, width, 3)).astype(np.uint8)
            for category in CATEGORIES:
                wide, high = (int(side) for side in random.integers(size // 4, size // 2, 2))
                left, top = int(random.integers(0, width - wide)), int(random.integers(0, height - high))
                pixels[top : top + high, left : left + wide] = COLORS[str(category["name"])]
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number, "category_id": category["id"], "iscrowd": 0,
                        "bbox": [left, top, wide, high], "area": wide * high,
                    }
                )  # fmt: skip
            name = f"{number:012d}.png"
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        write_json(root, split, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return root


def path_of(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"instances_{split}.json"


def write_json(root: Path, split: str, document: dict[str, Any]) -> None:
    path_of(root, split).write_text(json.dumps(document))


def change(root: Path, edit: Callable[[dict[str, Any]], None], split: str = "train") -> None:
    """Edit the annotations of a split."""
    document = json.loads(path_of(root, split).read_text())
    edit(document)
    write_json(root, split, document)


def small(root: Path, **values: Any) -> DetectionRecipe:
    """A recipe whose steps take a tenth of a second."""
    return DetectionRecipe(
        **{
            "backbone": "WRN-18-0.25", "data": str(root), "fpn_channels": 16, "anchor_size": 8, "proposals": 50,
            "regions": 16, "min_size": 64, "max_size": 96, "epochs": 2, "batch_size": 2, "lr": 0.01,
            "lr_drop_epochs": (), "warmup_steps": 2, "clip_grad_norm": 10.0, "eval_every": 2, "device": "cpu",
            "workers": 0, "threads": 1,
            **values,
        }
    )  # fmt: skip
