"""Weights on a test set: exactly the result of their run, and no data that does not fit."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.evaluate import render
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.spec.files import SEAL
from wideresnet.spec.recipes import resolve
from wideresnet.training import fit
from wideresnet.weights.hub import read_weights, write_weights

NAMES = ["cat", "[red]dog", "owl", "newt"]


def make_data(path: Path, *, size: int = 8, width: int = 0, channels: int = 3, names: list[str] | None = NAMES) -> Path:
    """Write an `.npz` of random images, always the same; the brightness depends on the class."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, num in (("train", 64), ("test", 41)):
        labels = np.arange(num) % 4
        arrays[f"x_{split}"] = random.integers(0, 200, (num, size, width or size, channels), dtype=np.uint8)
        arrays[f"x_{split}"] += (labels * 15).astype(np.uint8)[:, None, None, None]
        arrays[f"y_{split}"] = labels
    if names is not None:
        arrays["class_names"] = np.array(names)
    np.savez(path, **arrays)
    return path


def train(folder: Path, data: Path | str, **overrides: Any) -> Path:
    settings = {"epochs": 2, "batch_size": 16, "precision": "fp32", "device": "cpu"} | overrides
    fit(resolve("quick", "WRN-10-1", str(data), settings, num_train=64), folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.npz` and a run on it; no test changes it."""
    home = tmp_path_factory.mktemp("home")
    train(home / "run", make_data(home / "data.npz"))
    return home


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_a_run_is_evaluated_to_exactly_its_own_result(home: Path) -> None:
    got, stored = evaluate_weights(home / "run", home / "data.npz"), result_of(home / "run")
    assert got["error_pct"] == stored["test_error_pct"]
    assert got["num_images"] == stored["num_test_images"] == 41
    assert got["loss"] == pytest.approx(stored["test_loss"], rel=1e-6)
    assert got["ece_pct"] == pytest.approx(stored["test_ece_pct"], rel=1e-6)
    assert 0 < got["num_errors"] < 41


@pytest.mark.parametrize(
    "overrides", [{"preprocessing": "zca"}, {"precision": "bf16"}, {"ema_decay": 0.9}, {"image_size": 12}]
)
def test_a_run_with_whitening_bf16_averaged_weights_or_resized_images_is_too(
    home: Path, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    run = train(tmp_path / "run", home / "data.npz", **overrides)
    got = evaluate_weights(run, home / "data.npz")
    assert got["error_pct"] == result_of(run)["test_error_pct"]
    assert got["precision"] == overrides.get("precision", "fp32")


def test_weights_alone_are_evaluated_in_fp32_unless_bf16_is_asked_for(home: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(home / "run" / name, tmp_path)
    result = evaluate_weights(tmp_path, home / "data.npz", device="cpu")
    assert result["precision"] == "fp32"
    assert result["loss"] == evaluate_weights(home / "run", home / "data.npz", device="cpu")["loss"]
    assert evaluate_weights(tmp_path, home / "data.npz", device="cpu", precision="bf16")["precision"] == "bf16"


@pytest.mark.parametrize(
    ("ran_on", "in_precision", "expected"),
    [("cuda", "fp32", "fp32"), ("cuda", "bf16", "fp32"), ("cpu", "bf16", "bf16")],
)
def test_the_precision_is_never_below_that_of_the_run(
    home: Path, tmp_path: Path, ran_on: str, in_precision: str, expected: str
) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    changed = {**json.loads(path.read_text()), "device": ran_on, "precision": in_precision}
    del changed[SEAL]  # else the change would be taken for damage
    path.write_text(json.dumps(changed))
    assert evaluate_weights(tmp_path / "run", home / "data.npz", device="cpu")["precision"] == expected


def test_digits_too(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "digits", epochs=1, batch_size=128, crop_padding=1)
    got = evaluate_weights(run / "model.safetensors", "digits")
    assert got["error_pct"] == result_of(run)["test_error_pct"]
    assert got["dataset"] == "digits"
    assert got["num_images"] == 360
    assert 0 <= got["top5_error_pct"] < got["error_pct"]


def test_counts_by_class_are_those_of_the_stored_predictions(home: Path) -> None:
    got = evaluate_weights(home / "run", home / "data.npz")
    stored = load_file(home / "run" / "test_predictions.safetensors")
    confusion = np.zeros((4, 4), int)
    for true, predicted in zip(stored["labels"], stored["logits"].argmax(1), strict=True):
        confusion[true, predicted] += 1
    assert got["confusion"] == confusion.tolist()
    assert [row["class"] for row in got["classes"]] == NAMES
    assert [row["num_images"] for row in got["classes"]] == [11, 10, 10, 10]
    for row, counts, right in zip(got["classes"], confusion, confusion.diagonal(), strict=True):
        assert row["num_errors"] == counts.sum() - right
        assert row["error_pct"] == pytest.approx(100 * row["num_errors"] / counts.sum())
    assert sum(row["num_errors"] for row in got["classes"]) == got["num_errors"]


def test_top5_counts_images_whose_class_is_not_among_the_first_five(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "digits", epochs=1, batch_size=128, crop_padding=1)
    stored = load_file(run / "test_predictions.safetensors")
    five = np.argsort(-stored["logits"], axis=1)[:, :5]
    missed = sum(label not in row for label, row in zip(stored["labels"], five, strict=True))
    assert evaluate_weights(run, "digits")["top5_error_pct"] == pytest.approx(100 * missed / 360)


def test_fewer_than_ten_classes_have_no_top5_error(home: Path) -> None:
    assert evaluate_weights(home / "run", home / "data.npz")["top5_error_pct"] is None


def test_other_class_names_are_refused_naming_the_first(home: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "other.npz", names=["cat", "wolf", "[red]dog", "newt"])
    with pytest.raises(UsageError, match=r"class 1 is 'wolf', .* it is '\[red\]dog'") as caught:
        evaluate_weights(home / "run", data)
    assert "\n" not in str(caught.value)


def test_another_number_of_classes_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match=r"digits: 10 classes .* know 4"):
        evaluate_weights(home / "run", "digits")


def test_data_whose_classes_are_only_numbered_is_accepted_with_a_note(home: Path, tmp_path: Path) -> None:
    got = evaluate_weights(home / "run", make_data(tmp_path / "bare.npz", names=None))
    assert got["error_pct"] == result_of(home / "run")["test_error_pct"]
    assert got["class_names"] == NAMES
    assert any("only numbered" in note for note in got["notes"])


def test_a_published_set_of_digits_is_not_taken_for_numbered_classes(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "digits", epochs=1, batch_size=128, crop_padding=1)
    read = read_weights(run)
    write_weights(run, dataclasses.replace(read, class_names=tuple("abcdefghij")))
    with pytest.raises(UsageError, match=r"class 0 is '0', .* it is 'a'"):
        evaluate_weights(run, "digits")


@pytest.mark.parametrize(("size", "width"), [(16, 16), (12, 20)])
def test_images_of_another_size_are_resized_for_the_weights_and_that_is_noted(
    home: Path, tmp_path: Path, size: int, width: int
) -> None:
    got = evaluate_weights(home / "run", make_data(tmp_path / "large.npz", size=size, width=width))
    assert got["num_images"] == 41
    assert any(f"{width} x {size} to 8 x 8 px" in note for note in got["notes"])


def test_so_are_those_of_weights_that_are_not_square(tmp_path: Path) -> None:
    run = train(tmp_path / "run", make_data(tmp_path / "wide.npz", size=8, width=12))
    same = evaluate_weights(run, tmp_path / "wide.npz")
    assert same["error_pct"] == result_of(run)["test_error_pct"]
    got = evaluate_weights(run, make_data(tmp_path / "square.npz", size=16))
    assert any("16 x 16 to 12 x 8 px" in note for note in got["notes"])


def test_gray_images_are_given_to_an_rgb_network_with_a_note_and_never_color_to_a_gray_one(
    home: Path, tmp_path: Path
) -> None:
    gray = make_data(tmp_path / "gray.npz", channels=1)
    with np.load(gray) as archive:
        arrays = dict(archive)
    rgb = {name: array.repeat(3, axis=3) if name.startswith("x_") else array for name, array in arrays.items()}
    np.savez(tmp_path / "rgb.npz", **rgb)
    got, expected = (evaluate_weights(home / "run", path) for path in (gray, tmp_path / "rgb.npz"))
    assert got["confusion"] == expected["confusion"]
    assert any("grayscale" in note for note in got["notes"])
    with pytest.raises(UsageError, match=r"images of 3 channels, .* take 1"):
        evaluate_weights(train(tmp_path / "run", gray), home / "data.npz")


def test_weights_that_are_not_finite_are_refused(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    read = read_weights(run)
    with torch.no_grad():
        read.network.fc.bias.fill_(torch.nan)
    write_weights(run, read)
    with pytest.raises(DataError, match="not finite"):
        evaluate_weights(run, home / "data.npz")


def test_a_damaged_result_is_named(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    (run / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json"):
        evaluate_weights(run, home / "data.npz")
    assert evaluate_weights(run, home / "data.npz", precision="fp32")["num_images"] == 41


def test_the_result_is_plain_json_and_a_table_that_shows_any_name(home: Path) -> None:
    got = evaluate_weights(home / "run", home / "data.npz")
    assert json.loads(json.dumps(got)) == got
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(render(got))
    text = console.export_text()
    assert f"{got['error_pct']:.2f} % test error  {got['num_errors']} of 41 test images" in text
    assert f"NLL {got['loss']:.4f} nats, expected calibration error {got['ece_pct']:.2f} %" in text
    assert "[red]dog" in text
    worst = max(got["classes"], key=lambda row: row["error_pct"])
    assert f"{worst['error_pct']:.2f} %" in text


def test_int8_is_nearly_the_same_and_says_by_how_many_images_it_was_calibrated(home: Path) -> None:
    exact = evaluate_weights(home / "run", home / "data.npz", device="cpu", precision="fp32")
    result = evaluate_weights(home / "run", home / "data.npz", int8=True)
    assert (result["device"], result["precision"]) == ("cpu", "int8")
    assert result["loss"] == pytest.approx(exact["loss"], abs=0.02)
    assert result["loss"] != exact["loss"]
    assert any("64 images" in note for note in result["notes"])


def test_int8_is_calibrated_on_all_classes_though_a_folder_sorts_the_images(home: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(home / "data.npz"))
    labels = np.arange(1999) * 4 // 1999
    images = np.full((1999, 8, 8, 3), 120, dtype=np.uint8)
    images[labels >= 2] = np.random.default_rng(0).integers(0, 256, images[labels >= 2].shape)  # the others see gray
    np.savez(tmp_path / "sorted.npz", **(arrays | {"x_train": images, "y_train": labels}))
    exact = evaluate_weights(home / "run", tmp_path / "sorted.npz", device="cpu", precision="fp32")
    result = evaluate_weights(home / "run", tmp_path / "sorted.npz", int8=True)
    assert result["loss"] == pytest.approx(exact["loss"], abs=0.02)
    assert any("1,000 images" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cuda"}, "device='cuda': int8=True runs on the CPU; leave out one of them"),
        ({"precision": "bf16"}, "precision='bf16': int8=True computes in 8 bits; leave out one of them"),
    ],
)
def test_int8_on_a_gpu_or_in_another_precision_is_refused(home: Path, asked: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        evaluate_weights(home / "run", home / "data.npz", int8=True, **asked)  # type: ignore[arg-type]


def test_a_run_knows_its_own_data(home: Path, tmp_path: Path) -> None:
    known, named = (evaluate_weights(home / "run", *data) for data in ((), (home / "data.npz",)))
    for document in (known, named):
        del document["seconds"], document["images_per_s"]
    assert known == named
    for name in ("config.json", "model.safetensors"):  # weights alone know no data
        shutil.copy(home / "run" / name, tmp_path)
    with pytest.raises(UsageError, match="no run, so the data is not known; name it with data="):
        evaluate_weights(tmp_path)


def test_test_images_that_the_network_was_trained_on_are_counted(home: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(home / "data.npz"))
    for name in ("x", "y"):
        arrays[f"{name}_test"] = np.concatenate([arrays[f"{name}_test"], arrays[f"{name}_train"][:5]])
    np.savez(tmp_path / "more.npz", **arrays)
    note = "5 of 46 test images are among those that it was trained on"
    assert note in evaluate_weights(home / "run", tmp_path / "more.npz")["notes"]
    assert not any("trained on" in note for note in evaluate_weights(home / "run")["notes"])
