"""`wrn predict photo.jpg`: no weights are named, and any photo will do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import UsageError
from wideresnet.commands.main import main
from wideresnet.inference.predict import predict_files, split_weights
from wideresnet.weights.pretrained import DEFAULT

Ship = Callable[..., Path]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")


def photo(name: str = "photo.jpg", width: int = 40, height: int = 30) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(width * height)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["predict", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_without_weights_the_shipped_network_answers_and_introduces_itself(
    ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = ship(), photo()
    code, out, _ = run(capsys, str(path))
    assert code == 0
    for words in (
        f"{DEFAULT}, which comes with wrn: 5.93 % test error on cifar10",
        "knows 4 classes and nothing else: kind0, kind1, kind2, kind3",
        f"for classes of your own: wrn train WRN-10-1 --data FOLDER --from {DEFAULT}",
    ):
        assert words in " ".join(out.split())
    (answer,) = json.loads(run(capsys, "--json", str(path))[1])
    assert answer["pretrained"] == {
        "name": DEFAULT, "dataset": "cifar10", "test_error_pct": 5.93,
        "class_names": ["kind0", "kind1", "kind2", "kind3"],
        "own_classes": f"wrn train WRN-10-1 --data FOLDER --from {DEFAULT}",
    }  # fmt: skip
    (plain,) = predict_files(folder, [path])
    assert answer == {**plain, "pretrained": answer["pretrained"]}
    assert "comes with" not in run(capsys, str(folder), str(path))[1]


def test_a_name_of_a_shipped_network_comes_first_like_any_weights(
    ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    ship("WRN-10-1-other")
    code, out, _ = run(capsys, "wrn-10-1-OTHER", str(photo()))
    assert (code, "WRN-10-1-other, which comes with wrn" in out) == (0, True)


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (1, 1), (700, 2), (33, 32), (8, 8), (5, 3)])
def test_a_photo_of_any_size_is_cropped_to_its_center_and_resized_and_says_so(
    ship: Ship, size: tuple[int, int]
) -> None:
    ship()
    width, height = size
    (answer,) = predict_files(None, [photo("photo.jpg", width, height)])
    assert sum(guess["probability"] for guess in answer["predictions"]) == pytest.approx(1)
    side = min(size)
    resized = f"resized from {width} x {height} to 8 x 8 px"
    cropped = f"{resized}, center crop of {side} x {side}"
    assert answer["notes"] == ([] if size == (8, 8) else [resized if width == height else cropped])


def test_what_is_outside_of_the_center_changes_nothing(ship: Ship) -> None:
    ship()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    pixels[:, :12] = pixels[:, 88:] = 0  # the center is 20 to 80; a pixel of the result blends up to 7.5 px beyond
    Image.fromarray(pixels).save("b.png")
    first, second = (answer["predictions"] for answer in predict_files(None, ["a.png", "b.png"]))
    assert first == second


def test_8_bits_need_data_to_calibrate_on_which_a_shipped_network_comes_without(
    ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    ship()
    code, _, err = run(capsys, str(photo()), "--int8")
    assert (code, f"{DEFAULT}: comes without its data; name it with --data" in err) == (2, True)


def test_folders_and_patterns_of_images_need_no_weights(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    ship()
    for name in ("album/b.png", "album/deep/a.JPG", "album/c.webp"):
        photo(name)
    for words, files in (
        (["album"], ["album/b.png", "album/c.webp", "album/deep/a.JPG"]),
        (["album/*.png"], ["album/b.png"]),
        ([str(Path("album/*.*").absolute())], [str(Path(f"album/{name}").absolute()) for name in ("b.png", "c.webp")]),
        (["album/**/*.JPG", "album/b.png"], ["album/deep/a.JPG", "album/b.png"]),
    ):
        code, out, _ = run(capsys, *words, "--json")
        assert code == 0
        assert [answer["file"] for answer in json.loads(out)] == files


def test_a_flag_may_stand_between_the_paths(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ship()
    for name in ("a.png", "b.png"):
        photo(name)
    for words in (["a.png", "--json", "b.png"], [str(folder), "--json", "a.png", "--top", "1", "b.png"]):
        code, out, _ = run(capsys, *words)
        assert (code, [answer["file"] for answer in json.loads(out)]) == (0, ["a.png", "b.png"])
    assert run(capsys, "a.png", "--jsno", "b.png")[0] == 2


@pytest.mark.parametrize(
    ("first", "is_weights"),
    [
        ("run", True), ("weights", True), ("album", False), ("a.png", False), ("no-extension", False),
        ("missing.png", False), ("missing", True), ("model.safetensors", True), ("missing.safetensors", True),
        ("model.pth", True), (DEFAULT.lower(), True), ("*.png", False), ("nothing*", False), ("[x].safetensors", True),
    ],
)  # fmt: skip
def test_the_first_path_is_weights_unless_it_is_images(ship: Ship, first: str, is_weights: bool) -> None:
    ship()
    photo("album/a.png")
    photo("run/predictions.png")
    Path("run/recipe.json").write_text("{}")
    Path("weights").mkdir()
    Path("weights/config.json").write_text("{}")
    for name in ("a.png", "no-extension", "model.safetensors", "model.pth", "[x].safetensors"):
        Path(name).write_bytes(b"")
    expected: Any = (first, ["b.png"]) if is_weights else (None, [first, "b.png"])
    assert split_weights([first, "b.png"]) == expected


def test_a_folder_that_is_neither_weights_nor_images_gets_one_line(
    ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    ship()
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("x")
    code, out, err = run(capsys, "empty")
    assert (code, out) == (2, "")
    assert (
        err == "wrn: empty: has neither weights (model.safetensors) nor image files; name a folder with one of them\n"
    )


def test_what_is_missing_is_named(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    photo()
    assert f"this installation lacks {DEFAULT}" in run(capsys, "photo.jpg")[2]
    ship()
    for words, complaint in (
        (["missing.jpg"], "missing.jpg: no such file or folder"),
        (["missing*.jpg"], "missing*.jpg: no such file or folder"),
        (["missing"], f"or a shipped network: one of {DEFAULT}"),
        (["missing", "photo.jpg"], f"or a shipped network: one of {DEFAULT}"),
        ([DEFAULT], "no images: name image files"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert complaint in err


def test_a_pattern_that_matches_only_a_broken_link_is_missing(ship: Ship) -> None:
    ship()
    os.symlink("nowhere", "a*.png")  # noqa: PTH211  # a link whose own name is a pattern
    with pytest.raises(UsageError, match="no such file"):
        predict_files(None, ["a*.png"])
