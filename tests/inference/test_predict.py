"""Classes of image files: any file, the right size and channels, nothing left out silently."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.predict import render
from wideresnet.data.preprocess import Preprocessing
from wideresnet.inference.predict import predict_files, read_images
from wideresnet.networks import create
from wideresnet.weights.hub import Weights, read_weights, write_weights

NAMES = ("cat", "[red]dog", "owl")


def make_weights(folder: Path, channels: int = 3, size: tuple[int, int] = (8, 8)) -> Path:
    """Write weights with running statistics of random images, so that the answers differ between images."""
    torch.manual_seed(0)
    network = create("WRN-10-1", 3, in_channels=channels)
    preprocessing = Preprocessing("mean_std", (120.0,) * channels, (60.0,) * channels)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(16, channels, *size))
    folder.mkdir(parents=True)
    write_weights(folder, Weights(network.eval(), preprocessing, NAMES, size))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "weights")


def pixels(height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, image: np.ndarray | Image.Image, **options: Any) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(path, **options)
        return path

    return write


def by_hand(weights: Path, image: np.ndarray) -> dict[str, float]:
    """The slow twin: one image, preprocessed and evaluated alone."""
    read = read_weights(weights)
    with torch.inference_mode():
        logits = read.network(read.preprocessing(torch.from_numpy(image.copy())[None]))[0].double()
    shares = (logits - logits.max()).exp()
    return dict(zip(NAMES, (shares / shares.sum()).tolist(), strict=True))


def test_answers_are_those_of_the_network_image_by_image(weights: Path, save: Callable[..., Path]) -> None:
    images = [pixels(seed=seed) for seed in range(5)]
    files = [save(f"{number}.png", image) for number, image in enumerate(images)]
    answers = predict_files(weights, files)
    for file, image, answer in zip(files, images, answers, strict=True):
        assert answer["file"] == str(file)
        assert answer["notes"] == []
        got = {p["class"]: p["probability"] for p in answer["predictions"]}
        assert got == pytest.approx(by_hand(weights, image), abs=1e-6)
    assert len({answer["predictions"][0]["probability"] for answer in answers}) > 1


def test_the_most_probable_class_comes_first_and_top_limits_them(weights: Path, save: Callable[..., Path]) -> None:
    file = save("a.png", pixels())
    probabilities = [p["probability"] for p in predict_files(weights, [file])[0]["predictions"]]
    assert len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert len(predict_files(weights, [file], top=1)[0]["predictions"]) == 1
    with pytest.raises(UsageError, match="top=0"):
        predict_files(weights, [file], top=0)


def test_an_image_of_another_size_is_resized_with_a_note(weights: Path, save: Callable[..., Path]) -> None:
    flat = np.broadcast_to(np.array([200, 100, 50], np.uint8), (30, 40, 3))
    answer = predict_files(weights, [save("big.png", flat)])[0]
    assert answer["notes"] == ["resized from 40 x 30 to 8 x 8 px, center crop of 30 x 30"]
    got = {p["class"]: p["probability"] for p in answer["predictions"]}
    assert got == pytest.approx(by_hand(weights, flat[:8, :8]), abs=1e-6)


def test_an_exif_rotated_image_is_turned_upright(weights: Path, save: Callable[..., Path]) -> None:
    image = pixels()
    turned = Image.Exif()
    turned[0x0112] = 3
    upright = predict_files(weights, [save("upright.png", image)])[0]
    answer = predict_files(weights, [save("turned.png", image[::-1, ::-1], exif=turned)])[0]
    assert answer["notes"] == ["turned upright by EXIF"]
    assert answer["predictions"] == upright["predictions"]


def test_gray_and_transparent_images_are_converted_and_noted(weights: Path, save: Callable[..., Path]) -> None:
    gray = pixels()[..., 0]
    clear = np.dstack([pixels(), np.zeros((8, 8), np.uint8)])
    answers = predict_files(weights, [save("gray.png", gray), save("clear.png", clear)])
    assert [answer["notes"] for answer in answers] == [
        ["converted from grayscale to RGB"],
        ["transparency laid over white"],
    ]
    for answer, image in zip(answers, (np.dstack([gray] * 3), np.full((8, 8, 3), 255, np.uint8)), strict=True):
        got = {p["class"]: p["probability"] for p in answer["predictions"]}
        assert got == pytest.approx(by_hand(weights, image), abs=1e-6)


def test_a_network_for_gray_images_is_given_gray_images(tmp_path: Path, save: Callable[..., Path]) -> None:
    weights = make_weights(tmp_path / "gray", channels=1, size=(8, 12))
    gray = np.ascontiguousarray(pixels(8, 12)[..., 0])
    plain, color = predict_files(weights, [save("gray.png", gray), save("color.png", np.dstack([gray] * 3))])
    assert plain["notes"] == []
    assert color["notes"] == ["converted from color to grayscale"]
    assert color["predictions"] == plain["predictions"]


def test_a_folder_stands_for_the_images_below_it_in_order(
    weights: Path, save: Callable[..., Path], reported: list[str]
) -> None:
    files = [save(name, pixels()) for name in ("b.png", "a/z.JPG", "a/c.bmp")]
    (files[0].parent / "notes.txt").write_text("not an image")
    answers = predict_files(weights, [files[0].parent, files[0]])
    assert [answer["file"] for answer in answers] == list(map(str, [files[2], files[1], files[0], files[0]]))
    assert reported == [f"{files[0].parent}: 1 file not read: no images: notes.txt"]


def test_all_unreadable_images_are_named_and_nothing_is_predicted(weights: Path, save: Callable[..., Path]) -> None:
    good, cut, empty = save("good.png", pixels()), save("cut.png", pixels(64, 64)), save("empty.png", pixels())
    cut.write_bytes(cut.read_bytes()[:300])
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="2 of 3 images") as caught:
        predict_files(weights, [good, cut, empty])
    message = str(caught.value)
    assert str(cut) in message
    assert f"{empty} (empty file)" in message
    assert "skip_unreadable=True" in message
    assert "\n" not in message


def test_unreadable_images_can_be_skipped_and_are_reported(weights: Path, save: Callable[..., Path]) -> None:
    files = [save(f"{name}.png", pixels(seed=seed)) for seed, name in enumerate("abc")]
    alone = [predict_files(weights, [file])[0] for file in files]
    files[1].write_bytes(b"")
    first, skipped, last = predict_files(weights, files, skip_unreadable=True)
    assert skipped == {"file": str(files[1]), "predictions": [], "notes": ["skipped: empty file"]}
    for got, expected in ((first, alone[0]), (last, alone[2])):
        assert got["file"] == expected["file"]
        assert got["predictions"][0]["class"] == expected["predictions"][0]["class"]
        assert got["predictions"][0]["probability"] == pytest.approx(expected["predictions"][0]["probability"])
    with pytest.raises(DataError, match="1 of 1 images"):
        predict_files(weights, [files[1]], skip_unreadable=True)


def test_paths_without_images_are_usage_errors(weights: Path, save: Callable[..., Path], tmp_path: Path) -> None:
    file = save("a.png", pixels())
    (tmp_path / "bare").mkdir()
    for images, message in (
        ([file, tmp_path / "none.png"], "none.png: no such file"),
        ([tmp_path / "bare"], "bare: no image"),
        ([], "no images"),
    ):
        with pytest.raises(UsageError, match=message):
            predict_files(weights, images)
    with pytest.raises(UsageError, match=r"no model\.safetensors there"):
        predict_files(tmp_path / "bare", [file])


def test_weights_that_are_not_finite_are_refused(weights: Path, save: Callable[..., Path]) -> None:
    read = read_weights(weights)
    with torch.no_grad():
        read.network.fc.bias.fill_(torch.nan)
    write_weights(weights, read)
    with pytest.raises(DataError, match="not finite"):
        predict_files(weights, [save("a.png", pixels())])


def test_answers_are_plain_json_and_a_table_that_shows_any_name(weights: Path, save: Callable[..., Path]) -> None:
    files = [save("[bold]a.png", pixels(16, 16)), save("b.png", pixels())]
    files[1].write_bytes(b"")
    answers = predict_files(weights, files, skip_unreadable=True)
    assert json.loads(json.dumps(answers)) == answers
    text = render(answers)
    for wanted in ("[bold]a.png", "[red]dog", "skipped: empty file", "16 x 16 to 8 x 8 px"):
        assert wanted in text
    assert f"{100 * answers[0]['predictions'][0]['probability']:.1f} %" in text


def test_predicting_imports_nothing_from_training(weights: Path, save: Callable[..., Path]) -> None:
    code = (
        "import sys; from wideresnet.commands.main import main; assert main(sys.argv[1:]) == 0\n"
        "assert not [name for name in sys.modules if name.startswith('wideresnet.training')]"
    )
    words = ["predict", str(weights), str(save("a.png", pixels()).parent)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_from_a_file_to_logits_in_python_in_two_lines(weights: Path, save: Callable[..., Path]) -> None:
    files = [save("a.png", pixels()), save("b.png", pixels(20, 30, seed=1))]
    read = read_weights(weights)
    logits = read.network(read_images(read, files))
    for row, answer in zip(logits.double().softmax(1).tolist(), predict_files(weights, files), strict=True):
        shares = {guess["class"]: guess["probability"] for guess in answer["predictions"]}
        assert dict(zip(NAMES, row, strict=True)) == pytest.approx(shares, rel=1e-5)
