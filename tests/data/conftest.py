"""A cache of its own for every test, and small data sets of every kind."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    monkeypatch.setenv("WRN_DATA", str(root))
    return root


def make_pixels(height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(pixels: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def make_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def bomb() -> Callable[[int, int], bytes]:
    """A small PNG whose header claims (width, height) pixels."""
    return make_bomb


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Random uint8 (height, width, channels)."""
    return make_pixels


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Pixels as the content of an image file."""
    return encode


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Write `<split>/<class>/<i>.png` for {split: {class: number of images}}; split "" is no split."""

    def write(layout: dict[str, dict[str, int]], height: int = 8, width: int = 8) -> Path:
        folder = tmp_path / "pets"
        folder.mkdir(exist_ok=True)
        seed = 0
        for split, classes in layout.items():
            for name, num_images in classes.items():
                (folder / split / name).mkdir(parents=True, exist_ok=True)
                for index in range(num_images):
                    seed += 1
                    content = encode(make_pixels(height, width, seed=seed))
                    (folder / split / name / f"{index}.png").write_bytes(content)
        return folder

    return write


@pytest.fixture
def parquet_file() -> Callable[..., Path]:
    """Write one parquet file of 8 x 8 images as Hugging Face does."""

    def write(
        path: Path,
        labels: Sequence[Any] = (0, 1, 0, 1),
        *,
        images: Sequence[bytes | None] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        label_type: pa.DataType | None = None,
        raw: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> Path:
        if images is None:
            images = [encode(make_pixels(seed=index)) for index in range(len(labels))]
        column: Any = list(images) if raw else [{"bytes": image, "path": None} for image in images]
        image_type = pa.binary() if raw else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {
                image_column: pa.array(column, image_type),
                label_column: pa.array(labels, label_type or pa.int64()),
            }
        )
        if class_names is not None:
            features = {label_column: {"names": list(class_names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=3)
        return path

    return write
