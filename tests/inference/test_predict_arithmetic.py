"""`wrn predict` in 8 bits and in bf16: nearly the answers of fp32, and it says in what they were computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.main import main
from wideresnet.inference.predict import predict_files
from wideresnet.kernels import library
from wideresnet.spec.recipes import resolve
from wideresnet.training import fit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.npz`, a run on it and photographs of another size; no test changes it."""
    home = tmp_path_factory.mktemp("home")
    random, arrays = np.random.default_rng(0), {}
    for split, num in (("train", 64), ("test", 16)):
        labels = np.arange(num) % 4
        images = random.integers(0, 200, (num, 8, 8, 3)) + 15 * labels[:, None, None, None]
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(home / "data.npz", **arrays)
    settings = {"epochs": 2, "batch_size": 16, "precision": "fp32", "device": "cpu"}
    fit(resolve("quick", "WRN-10-1", str(home / "data.npz"), settings, num_train=64), home / "run")
    (home / "photos").mkdir()
    for number in range(40):  # enough images that the network is optimized
        Image.fromarray(random.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(home / f"photos/{number:02d}.png")
    return home


@pytest.fixture
def needs_kernels() -> None:
    if reason := library.why_unavailable():
        pytest.skip(reason)


def probabilities(answers: list[dict[str, Any]]) -> np.ndarray:
    rows = [{guess["class"]: guess["probability"] for guess in answer["predictions"]} for answer in answers]
    return np.array([[row[name] for name in sorted(row)] for row in rows])


@pytest.mark.usefixtures("needs_kernels")
def test_answers_in_8_bits_are_nearly_those_in_fp32_however_many_images_there_are(
    home: Path, reported: list[str]
) -> None:
    exact = predict_files(home / "run", [home / "photos"])
    assert all("precision" not in answer for answer in exact)
    assert reported == []
    found = predict_files(home / "run", [home / "photos"], int8=True)
    assert {answer["precision"] for answer in found} == {"int8"}
    assert any("8-bit kernels, calibrated on 64 images" in note for note in reported)
    assert 0 < np.abs(probabilities(found) - probabilities(exact)).max() < 0.03
    (alone,) = predict_files(home / "run", [home / "photos/07.png"], int8=True)
    assert alone["predictions"] == found[7]["predictions"]


@pytest.mark.parametrize("images", ["photos", "photos/00.png"])
def test_answers_in_bf16_are_nearly_those_in_fp32(home: Path, images: str) -> None:
    exact, auto = (predict_files(home / "run", [home / images], precision=which) for which in ("fp32", "auto"))
    assert exact == auto
    found = predict_files(home / "run", [home / images], precision="bf16", device="cpu")
    assert {answer["precision"] for answer in found} == {"bf16"}
    assert 0 < np.abs(probabilities(found) - probabilities(exact)).max() < 0.03


@pytest.mark.usefixtures("needs_kernels")
def test_weights_without_a_run_are_calibrated_on_data_that_is_named(home: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(home / "run" / name, tmp_path)
    photos = [home / "photos/00.png"]
    with pytest.raises(UsageError, match="no run, so the data is not known; name it with data="):
        predict_files(tmp_path, photos, int8=True)
    named = predict_files(tmp_path, photos, int8=True, data=home / "data.npz")
    assert named == predict_files(home / "run", photos, int8=True)


@pytest.mark.usefixtures("needs_kernels")
def test_training_images_that_cannot_be_read_are_left_out_only_if_asked_for_and_counted(
    home: Path, tmp_path: Path, reported: list[str]
) -> None:
    for split in ("train", "test"):
        for name in ("0", "1", "2", "3"):
            (tmp_path / split / name).mkdir(parents=True)
            for photo in sorted((home / "photos").iterdir()):
                shutil.copy(photo, tmp_path / split / name)
    (tmp_path / "train/0/00.png").write_bytes(b"cut")
    photos = [home / "photos/00.png"]
    with pytest.raises(DataError, match="skip_unreadable=True"):
        predict_files(home / "run", photos, int8=True, data=tmp_path)
    predict_files(home / "run", photos, int8=True, data=tmp_path, skip_unreadable=True)
    assert any("00.png" in note for note in reported)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"int8": True, "device": "cuda"}, "device='cuda': int8=True runs on the CPU"),
        ({"int8": True, "precision": "bf16"}, "precision='bf16': int8=True computes in 8 bits"),
        ({"precision": "fp16"}, "precision='fp16': must be one of auto, fp32, bf16"),
        ({"data": "digits"}, "data=: is for int8=True"),
        ({"int8": True, "data": "digits"}, "the weights know 4"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(home: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predict_files(home / "run", [home / "photos/00.png"], **asked)


@pytest.mark.usefixtures("needs_kernels")
def test_the_command_takes_the_flags_and_names_the_arithmetic(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(home / "run"), str(home / "photos/00.png"), "--int8", "--data", str(home / "data.npz")]
    assert main(words) == 0
    assert capsys.readouterr().out.rstrip().endswith("\ncomputed in int8")
    assert main([*words[:3], "--precision", "bf16", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["precision"] == "bf16"
