"""`wrn predict` of whole folders: table, contact sheet, exit status; nothing of a name gets lost or obeyed."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wideresnet.base.format import printable
from wideresnet.commands.main import main
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import create
from wideresnet.weights.hub import Weights, write_weights

NAMES = (
    "=1+1.png", "+a.png", "-b.png", "@c.png", "\td.png", 'quo"te.png', "com,ma;semi.png", "two\nlines.png",
    "=cmd|' C calc'!A0.png", "日本 ñ.png", " = .png", "it's.png", "caf\udce9.png",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images with hostile names, a broken one and litter; weights next to them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Path("weights").mkdir()
    network = create("WRN-10-1", 2)
    with torch.no_grad():
        network.fc.bias.fill_(0)
        network.fc.weight.abs_()  # so that every class has places that speak for it
    write_weights(Path("weights"), Weights(network.eval(), Preprocessing("scale"), ("=cat", "dog"), (8, 8)))
    Path("photos").mkdir()
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(content, "PNG")
    names = NAMES[:-1] if sys.platform == "darwin" else NAMES  # file names are Unicode there
    for name in names:
        (Path("photos") / name).write_bytes(content.getvalue())
    (Path("photos") / "._x.png").write_bytes(b"litter")
    return Path("photos")


def test_every_name_is_read_back_from_the_table_and_none_begins_like_a_formula(folder: Path) -> None:
    assert main(["predict", "weights", "photos", "--csv", "out.csv"]) == 0
    text = Path("out.csv").read_bytes().decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header[:3] == ["file", "class 1", "probability 1"]
    listed = sorted(str(path) for path in folder.iterdir() if path.name != "._x.png")
    assert sorted(row[0] for row in rows) == sorted(map(printable, listed))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@\t\r") and cell]
    assert {row[1] for row in rows} <= {"'=cat", "dog"}
    assert all(0.5 <= float(row[2]) <= 1 for row in rows)


def test_a_name_that_begins_like_a_formula_is_marked_as_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["predict", "--csv", "../out.csv", "--", "../weights", "=1+1.png", "@c.png", "\td.png"]) == 0
    with Path("../out.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert [row[0] for row in rows] == ["'=1+1.png", "'@c.png", r"\td.png"]


def test_files_that_cannot_be_read_are_named_and_the_exit_status_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    assert main(["predict", "weights", "photos", "--csv", "out.csv", "--sheet", "out.png", "--json"]) == 1
    out, errors = capsys.readouterr()
    document = json.loads(out)
    num = len(list(folder.iterdir())) - 1
    assert len(document) == num
    assert [Path(row["file"]).name for row in document if not row["predictions"]] == ["broken.png"]
    assert f"1 of {num} images cannot be read: photos/broken.png (" in errors
    assert "the others are classified" in errors
    assert "ignored 1 folder or file that tools leave behind: ._x.png" in errors
    assert "skipped: " in Path("out.csv").read_text()
    with Image.open("out.png") as sheet:
        sheet.load()
    assert main(["predict", "weights", "photos", "--skip-unreadable"]) == 0
    assert main(["predict", "weights", "photos/broken.png"]) == 1
    assert "1 of 1 images cannot be read" in capsys.readouterr().err


def test_the_table_is_whole_or_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.csv").write_text("old")
    Path("link.csv").symlink_to("out.csv")

    def fail(*_: object) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        assert main(["predict", "weights", str(folder), "--csv", "link.csv"]) == 1
    assert Path("out.csv").read_text() == "old"
    assert main(["predict", "weights", str(folder), "--csv", "link.csv"]) == 0
    assert Path("link.csv").is_symlink()
    assert Path("out.csv").read_text().startswith('"file"')


def test_an_explained_sheet_is_drawn(folder: Path) -> None:
    assert main(["predict", "weights", str(folder), "--sheet", "out.png", "--explain", "--sheet-order", "given"]) == 0
    with Image.open("out.png") as sheet:
        colors = np.asarray(sheet.convert("RGB")).astype(int)
    assert (colors[..., 0] - colors[..., 2]).max() > 100  # hot places
