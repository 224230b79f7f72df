"""Data as people have it, for the fuzzer: zipped class folders, tables of labels, MNIST's files."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from random import Random

import numpy as np

from .data import ENCODED, read_dataset
from .mutations import damage_bytes
from .reader import Files, Reader, any_bytes

_CELLS = (b"", b"0.png", b"cat", b"..", b"../0.png", b"/dev/zero", b"\xff\xfe", b"\x00", b'"', b",,", b"\n", b"train",
          b"test", b"9" * 30, "e\u0301".encode(), b"label", b"a" * 5000, b"null", b"[[", b"{")  # fmt: skip


def _zip_seeds() -> list[Files]:
    seeds: list[Files] = []
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for splits in (("",), ("train/", "test/")):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", compression) as archive:
                for split in splits:
                    for index, image in enumerate(ENCODED):
                        archive.writestr(f"pets/{split}{'cat' if index % 2 else 'dog'}/{index}.png", image)
                archive.writestr("__MACOSX/x", b"x")
            seeds.append({"d.zip": buffer.getvalue()})
    return seeds


def _table_seeds() -> list[Files]:
    images: Files = {f"d/images/{index}.png": image for index, image in enumerate(ENCODED)}
    names = ["cat" if index % 2 else "dog" for index in range(len(ENCODED))]
    plain = "file,label\n" + "".join(f"{index}.png,{name}\n" for index, name in enumerate(names))
    split = "id\tclass\tsplit\n" + "".join(
        f"{i}\t{name}\t{'test' if i > 7 else 'train'}\n" for i, name in enumerate(names)
    )
    lines = "".join(f'{{"file_name": "{index}.png", "label": "{name}"}}\n' for index, name in enumerate(names))
    return [
        {**images, "d/labels.csv": plain.encode()},
        {**images, "d/labels.tsv": split.encode()},
        {**images, "d/images/metadata.jsonl": lines.encode()},
    ]


def _damage_table(random: Random, files: Files, other: Files) -> Files:
    name = next(name for name in files if not name.endswith(".png"))
    content, source = files[name], next(iter(other.values()))
    assert isinstance(content, bytes)
    assert isinstance(source, bytes)
    if random.random() < 0.4:
        return {**files, name: damage_bytes(random, content, source)}
    for _ in range(random.choice((1, 2, 5))):
        place = random.randrange(len(content))
        end = random.choice((place, place, content.find(b",", place), content.find(b"\n", place)))
        content = content[:place] + random.choice(_CELLS) + content[max(place, end) :]
    return {**files, name: content}


def _idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def _idx_seeds() -> list[Files]:
    images, labels = np.zeros((12, 8, 8), dtype=np.uint8), (np.arange(12) % 2).astype(np.uint8)
    images += np.arange(12, dtype=np.uint8)[:, None, None]
    files: dict[str, bytes] = {}
    for split in ("train", "t10k"):
        files |= {f"d/{split}-images-idx3-ubyte": _idx(images), f"d/{split}-labels-idx1-ubyte": _idx(labels)}
    return [{**files}, {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}]


def _read_folder(folder: Path) -> None:
    read_dataset(folder / "d")


ZIPS = Reader("zips", _zip_seeds, any_bytes, lambda folder: read_dataset(folder / "d.zip"))
TABLES = Reader("tables", _table_seeds, _damage_table, _read_folder)
IDX = Reader("idx", _idx_seeds, any_bytes, _read_folder)
