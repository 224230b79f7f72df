"""From a messy folder of photographs to a model that ships, by the commands alone; and each step with a full disk."""

from __future__ import annotations

import csv
import errno
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wideresnet.commands.main import main

TRAIN = ["--recipe", "fast", "--epochs", "4", "--batch-size", "10", "--image-size", "16", "--crop-padding", "1",
         "--device", "cpu"]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WRN_AUTOTUNE", "off")
    monkeypatch.delenv("WRN_PAGE", raising=False)
    monkeypatch.chdir(tmp_path)


def photo(name: str, seed: int) -> Image.Image:
    """A picture that is bright at the top (sky) or at the bottom (sand), in an odd size."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 80, (30 + seed % 7, 40, 3), dtype=np.uint8)
    pixels[:15] += 150
    pixels = pixels if name == "sky" else pixels[::-1].copy()
    return Image.fromarray(pixels)


def messy(root: Path) -> Path:
    """Write 20 photographs in folders with odd names, and what people's folders also hold."""
    for name in ("sky", "sand"):
        (root / name).mkdir(parents=True)
        for seed in range(10):
            image, path = photo(name, seed + 100 * (name == "sand")), root / name / f"Foto {seed} \u00e4\u65e5.png"
            if seed == 1:
                exif = Image.Exif()
                exif[0x0112] = 3  # lies on its head
                image.rotate(180).save(path, exif=exif)
            else:
                image.convert("P" if seed == 2 else "RGBA" if seed == 3 else "RGB").save(path)
    (root / "sky/cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(30))
    (root / "sand/copy.png").write_bytes((root / "sky/Foto 4 \u00e4\u65e5.png").read_bytes())
    (root / "notes.txt").write_text("from Sunday")
    (root / ".DS_Store").write_bytes(b"x")
    return root


def answers(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def document(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_messy_folder_becomes_a_model_that_gives_the_answers_of_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    is_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    folder = messy(Path("my photos"))
    code, found = document(capsys, "check", folder, "--out", "found")
    assert (code, found["ready"]) == (1, False)
    assert "sky/cut.jpg" in found["verdict"]
    assert any("different classes" in warning for warning in found["warnings"])
    (folder / "sky/cut.jpg").unlink()
    (folder / "sand/copy.png").unlink()
    code, found = document(capsys, "check", folder, "--out", "found")
    assert (code, found["verdict"], found["splits"]) == (0, "ready", {"train": 16, "test": 4})
    code, result = document(capsys, "train", "WRN-10-1", "--data", folder, "--out", "a run", *TRAIN)
    assert (code, result["num_train_images"], result["num_test_images"]) == (0, 16, 4)
    page = Path("a run/report.html").read_text()
    assert all(text in page for text in ("sky", "sand", "test error"))
    assert main(["predict", "a run", str(folder), "--csv", "run.csv", "--sheet", "sheet.png"]) == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 100
    _, evaluated = document(capsys, "eval", "a run", "--data", folder)
    assert evaluated["error_pct"] == pytest.approx(result["test_error_pct"])
    code, exported = document(capsys, "export", "a run", "--check", folder, "--format", "onnx" if is_onnx else "torch")
    assert code == 0
    assert exported["check"]["max_probability_difference"] < 1e-4
    if not is_onnx:  # an archive of torch.export is not read back: it may run code
        return
    assert main(["predict", exported["file"], str(folder), "--csv", "model.csv"]) == 0
    ours, theirs = answers(Path("run.csv")), answers(Path("model.csv"))
    assert len(ours) == len(theirs) == 20
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            if value.replace(".", "", 1).replace("e-", "", 1).isdigit():
                assert float(other[key]) == pytest.approx(float(value), abs=1e-4)
            else:
                assert other[key] == value


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and a run on them, which tests only read."""
    root = tmp_path_factory.mktemp("whole")
    folder = messy(root / "photos")
    (folder / "sky/cut.jpg").unlink()
    (folder / "sand/copy.png").unlink()
    assert main(["train", "WRN-10-1", "--data", str(folder), "--out", str(root / "run"), *TRAIN]) == 0
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["check", "photos", "--out", "out"],
        ["train", "WRN-10-1", "--data", "photos", "--out", "other", *TRAIN],
        ["eval", "run", "--data", "photos", "--page", "page.html"],
        ["eval", "run", "--data", "photos", "--csv", "out.csv"],
        ["predict", "run", "photos", "--csv", "out.csv"],
        ["predict", "run", "photos", "--sheet", "out.png"],
        ["export", "run", "--format", "torch", "--out", "out.pt2"],
        ["report", "run"],
    ],
    ids=lambda words: " ".join(word for word in words if not word.startswith("WRN"))[:40],
)
def test_a_full_disk_is_one_line_in_every_command(
    words: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    names = {"photos": trained / "photos", "run": trained / "run"}
    monkeypatch.setattr(os, "fsync", full)
    assert main([str(names.get(word, word)) for word in words]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "no space left on the disk" in error.splitlines()[-1]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not left, left
