"""`wrn eval`, `wrn predict` and the exported model agree, on photographs as users have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_exports import NAMES, SIZE, make_weights, need_packages

from wideresnet.commands.main import main
from wideresnet.data.preprocess import Preprocessing
from wideresnet.export import export_weights, read_exported
from wideresnet.export.check import TOLERANCE, compare
from wideresnet.export.load import reopen_written
from wideresnet.export.runtimes import run_onnx
from wideresnet.inference.evaluate import evaluate_weights, prepare
from wideresnet.inference.predict import predict_files, predict_logits
from wideresnet.weights.hub import Weights, read_weights

Export = Callable[..., Path]


def opened(path: Path, trained: Path) -> Weights:
    return reopen_written(path, read_weights(trained)) if path.suffix == ".pt2" else read_exported(path)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_twenty_odd_photographs_get_the_answers_of_the_network(
    format: str, exported: Export, trained: Path, photos: list[Path]
) -> None:
    assert len(photos) == 20
    ours, theirs = predict_logits(read_weights(trained), photos, others=[opened(exported(format), trained)])
    assert ours.softmax(1)[:, 0].std() > 0.01
    assert compare(ours, theirs, "fp32")["failure"] == ""
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_eval_and_predict_of_the_exported_model_are_those_of_the_weights(
    format: str, exported: Export, trained: Path, photos: list[Path], tmp_path: Path
) -> None:
    for place, photo in enumerate(photos):
        folder = tmp_path / "data" / "test" / NAMES[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder)
    for name in NAMES:
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        shutil.copy(photos[0], tmp_path / "data" / "train" / name)
    # eval resizes at once only to squares
    weights, model = (replace(w, input_size=(12, 12)) for w in (read_weights(trained), read_exported(exported(format))))
    tests = tmp_path / "data" / "test"
    by_predict, by_model = predict_logits(weights, [tests], others=[model])
    for each in (weights, model):
        subject = prepare(each, tmp_path / "data")
        logits = subject.run(subject.images)
        torch.testing.assert_close(logits.double(), by_predict, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(logits.double(), by_model, atol=TOLERANCE, rtol=0)
    theirs, ours = (evaluate_weights(each, tmp_path / "data") for each in (model, weights))
    assert theirs["confusion"] == ours["confusion"]
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    for mine, other in zip(predict_files(weights, [tests]), predict_files(model, [tests]), strict=True):
        assert mine["file"] == other["file"]
        assert mine["notes"] == other["notes"]
        shares = [{p["class"]: p["probability"] for p in answer["predictions"]} for answer in (mine, other)]
        assert shares[0] == pytest.approx(shares[1], abs=TOLERANCE)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_images_of_any_size_and_number_are_taken(format: str, exported: Export, trained: Path) -> None:
    weights, model = read_weights(trained), read_exported(exported(format))
    random = np.random.default_rng(0)
    for shape in ((1, 1, 1, 3), (3, 7, 9, 3), (1, 64, 33, 3), (2, 65, 5, 3)):
        pixels = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
        with torch.no_grad():
            expected = weights.network(weights.preprocessing(pixels))
            found = model.network(model.preprocessing(pixels))
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_archive_of_torch_export_takes_batches_of_any_number(batch: int, exported: Export, trained: Path) -> None:
    weights, model = read_weights(trained), opened(exported("torch"), trained)
    pixels = torch.randint(0, 256, (batch, *SIZE, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = weights.network(weights.preprocessing(pixels))
        torch.testing.assert_close(model.network(model.preprocessing(pixels)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_the_golden_example_has_the_input_and_output_of_the_model(format: str, exported: Export, trained: Path) -> None:
    path = exported(format)
    with np.load(path.with_name(f"{path.name}.golden.npz"), allow_pickle=False) as golden:
        images, logits, probabilities = (golden[name] for name in ("images", "logits", "probabilities"))
    assert images.dtype == np.uint8
    pixels = images if format != "torch" else images.transpose(0, 2, 3, 1)
    assert pixels.shape[1:] == (*SIZE, 3)
    model = opened(path, trained)
    found = model.network(model.preprocessing(torch.from_numpy(np.ascontiguousarray(pixels))))
    np.testing.assert_allclose(found, logits, atol=1e-5)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1), probabilities, atol=1e-6)


@pytest.mark.parametrize("name", ["ResNet-8", "PreActResNet-11-bottleneck", "WRN-18-0.25"])
def test_other_networks_are_exported_for_any_size(name: str, tmp_path: Path) -> None:
    need_packages("onnx")
    weights = make_weights(name, channels=1, size=(32, 32), preprocessing=Preprocessing("scale"))
    export_weights(weights, "onnx", tmp_path / "net.onnx")
    model = read_exported(tmp_path / "net.onnx")
    pixels = torch.randint(0, 256, (3, 45, 33, 1), dtype=torch.uint8)
    with torch.no_grad():
        expected = weights.network(weights.preprocessing(pixels))
        torch.testing.assert_close(model.network(model.preprocessing(pixels)), expected, atol=TOLERANCE, rtol=0)


def test_the_command_writes_checks_and_reads_back(
    trained: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_packages("onnx")
    words = ["export", trained, "--format", "onnx", "--out", tmp_path / "cats.onnx", "--check", *photos[:5], "--json"]
    assert main(list(map(str, words))) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [str(tmp_path / "cats.onnx"), str(tmp_path / "cats.onnx.golden.npz")]
    assert result["check"]["num_images"] == 5
    assert result["check"]["max_probability_difference"] < TOLERANCE
    answers: list[Any] = []
    for weights in (trained, tmp_path / "cats.onnx"):
        assert main(["predict", str(weights), str(photos[0])]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_an_onnx_file_says_everything_that_its_user_needs(exported: Export) -> None:
    path = exported("onnx")
    _, texts = run_onnx(path.read_bytes(), "it")
    assert json.loads(texts["class_names"]) == list(NAMES)
    about = json.loads(texts["input"])
    assert (about["layout"], about["color"], about["height"], about["width"]) == ("NHWC", "RGB", *SIZE)
    assert about["dynamic"] == ["batch", "height", "width"]
    assert json.loads(texts["preprocessing"])["mean"] == [120, 120, 120]
    assert texts["wideresnet_version"]
    content = path.read_bytes()
    assert b"/home" not in content
    assert str(Path(__file__).parents[2]).encode() not in content  # traces name files of this machine
