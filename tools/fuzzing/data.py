"""Images and data sets for the fuzzer: archives, parquet files, class folders."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, TiffImagePlugin

from wideresnet.data import Dataset, load_dataset
from wideresnet.data.formats import pillow_formats
from wideresnet.data.images import decode

from .mutations import damage_bytes, damage_json, damage_npz
from .reader import Files, Reader, any_bytes, damage_one

# Images.


def _pixels(height: int = 24, width: int = 20, channels: int = 3, seed: int = 0) -> np.ndarray:
    smooth = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, channels), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(smooth, np.ones((4, 4, 1), dtype=np.uint8)))


def _image_seeds() -> list[Files]:
    color, gray = Image.fromarray(_pixels()), Image.fromarray(_pixels(channels=1)[..., 0])
    clear, deep = color.convert("RGBA"), Image.fromarray(_pixels(channels=1)[..., 0].astype(np.uint16) * 250)
    clear.putalpha(gray)
    palette = color.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    cmyk, bits, blue = color.convert("CMYK"), gray.convert("1"), Image.new("RGBA", color.size, "blue")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description"
    frames: dict[str, Any] = {"save_all": True, "append_images": [blue, color]}
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((image, "PNG", {}) for image in (color, gray, clear, deep, palette, bits)),
        (color, "PNG", {"exif": exif}), (palette, "PNG", {"transparency": 3}), (clear, "PNG", frames),
        (color, "JPEG", {}), (gray, "JPEG", {"exif": exif}),
        (color, "JPEG", {"progressive": True, "comment": b"hello"}),
        (cmyk, "JPEG", {}), (color, "WEBP", {}), (clear, "WEBP", {"lossless": True, "exif": exif}),
        (clear, "WEBP", frames),
        *((image, "BMP", {}) for image in (color, gray, palette, bits, clear)),
        (palette, "GIF", {}), (color, "GIF", {**frames, "comment": b"hello" * 99}),
        (palette, "GIF", {"transparency": 3}),
        *((image, "TIFF", {"tiffinfo": tags}) for image in (color, deep, palette, cmyk, bits)),
        *((color, "TIFF", {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        (bits, "TIFF", {"compression": "group4"}), (clear, "TIFF", frames), (color, "TIFF", {"big_tiff": True}),
        *((image, kind, {}) for kind in pillow_formats() if kind in ("AVIF", "JPEG2000") for image in (color, clear)),
        (color, "PPM", {}), (gray, "PPM", {}), (bits, "PPM", {}), (deep, "PPM", {}),
    ]  # fmt: skip
    seeds: list[Files] = []
    for image, image_format, options in saved:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        seeds.append({"image": buffer.getvalue()})
    plain = " ".join(map(str, _pixels(8, 8).ravel().tolist())).encode()
    texts = (
        b"P3\n# made by hand\n8 8\n255\n" + plain,
        b"P6 8 8 100\n" + bytes(192),
        b"P1 8 8\n" + b"01" * 32,
        b"Pf\n2 2\n-1\n" + bytes(16),
    )
    return seeds + [{"image": text} for text in texts]


def _read_image(folder: Path) -> None:
    content = (folder / "image").read_bytes()
    for channels in (3, 1):
        pixels, _ = decode(folder / "image" if channels == 3 else content, channels)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == channels


# Archives, parquet, folders: each is a whole data set.


def read_dataset(path: Path) -> None:
    """Read a data set, and check what no input may break."""
    dataset = load_dataset(path)
    _check_dataset(dataset)


def _check_dataset(dataset: Dataset) -> None:
    texts = [dataset.name, *dataset.class_names, *dataset.notes]
    json.dumps(texts, ensure_ascii=False).encode()  # no lone surrogates
    assert not any(len(text.splitlines()) > 1 for text in texts)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8
        assert len(split.images) == len(split.labels) > 0
        assert 0 <= split.labels.min() <= split.labels.max() < len(dataset.class_names)


def _npz_seeds() -> list[Files]:
    images = np.stack([_pixels(8, 8, seed=seed) for seed in range(12)])
    labels, names = np.arange(12) % 2, np.array(["cat", "dög"])
    keras = {"x_train": images, "y_train": labels, "x_test": images[:4], "y_test": labels[:4]}
    medical = {"train_images": images[..., 0], "train_labels": labels[:, None].astype(np.uint8), "class_names": names}
    medical |= {"val_images": images[:2, ..., 0], "val_labels": labels[:2, None]}
    first = {"x_train": images.transpose(0, 3, 1, 2), "y_train": labels.astype(np.uint64), "more": np.zeros(3)}
    seeds: list[Files] = []
    for arrays in (keras, medical, first):
        for save in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            save(buffer, **arrays)
            seeds.append({"a.npz": buffer.getvalue()})
    return seeds


def _encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(8, 8, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


ENCODED = [_encoded(seed) for seed in range(12)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'


def _parquet(names: Iterable[str], columns: Iterable[pa.Array], about: bytes = FEATURES, **options: Any) -> bytes:
    table = pa.table(list(columns), names=list(names)).replace_schema_metadata({b"huggingface": about})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{"row_group_size": 5, **options})
    return buffer.getvalue()


def _structs(images: Iterable[bytes | None]) -> pa.Array:
    return pa.array([{"bytes": image, "path": None} for image in images], STRUCT)


def _parquet_seeds() -> list[Files]:
    labels = pa.array([0, 1] * 6)
    whole = _parquet(("image", "label"), (_structs(ENCODED), labels))
    plain = _parquet(
        ("img", "fine_label"), (pa.array(ENCODED), labels.cast(pa.uint8())), compression="gzip", use_dictionary=False
    )
    return [{"d/train-0.parquet": whole, "d/test-0.parquet": whole}, {"d/train-00000-of-00001.parquet": plain}]


def _damage_parquet(random: Random, files: Files, other: Files) -> Files:
    if random.random() < 0.6:
        return any_bytes(random, files, other)
    num = random.choice((0, 1, 5, 12))
    raw: Any = [random.choice((*ENCODED, ENCODED[0], b"", None, b"x", ENCODED[0][:-30])) for _ in range(num)]
    numbers: Any = [random.choice((0, 0, 0, 1, 1, 2, -1, 2**62, None)) for _ in range(num)]
    image_columns = (_structs(raw), pa.array(raw, pa.large_binary()), pa.array(["a"] * num), pa.nulls(num),
                     pa.array([[]] * num),
                     pa.array([[image] for image in raw], pa.list_(pa.binary())), pa.array([None] * num, STRUCT),
                     pa.array([{"path": "a"}] * num, pa.struct([("path", pa.string())])))  # fmt: skip
    label_columns = (
        pa.array(numbers, pa.int64()), pa.array([2**64 - 1] * num, pa.uint64()), pa.array([float("nan")] * num),
        pa.array([True] * num), pa.array(["a"] * num), pa.nulls(num), pa.array([[0]] * num), pa.array([b"0"] * num),
        pa.array([0] * num, pa.timestamp("s")), pa.array(["a"] * num).dictionary_encode(),
        pa.array([0, 1] * (num // 2) + [0] * (num % 2)),
    )  # fmt: skip
    names = random.choice(
        (
            ("image", "label"),
            ("img", "label"),
            ("image", "image"),
            ("label", "label"),
            ("", "\n"),
            ("image.bytes", "label"),
        )
    )
    about = damage_json(random, FEATURES) if random.random() < 0.7 else random.choice((b"", b"[" * 100_000, b"\xff"))
    options = {
        "row_group_size": random.choice((1, 5, 100)),
        "compression": random.choice(("none", "snappy", "gzip", "zstd", "brotli")),
    }
    images = random.choice((image_columns[0], image_columns[0], *image_columns))
    content = _parquet(
        names, (images, random.choice((label_columns[-1], label_columns[-1], *label_columns))), about, **options
    )
    name = random.choice(
        (*files, "d/train-00000-of-99999999999.parquet", "d/train-1-of-0.parquet", "d/validation.parquet")
    )
    return {**files, name: content if random.random() < 0.9 else random.choice(("|", "nowhere", None, "."))}


def _folder_seeds() -> list[Files]:
    image: dict[str, bytes] = {f"{name}/{index}.png": ENCODED[index] for name in ("cat", "dog") for index in range(6)}
    split = {f"{split}/{path}": content for split in ("train", "test") for path, content in image.items()}
    return [{f"d/{path}": content for path, content in files.items()} for files in (image, split)]


_COMPONENTS = (
    "caf\udce9",
    "a\x1b[2Jb",
    "a\nb",
    "\u202e",
    ".",
    " ",
    "é",
    "e\u0301",
    ".git",
    "train",
    "test",
    "a" * 250,
    "-rf",
    "@eaDir",
    "__MACOSX",
)


def _damage_folder(random: Random, files: Files, _other: Files) -> Files:
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        path = random.choice(list(files))
        parts = path.split("/")
        where = random.randrange(1, len(parts))
        how = random.choice(
            ("rename", "rename", "bytes", "bytes", "drop", "link", "link", "pipe", "deep", "diamond", "empty")
        )
        content = files[path]
        if how == "rename":
            parts[where] = random.choice(_COMPONENTS) + (".png" if where == len(parts) - 1 else "")
            files.pop(path)
            files["/".join(parts)] = content
        elif how == "bytes" and isinstance(content, bytes):
            files[path] = damage_bytes(random, content, ENCODED[0])
        elif how == "drop":
            files.pop(path)
        elif how == "link":
            target = random.choice(
                (
                    ".",
                    "..",
                    "../..",
                    "../../..",
                    "nowhere",
                    "/dev/null",
                    "/dev/zero",
                    "x.png",
                    "../cat",
                    "/proc/self/fd",
                )
            )
            files["/".join((*parts[:-1], random.choice(("x", "x.png", "y"))))] = target
        elif how == "pipe":
            files["/".join((*parts[:-1], "p.png"))] = "|"
        elif how == "deep":
            files["/".join((*parts[:-1], *["d"] * random.choice((50, 300)), "x.png"))] = ENCODED[0]
        elif how == "diamond":
            for level in range(24):
                for side in "ab":
                    files["/".join((*parts[:-1], f".{level}", side))] = f"../.{level + 1}"
            files["/".join((*parts[:-1], "in"))] = ".0"
        else:
            files["/".join((*parts[:-1], random.choice(("new", "train", "test", "val"))))] = None
        if not files:
            return {"d": None}
    return _without_conflicts(files)


def _without_conflicts(files: Files) -> Files:
    """Leave out what is below a file or a link, which no file system can hold, and names without an end."""
    kept: Files = {}
    for path, content in sorted(files.items(), key=lambda item: (item[1] is None, len(item[0]))):
        parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
        below = any(other.startswith(path + "/") for other in kept)
        if path not in kept and not below and not any(isinstance(kept.get(parent), bytes | str) for parent in parents):
            kept[path] = content
    return {path: content for path, content in kept.items() if "/./" not in path and not path.endswith("/.")}


IMAGES = Reader("images", _image_seeds, any_bytes, _read_image, declared_mib=192)
NPZ = Reader("npz", _npz_seeds, damage_one(damage_npz, "a.npz"), lambda folder: read_dataset(folder / "a.npz"))
PARQUET = Reader("parquet", _parquet_seeds, _damage_parquet, lambda folder: read_dataset(folder / "d"))
FOLDERS = Reader("folders", _folder_seeds, _damage_folder, lambda folder: read_dataset(folder / "d"))
