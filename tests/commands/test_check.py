"""`wrn check`: what it finds in clean and in messy data, its verdict, exit status, document and page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wideresnet import fit, recipe_for
from wideresnet.commands.main import main

KEYS = {
    "data", "layout", "splits", "classes", "sizes", "formats", "modes", "unreadable", "num_unreadable", "duplicates",
    "blank", "suspicious", "problems", "warnings", "notes", "ready", "verdict", "seconds", "page", "files",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRN_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("WRN_AUTOTUNE", "off")
    monkeypatch.chdir(tmp_path)


def photo(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """A picture of soft shapes, as photographs are, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_photos(root: Path, layout: dict[str, int], start: int = 0) -> Path:
    seed = start
    for folder, number in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            seed += 1
            photo(seed).save(root / folder / f"{index}.jpg", quality=92)
    return root


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run the command with --json; returns the exit code and the document."""

    def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        code = main(["check", *map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


CLEAN = {"train/cat": 6, "train/dog": 5, "test/cat": 2, "test/dog": 2}


def test_a_clean_folder_is_ready(check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path) -> None:
    code, document = check(write_photos(tmp_path / "pets", CLEAN), "--out", "found")
    assert (code, document["verdict"], document["ready"]) == (0, "ready", True)
    assert document.keys() == KEYS
    assert document["layout"] == "class folders in train/ and test/"
    assert document["splits"] == {"train": 11, "test": 4}
    assert document["classes"] == [{"class": "cat", "train": 6, "test": 2}, {"class": "dog", "train": 5, "test": 2}]
    assert document["sizes"] == {"distinct": 1, "smallest_hw": [48, 64], "median_hw": [48, 64], "largest_hw": [48, 64]}
    assert (document["formats"], document["modes"]) == ({"JPEG": 15}, {"RGB": 15})
    assert document["files"] == ["found/check.html", "found/check.json"]
    stored = json.loads(Path("found/check.json").read_text())
    assert stored["verdict"] == "ready"
    assert "not ready" not in Path("found/check.html").read_text()


def make_messy(root: Path) -> Path:
    write_photos(root, {"Training/cat": 60, "Training/dog": 20, "Training/emu": 5, "Testing/cat": 4, "Testing/dog": 4})
    train, test = root / "Training", root / "Testing"
    shutil.copy(train / "cat/0.jpg", test / "cat/copy.jpg")
    shutil.copy(train / "cat/1.jpg", train / "dog/copy.jpg")
    small = Image.open(train / "dog/2.jpg")
    small.resize((48, 36)).save(test / "dog/small.jpg", quality=60)
    bright = np.asarray(Image.open(train / "cat/7.jpg")).astype(int) * 8 // 10 + 20
    Image.fromarray(bright.astype(np.uint8)).save(train / "dog/bright.png")
    Image.new("RGB", (64, 48), "white").save(train / "dog/white.png")
    (train / "cat/page.jpg").write_bytes(b"<!DOCTYPE html><html>")
    (train / "cat/phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (train / "cat/cut.jpg").write_bytes((train / "cat/3.jpg").read_bytes()[:500])
    (train / "cat/@eaDir").mkdir()
    (train / "cat/Thumbs.db").write_bytes(b"x")
    (train / "dog/photo.jpg.part").write_bytes(b"x")
    return root


def test_a_messy_folder_is_described_whole(check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path) -> None:
    folder = make_messy(tmp_path / "photos")
    code, document = check(folder, "--out", "found")
    assert code == 1
    assert document["verdict"].startswith("not ready: 3 of 101 images cannot be read: Training/cat/cut.jpg (damaged")
    assert "leave them out with --skip-unreadable" in document["verdict"]
    reasons = {row["file"].rpartition("/")[2]: row["reason"] for row in document["unreadable"]}
    assert reasons.keys() == {"cut.jpg", "page.jpg", "phone.heic"}
    assert "pip install wideresnet[heic]" in reasons["phone.heic"]
    assert document["duplicates"]["exact"] == {"groups": 2, "images": 4, "across_splits": 1, "across_classes": 1}
    assert document["duplicates"]["near"] == {"groups": 2, "images": 4, "across_splits": 1, "across_classes": 1}
    first = document["duplicates"]["groups"][0]
    assert (first["exact"], first["across_splits"]) == (True, True)
    assert {image["file"] for image in first["images"]} == {"Training/cat/0.jpg", "Testing/cat/copy.jpg"}
    assert {image["split"] for image in first["images"]} == {"train", "test"}
    assert document["blank"] == ["Training/dog/white.png"]
    for text in ("1 test image is equal to training", "2 images in 1 group are equal and have different classes",
                 "1 test image is nearly equal", "classes are unbalanced: cat has 60 training images, emu has 5",
                 "1 class has no test image", "of a single color"):  # fmt: skip
        assert sum(text in warning for warning in document["warnings"]) == 1, text
    notes = " ".join(document["notes"])
    assert "tools leave behind: Training/cat/@eaDir, Training/cat/Thumbs.db" in notes
    assert "downloads that have not finished: Training/dog/photo.jpg.part" in notes
    page = Path("found/check.html").read_text()
    assert page.count("<img") >= 8
    assert "Training/cat/phone.heic" in page
    code, document = check(folder, "--out", "found", "--skip-unreadable")
    assert (code, document["verdict"]) == (0, f"ready with {len(document['warnings'])} warnings")


def test_images_without_a_twin_are_not_near_duplicates(
    check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    _, document = check(write_photos(tmp_path / "d", {"a": 200, "b": 200}), "--out", "found")
    assert document["duplicates"]["near"]["groups"] == document["duplicates"]["exact"]["groups"] == 0


@pytest.mark.parametrize("change", ["jpeg", "resized", "brighter", "noise"])
def test_near_duplicates_of_each_kind_are_found(
    check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path, change: str
) -> None:
    folder = write_photos(tmp_path / "d", {"train/a": 30, "train/b": 30, "test/a": 5, "test/b": 5})
    for index in range(10):
        image = Image.open(folder / f"train/a/{index}.jpg")
        pixels = np.asarray(image).astype(int)
        noise = np.random.default_rng(index).integers(-8, 9, pixels.shape)
        changed = {
            "jpeg": image,
            "resized": image.resize((image.width // 2, image.height // 2)),
            "brighter": Image.fromarray(np.clip(pixels + 20, 0, 255).astype(np.uint8)),
            "noise": Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)),
        }[change]
        changed.save(folder / f"test/a/twin{index}.jpg", quality=50)
    _, document = check(folder, "--out", "found")
    assert document["duplicates"]["near"]["across_splits"] == 10


def test_cifar_in_parquet_and_arrays_are_checked_too(
    check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    import io

    def content(seed: int) -> bytes:
        buffer = io.BytesIO()
        photo(seed, 32, 32).save(buffer, "PNG")
        return buffer.getvalue()

    (tmp_path / "cifar").mkdir()
    for split, start in (("train", 0), ("test", 16)):  # four test images are training images
        images = [{"bytes": content(start + index), "path": None} for index in range(20)]
        table = pa.table({"img": images, "label": [index % 2 for index in range(start, start + 20)]})
        pq.write_table(table, tmp_path / f"cifar/{split}-00000-of-00001.parquet")
    code, document = check(tmp_path / "cifar", "--out", "found")
    assert (code, document["verdict"], document["formats"]) == (0, "ready with 1 warning", {"PNG": 40})
    assert document["duplicates"]["exact"]["across_splits"] == 4
    arrays = np.stack([np.asarray(photo(seed, 32, 32)) for seed in range(20)])
    np.savez(tmp_path / "a.npz", X=arrays, y=np.arange(20) % 2)
    code, document = check(tmp_path / "a.npz", "--out", "found")
    assert (code, document["verdict"], document["layout"]) == (0, "ready", ".npz with X, y, test images held out")
    assert document["splits"] == {"train": 16, "test": 4}
    code, document = check("digits", "--out", "found")
    assert (code, document["layout"], document["splits"]["train"]) == (0, "scikit-learn digits", 1437)


def test_swapped_labels_are_ranked_first(check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path) -> None:
    def save(path: Path, seed: int, swapped: bool) -> None:
        random = np.random.default_rng(seed)
        images = random.integers(0, 90, (80, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(80) % 2
        images[labels == 1, :, 4:] += 120  # the right half is bright
        if swapped:
            labels[[4, 9, 40]] = 1 - labels[[4, 9, 40]]
        np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:],
                 class_names=np.array(["dark", "bright"]))  # fmt: skip

    save(tmp_path / "good.npz", 0, swapped=False)
    save(tmp_path / "bad.npz", 1, swapped=True)
    recipe = recipe_for("quick", "WRN-10-1", str(tmp_path / "good.npz"))
    fit(recipe.replace(epochs=12, batch_size=20, crop_padding=1, flip=False, device="cpu"), tmp_path / "run")
    code, document = check(tmp_path / "bad.npz", "--with", tmp_path / "run", "--out", "found")
    assert code == 0
    first = document["suspicious"][:3]
    assert {entry["file"] for entry in first} == {"train row 4", "train row 9", "train row 40"}
    assert all(entry["predicted"] != entry["class"] and entry["probability"] > 0.5 for entry in first)
    assert any("doubtful" in warning for warning in document["warnings"])
    assert "Doubtful labels" in Path("found/check.html").read_text()
    np.savez(tmp_path / "other.npz", X=np.zeros((10, 8, 8, 3), np.uint8), y=np.array(["x", "y"] * 5))
    assert main(["check", str(tmp_path / "other.npz"), "--with", str(tmp_path / "run")]) == 2


def test_data_that_cannot_be_opened_is_not_ready_and_a_wrong_path_a_usage_error(
    check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, document = check(tmp_path / "empty", "--out", "found")
    assert (code, document["ready"], document["layout"]) == (1, False, None)
    assert document["verdict"].startswith(f"not ready: {tmp_path / 'empty'}: no layout is recognized: it holds nothing")
    assert document.keys() == KEYS
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert main(["check", "digits", "--out", str(tmp_path / "found/check.json")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_people_read_ends_with_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", str(write_photos(tmp_path / "pets", CLEAN))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].strip() == "ready"
    assert any(line.startswith("images") and "11 training, 4 test" in line for line in lines)
    assert (next(Path("runs").glob("check-pets-*")) / "check.html").is_file()


def test_names_of_files_are_only_text_on_the_page(
    check: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "d", {"train/<b>x</b>": 6, "train/dog": 6, "test/dog": 1})
    (folder / "train/dog/<script>.jpg").write_bytes(b"x")
    code, _ = check(folder, "--out", "found")
    assert code == 1
    page = Path("found/check.html").read_text()
    assert "<script>" not in page
    assert "<b>x</b>" not in page
