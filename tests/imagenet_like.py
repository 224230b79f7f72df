"""A tiny "ImageNet": class folders or tar shards of images of many sizes and kinds, made by the test."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(seed: int, low: int = 64, high: int = 400, kind: str = "JPEG") -> bytes:
    """An image of random size whose colors depend on the seed; smooth, so that JPEG keeps it."""
    random = np.random.default_rng(seed)
    height, width = random.integers(low, high, 2)
    small = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if seed % 11 == 10:
        picture = picture.convert("L")
    picture.save(file, kind, **({"quality": 85, "subsampling": seed % 3} if kind == "JPEG" else {}))
    return file.getvalue()


def make_folders(folder: Path, num_classes: int = 20, train: int = 4, test: int = 1, high: int = 400) -> Path:
    """Write `train/<class>/` and `val/<class>/`; every seventh image is a PNG."""
    seed = 0
    for split, num in (("train", train), ("val", test)):
        for label in range(num_classes):
            place = folder / split / f"class{label:02d}"
            place.mkdir(parents=True)
            for number in range(num):
                seed += 1
                kind = "PNG" if seed % 7 == 6 else "JPEG"
                name = f"{number}.{'png' if kind == 'PNG' else 'jpg'}"
                (place / name).write_bytes(encoded(seed, high=high, kind=kind))
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a shard."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def make_shards(folder: Path, source: Path, label_kind: str = "cls", per_shard: int = 30) -> Path:
    """Write what `make_folders` wrote as shards, in the order of the folders, with the names of the classes."""
    folder.mkdir(parents=True)
    names = sorted(path.name for path in (source / "train").iterdir())
    (folder / "classnames.txt").write_text("\n".join(names))
    for split in ("train", "val"):
        files = sorted((source / split).rglob("*.*"))
        for start in range(0, len(files), per_shard):
            with tarfile.open(folder / f"tiny-{split}-{start // per_shard:04d}.tar", "w") as tar:
                for number, file in enumerate(files[start : start + per_shard], start):
                    label = names.index(file.parent.name)
                    text = json.dumps({"label": label}) if label_kind == "json" else str(label)
                    add(tar, f"{number:06d}{file.suffix}", file.read_bytes())
                    add(tar, f"{number:06d}.{label_kind}", text.encode())
    return folder
