"""Names of files, classes and data come from strangers: a terminal must show them, never obey them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wideresnet.commands.main import main

HOSTILE = "a\x1b]0;pwned\x07\x1b[2J\r\x7f\x9b31m\u202egpj\u2066\u200b"
"""A window title, a cleared screen, an overwritten line, a C1 control sequence, reversed and hidden text."""

QUICK = ["--epochs", "1", "--batch-size", "4", "--crop-padding", "1", "--device", "cpu"]

OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
COLORS = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\x1b\[2K|\r")
"""What rich itself writes: colors, and the cursor of a live display."""


def wrn(folder: Path, *words: object, **variables: str) -> tuple[int, str, str]:
    """Run the real command in a folder, as bytes that become text without any translation of line ends."""
    command = [sys.executable, "-m", "wideresnet", *map(str, words)]
    env = {**os.environ, "WRN_AUTOTUNE": "off", "COLUMNS": "80", **variables}
    done = subprocess.run(command, capture_output=True, cwd=folder, env=env, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hostile data, a run of them with hostile class names, and a hostile image."""
    folder = tmp_path_factory.mktemp("scene")
    random = np.random.default_rng(0)
    for split, num in (("train", 8), ("test", 4)):
        for name in (HOSTILE, "dog"):
            place = folder / f"{HOSTILE}data" / split / name
            place.mkdir(parents=True)
            for i in range(num):
                Image.fromarray(random.integers(0, 255, (12, 12, 3), np.uint8)).save(place / f"{i}.png")
    Image.fromarray(random.integers(0, 255, (12, 12, 3), np.uint8)).save(folder / f"{HOSTILE}.png")
    os.environ["WRN_AUTOTUNE"] = "off"
    flags = ["--epochs", "1", "--batch-size", "4", "--crop-padding", "1", "--device", "cpu"]
    code, out, errors = wrn(folder, "train", "WRN-10-1", "--data", f"{HOSTILE}data", "--out", f"{HOSTILE}run", *flags)
    assert code == 0, errors
    check_shown(out, errors)
    assert "run page" in out
    return folder


def check_shown(*texts: str) -> None:
    for text in texts:
        assert not OBEYED.search(text), repr(text)


@pytest.mark.parametrize(
    "words",
    [
        "train WRN-10-1 --data {h}data --out {h}run",
        "train WRN-10-1 --data {h}nowhere",
        "train {h} --data digits",
        "train WRN-10-1 --data digits --recipe {h}",
        "train WRN-10-1 --data digits --{h}",
        "train WRN-10-1 --data digits --lr {h}",
        "train WRN-10-1 --data digits --schedule {h}",
        "train --resume {h}nowhere",
        "train --resume --out {h}run",
        "train WRN-10-1 --data {h}data --overwrite --out {h}run --limit 3",
        "eval {h}run",
        "eval {h}run --data {h}data",
        "eval {h}run --data digits",
        "eval {h}run --corruptions --limit 4 --page {h}.html",
        "eval {h}nowhere --data digits",
        "predict {h}run {h}.png",
        "predict {h}run {h}data",
        "predict {h}run {h}missing.png",
        "predict {h}nowhere {h}.png",
        "predict {h}run {h}.png --csv {h}folder/a.csv",
        "info {h}",
        "info WRN-10-1 {h}",
        "report {h}run",
        "report {h}nowhere",
        "report {h}run --out {h}",
        "bench train {h}",
        "bench infer WRN-10-1 --against {h}",
        "cache {h}",
        "{h}",
        "--{h}",
    ],
)
def test_no_verb_lets_a_name_reach_the_terminal_as_a_command(
    scene: Path, words: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    assert main([word.replace("{h}", HOSTILE) for word in words.split()]) in (0, 1, 2)
    out, errors = (text.decode() for text in capfdbinary.readouterr())
    assert out + errors
    assert "Traceback" not in errors
    check_shown(out, errors)


def test_a_terminal_with_colors_gets_only_the_commands_of_the_display(scene: Path) -> None:
    command = [sys.executable, "-m", "wideresnet", "eval", f"{HOSTILE}run"]
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(command, capture_output=True, cwd=scene, env=env, timeout=300)
    assert b"\x1b[" in done.stdout
    check_shown(COLORS.sub(b"", done.stdout).decode(), COLORS.sub(b"", done.stderr).decode())


def test_the_names_can_be_read_in_their_visible_form(scene: Path) -> None:
    _, out, _ = wrn(scene, "predict", f"{HOSTILE}run", f"{HOSTILE}.png")
    assert r"a\x1b]0;pwned\x07\x1b[2J\r\x7f\x9b31m\u202egpj\u2066\u200b.png" in out


def test_json_has_the_exact_names(scene: Path) -> None:
    code, out, _ = wrn(scene, "predict", f"{HOSTILE}run", f"{HOSTILE}.png", "--json")
    assert code == 0
    (answer,) = json.loads(out)
    assert answer["file"] == f"{HOSTILE}.png"
    assert "dog" in {guess["class"] for guess in answer["predictions"]}
    assert out.isascii()


def test_logs_of_seeds_hold_no_control_characters(scene: Path) -> None:
    flags = ["--epochs", "1", "--batch-size", "4", "--crop-padding", "1", "--device", "cpu", "--seeds", "1"]
    out = f"{HOSTILE}one"
    assert wrn(scene, "train", "WRN-10-1", "--data", f"{HOSTILE}data", "--out", out, *flags)[0] == 0
    log = (scene / out / "seed0.log").read_bytes().decode()
    assert "pwned" in log
    check_shown(log)


def test_a_file_name_that_is_no_text_is_shown_and_predicted(scene: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[31m.png")
    shutil.copy(scene / f"{HOSTILE}.png", tmp_path / name)
    code, out, errors = wrn(scene, "predict", f"{HOSTILE}run", tmp_path / name)
    assert code == 0, errors
    assert r"caf\xe9\x1b[31m.png" in out
    check_shown(out, errors)


@pytest.mark.parametrize("start", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", " =1", "＝1"])
def test_a_spreadsheet_runs_no_name_as_a_formula(
    scene: Path, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{start};=1,{HOSTILE}.png"
    shutil.copy(scene / f"{HOSTILE}.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--csv", "out.csv", "--", str(scene / f"{HOSTILE}run"), name]) == 0
    text = (tmp_path / "out.csv").read_bytes().decode()
    check_shown(text.replace("\r\n", "\n"))
    header, row = csv.reader(text.splitlines())
    assert header == ["file", "class 1", "probability 1", "class 2", "probability 2", "notes"]
    assert row[0].startswith(f"'{start}")
    assert float(row[2]) + float(row[4]) == pytest.approx(1)
    for cell in re.findall(r'"((?:[^"]|"")*)"', text):  # all text is quoted, whatever a spreadsheet separates by
        assert cell.lstrip()[:1] not in ("=", "+", "-", "@", "＝")
