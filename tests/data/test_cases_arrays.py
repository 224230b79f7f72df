"""More inputs from public bug reports: archives, published binaries, 16 bits, arrays, and layouts that are named."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wideresnet.base.errors import DataError
from wideresnet.data import Dataset, load_dataset

Write = Callable[..., Path]
TWO = {"cat": 6, "dog": 5}


def picture(path: Path, seed: int, side: int = 8) -> Path:
    """Write a small image that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() not in (".jpg", ".jpeg") else "JPEG")
    return path


def counts(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Training and test images per class."""
    num = len(dataset.class_names)
    return tuple(np.bincount(part.labels, minlength=num).tolist() for part in (dataset.train, dataset.test))  # type: ignore[return-value]


def has_note(dataset: Dataset, text: str) -> bool:
    return any(text in note for note in dataset.notes)


# 7: parquet from the Hub


def parquet(path: Path, columns: dict[str, Any], **types: pa.DataType) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()}), path)
    return path


def encoded(num: int, start: int = 0) -> list[dict[str, Any]]:
    images = []
    for seed in range(start, start + num):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return images


@pytest.mark.parametrize("label", ["labels", "coarse_label", "target", "diagnosis"])
@pytest.mark.parametrize("image", ["pixel_values", "picture"])
@pytest.mark.parametrize(
    ("values", "names"),
    [([0, 1, 0, 1], ("0", "1")), (["cat", "dog", "cat", "dog"], ("cat", "dog")), ([True, False] * 2, ("false", "true")),
     ([1, 2, 1, 2], ("1", "2")), ([0.0, 1.0, 0.0, 1.0], ("0", "1"))],
)  # fmt: skip
def test_parquet_takes_the_only_columns_that_fit(
    tmp_path: Path, image: str, label: str, values: Sequence[Any], names: tuple[str, ...]
) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / f"d/default/{split}/0000.parquet", {image: encoded(4), label: values})
    dataset = load_dataset(tmp_path / "d")
    assert (dataset.class_names, len(dataset.train), len(dataset.test)) == (names, 4, 4)
    assert [names[label] for label in dataset.train.labels] == [
        str(value).lower().removesuffix(".0") for value in values
    ]


def test_parquet_with_several_columns_lists_the_choices(tmp_path: Path) -> None:
    columns = {"front": encoded(4), "back": encoded(4, 9), "age": [1, 2, 3, 4], "sex": ["f", "m", "f", "m"]}
    for split in ("train", "test"):
        parquet(tmp_path / f"d/{split}.parquet", columns)
    with pytest.raises(DataError, match="several columns may be the image: front, back; choose one with image_column="):
        load_dataset(tmp_path / "d")
    with pytest.raises(DataError, match="several columns may be the label: age, sex; choose one with label_column="):
        load_dataset(tmp_path / "d", image_column="back")
    with pytest.raises(DataError, match="label_column='sexx': no such column; its columns are front, back, age, sex"):
        load_dataset(tmp_path / "d", image_column="back", label_column="sexx")
    assert load_dataset(tmp_path / "d", image_column="back", label_column="sex").class_names == ("f", "m")


def test_parquet_with_paths_reads_only_inside_the_folder(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"d/images/{i}.png", i).relative_to(tmp_path / "d").as_posix() for i in range(4)]
    images = [{"bytes": None, "path": path} for path in paths]
    for split in ("train", "test"):
        parquet(tmp_path / f"d/{split}.parquet", {"image": images, "label": [0, 1, 0, 1]})
    expected = np.asarray(Image.open(tmp_path / "d/images/2.png"))
    np.testing.assert_array_equal(load_dataset(tmp_path / "d").train.images[2], expected)
    picture(tmp_path / "secret.png", 1)
    images[3]["path"] = "../secret.png"
    parquet(tmp_path / "d/train.parquet", {"image": images, "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"train.parquet row 3 \('../secret.png' is not in the folder of the data set"):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize("validation", [True, False])
def test_a_test_split_with_labels_of_minus_one_is_no_test_set(tmp_path: Path, validation: bool) -> None:
    parquet(tmp_path / "d/train-0.parquet", {"image": encoded(10), "label": [0, 1] * 5})
    parquet(tmp_path / "d/test-0.parquet", {"image": encoded(4, 20), "label": [-1] * 4})
    if validation:
        parquet(tmp_path / "d/validation-0.parquet", {"image": encoded(4, 30), "label": [1, 1, 0, 1]})
    dataset = load_dataset(tmp_path / "d")
    assert dataset.test.labels.tolist() == ([1, 1, 0, 1] if validation else [0, 1])
    assert has_note(dataset, "all labels of test are -1")


# 10: what files are, whatever their names


def test_formats_are_known_by_content(tmp_path: Path) -> None:
    for seed, (name, image_format) in enumerate(
        {"cat/a.jpg": "PNG", "cat/b": "JPEG", "cat/c.jpg_large": "JPEG", "cat/d.avif": "AVIF", "cat/f.jp2": "JPEG2000",
         "dog/a.png": "PNG", "dog/b.jpg": "WEBP", "dog/0001": "PNG", "dog/c.png": "PNG", "dog/d.png": "PNG"}.items()
    ):  # fmt: skip
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, image_format)
    dataset = load_dataset(tmp_path / "pets")
    assert counts(dataset) == ([4, 4], [1, 1])
    assert has_note(dataset, "3 images without the extension of one")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            r"but HEIC; pip install wideresnet\[heic\] reads it, or convert",
        ),
        ("a.jpg", b"\0\0\0\x18ftypheix\0\0\0\0mif1heic", r"but HEIC; pip install wideresnet\[heic\]"),
        ("a.jpg", b"<!DOCTYPE html><html>", "an HTML page, probably of a failed download"),
        ("a.jpg", gzip.compress(b"x", mtime=0), "compressed with gzip"),
        ("a.jpg", b'{"error": "not found"}', "JSON, perhaps the message of a failed download"),
        ("a.jpg", bytes(100), "nothing but zeros, an unfinished download"),
        ("a.jxl", b"\xff\x0a" + bytes(20), "JPEG XL"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(
    class_folders: Write, name: str, content: bytes, message: str
) -> None:
    folder = class_folders({"": TWO})
    (folder / "cat" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(folder)
    assert len(load_dataset(folder, skip_unreadable=True).train) == 9


def test_unfinished_downloads_and_raw_files_are_named(class_folders: Write) -> None:
    folder = class_folders({"": TWO})
    for name in ("a.jpg.crdownload", "b.jpg.part", "c.NEF"):
        (folder / "cat" / name).write_bytes(b"II*\0")
    dataset = load_dataset(folder)
    assert has_note(dataset, "2 files not read: downloads that have not finished: cat/a.jpg.crdownload, cat/b.jpg.part")
    assert has_note(dataset, "1 file not read: a camera's raw format, which is not read: cat/c.NEF")


# 15: other layouts


def test_a_zip_of_class_folders_is_read_like_the_folder(class_folders: Write, tmp_path: Path) -> None:
    folder = class_folders({"train": TWO, "test": {"cat": 1, "dog": 1}})
    (tmp_path / "z").mkdir()
    with zipfile.ZipFile(tmp_path / "z/pets.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"pets/{path.relative_to(folder)}")
        archive.writestr("__MACOSX/pets/._x.png", b"x")
        archive.writestr("../evil.png", b"x")
        archive.writestr("/pets/train/cat/absolute.png", b"x")
    expected, dataset = load_dataset(folder), load_dataset(tmp_path / "z/pets.zip")
    assert (dataset.name, dataset.class_names) == ("pets", expected.class_names)
    np.testing.assert_array_equal(dataset.train.images, expected.train.images)
    np.testing.assert_array_equal(dataset.test.labels, expected.test.labels)
    assert has_note(dataset, "2 members of pets.zip with paths that lead out of it")
    assert [path.name for path in (tmp_path / "z").iterdir()] == ["pets.zip"]
    assert not (tmp_path / "evil.png").exists()


def test_a_zip_member_that_claims_more_than_it_holds_is_unreadable(tmp_path: Path, class_folders: Write) -> None:
    folder = class_folders({"": TWO})
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in sorted(folder.rglob("*.png")):
            archive.write(image, str(image.relative_to(folder)))
        archive.writestr("cat/huge.png", bytes(2**20))
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"cat/huge.png") - 46
    struct.pack_into("<L", content, entry + 24, 2**31)  # its size, in the central directory
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 12 images cannot be read: cat/huge.png \(a file of 2,147,483,648 bytes"):
        load_dataset(path)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("inner", ["", "MNIST/raw"])
def test_mnists_files(tmp_path: Path, ending: str, inner: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5))
    for name, rows in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        write_idx(tmp_path / "m" / inner / f"{name}-images-idx3-ubyte{ending}", images[rows])
        write_idx(tmp_path / "m" / inner / f"{name}-labels-idx1-ubyte{ending}", np.arange(12)[rows] % 2)
    dataset = load_dataset(tmp_path / "m")
    np.testing.assert_array_equal(dataset.train.images[..., 0], images[:8])
    assert (dataset.test.labels.tolist(), dataset.layout) == ([0, 1, 0, 1], "MNIST's idx files")
    path = tmp_path / "m" / inner / f"train-images-idx3-ubyte{ending}"
    content = b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 2**10, 2**9) + b"x"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*(header says|of memory)"):
        load_dataset(tmp_path / "m")


def test_stl10s_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    folder = tmp_path / "s/stl10_binary"
    folder.mkdir(parents=True)
    for split, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        images[rows].transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        (np.arange(6)[rows] % 2 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    dataset = load_dataset(tmp_path / "s")
    np.testing.assert_array_equal(dataset.train.images, images[:4])
    assert (dataset.class_names, dataset.test.labels.tolist()) == (("airplane", "bird"), [0, 1])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["labels.npy", "gaussian_noise.npy"], "it looks like CIFAR-10-C, corrupted test images"),
        (["images/a.jpg", "labels/a.txt"], "it looks like detection data in YOLO's layout"),
        (["images/a.jpg", "annotations/a.xml"], "it looks like a data set with annotations apart"),
        (
            ["train2017/a.jpg", "val2017/b.jpg", "annotations/instances_train2017.json"],
            "it looks like COCO, .*: wrn detect train --data takes it",
        ),
        (["train/a.jpg", "train/_annotations.coco.json"], "it looks like COCO"),
        (["a.zip"], "unpack the archives, or use the path of one .zip"),
        ([f"train/{kind}.{i}.jpg" for kind in ("cat", "dog") for i in range(10)], "labels seem to be in the names"),
        (["dataset_dict.json", "train/data.arrow"], "save_to_disk"),
    ],
)  # fmt: skip
def test_layouts_that_are_not_read_are_named(tmp_path: Path, files: list[str], message: str) -> None:
    for seed, name in enumerate(files):
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x") if path.suffix != ".jpg" else picture(path, seed)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path / "d")
    assert "\n" not in str(caught.value)


def png_of_16_bits(path: Path, values: np.ndarray) -> None:
    """Write uint16 (H, W, C), which Pillow cannot if C is 3."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_16_bit_images_are_scaled_by_the_bits_that_the_set_uses(tmp_path: Path, channels: int, bits: int) -> None:
    white = 2**bits - 1
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            values = random.integers(0, white // 2, (8, 8, channels))
            if (split, name) == ("test", "dog"):
                values[0, 0] = white
            png_of_16_bits(tmp_path / f"d/{split}/{name}/0.png", values)
    dataset = load_dataset(tmp_path / "d")
    assert dataset.white == white
    np.testing.assert_allclose(dataset.test.images[1], np.rint(values * (255 / white)), atol=1 if channels == 3 else 0)
    assert has_note(dataset, f"{white:,} ({bits} bits) becomes white; white= chooses another value") == (bits < 16)
    given = load_dataset(tmp_path / "d", white=2 * white) if bits < 16 else dataset
    assert (given.white, given.test.images.max()) == ((2 * white, 128) if bits < 16 else (white, 255))


@pytest.mark.parametrize(
    "keys", ["image,label", "X,y", "images,labels", "data,target", "train_x,train_y", "trainX,trainY"]
)
@pytest.mark.parametrize(
    ("labels", "names"),
    [(np.arange(10) % 2, ("0", "1")), (np.arange(10) % 2 + 1, ("1", "2")), (np.arange(10) % 2 * 5, ("0", "5")),
     (np.eye(2, dtype=int)[np.arange(10) % 2], ("0", "1")), (np.eye(2)[np.arange(10) % 2], ("0", "1")),
     (np.arange(10) % 2 * 1.0, ("0", "1")), (np.array(["cat", "dog"] * 5), ("cat", "dog")),
     (np.array([False, True] * 5), ("false", "true"))],
)  # fmt: skip
def test_npz_pairs_and_labels_of_many_kinds(
    tmp_path: Path, keys: str, labels: np.ndarray, names: tuple[str, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    image_key, label_key = keys.split(",")
    np.savez(tmp_path / "a.npz", **{image_key: images, label_key: labels})  # type: ignore[arg-type]
    dataset = load_dataset(tmp_path / "a.npz")
    assert (dataset.class_names, dataset.train.labels.tolist()) == (names, [0, 1] * 4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_labels": np.ones((10, 14), dtype=int)}, "multi-label: 14 yes/no labels per image"),
        ({"train_images": np.zeros((10, 28, 28, 28), dtype=np.uint8)}, "3-D: volumes of 28 x 28 x 28"),
        ({"train_images": np.zeros((10, 1, 28, 28, 28), dtype=np.uint8)}, "3-D: volumes of 28 x 28 x 28"),
    ],
)
def test_medmnists_other_tasks_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    whole = {"train_images": images, "train_labels": np.arange(10)[:, None] % 2, **arrays}
    np.savez(tmp_path / "a.npz", **whole)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "a.npz")


def test_medmnists_validation_images_are_the_test_set_only_if_there_is_no_other(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (6, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(6)[:, None] % 2).astype(np.uint8)
    np.savez(tmp_path / "a.npz", **arrays)
    assert has_note(load_dataset(tmp_path / "a.npz"), "not read: val_images, val_labels")
    np.savez(tmp_path / "a.npz", **{name: value for name, value in arrays.items() if "test" not in name})
    dataset = load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(dataset.test.images[..., 0], arrays["val_images"])
