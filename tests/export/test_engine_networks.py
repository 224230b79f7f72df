"""`--engine`: what an installed engine answers is what this package answers, and what it cannot do is one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_exports import make_weights, need_packages
from torch import Tensor, nn

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.paths import model_files
from wideresnet.commands.main import main
from wideresnet.data.cache import cache_contents, clear_cache
from wideresnet.export import engines, run_with
from wideresnet.export.kept import MOST, kept_or_made
from wideresnet.inference.evaluate import evaluate_weights, prepare
from wideresnet.inference.predict import predict_files
from wideresnet.machine.cpu import BF16_FLAGS, cpu_flags
from wideresnet.networks import create
from wideresnet.weights.hub import read_weights, write_weights

ENGINES = ("onnxruntime", "openvino")
DIGITS = "WRN-10-1-digits"


@pytest.fixture
def _packages() -> None:
    need_packages("openvino")


def _probabilities(document: str) -> np.ndarray:
    """Return the probabilities by image, then by class in alphabetic order."""
    rows = [{each["class"]: each["probability"] for each in image["predictions"]} for image in json.loads(document)]
    return np.array([[row[name] for name in sorted(row)] for row in rows])


@pytest.mark.usefixtures("_packages")
@pytest.mark.parametrize(("name", "side_px"), [("WRN-18-0.25", 64), ("WRN-10-1", 32)])
def test_every_engine_classifies_odd_photographs_as_this_package_does_and_is_named(
    name: str, side_px: int, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(tmp_path, make_weights(name, size=(side_px, side_px)))
    words = ["predict", str(tmp_path), *map(str, photos), "--json"]
    assert main(words) == 0
    document = capsys.readouterr().out
    assert "engine" not in json.loads(document)[0]
    ours = _probabilities(document)
    assert len(ours) == 20
    assert np.ptp(ours[:, 0]) > 0.01  # answers that differ
    for engine in ENGINES:
        assert main([*words, "--engine", engine]) == 0
        out, err = capsys.readouterr()
        np.testing.assert_allclose(_probabilities(out), ours, atol=1e-4)
        assert json.loads(out)[0]["engine"].startswith(engines.NAMES[engine])
        assert json.loads(out)[0]["engine"].endswith(", fp32, 1 thread")
        assert "Traceback" not in err
    assert len(model_files()) == 1  # converted once for both


@pytest.mark.usefixtures("_packages")
def test_a_set_has_the_same_error_by_every_engine_and_the_result_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", DIGITS, "--data", "digits", "--limit", "70"]
    ours = prepare(DIGITS, "digits", limit=70)
    logits = ours.run(ours.images)
    for engine in ENGINES:
        subject = prepare(DIGITS, "digits", limit=70, engine=engine)
        torch.testing.assert_close(subject.run(subject.images), logits, atol=1e-4, rtol=1e-4)
    capsys.readouterr()
    assert main([*words, "--engine", "openvino"]) == 0
    assert ", fp32, 1 thread, " in next(line for line in capsys.readouterr().out.splitlines() if "OpenVINO 20" in line)


@pytest.mark.usefixtures("_packages")
@pytest.mark.parametrize(("engine", "package"), [("openvino", "nncf"), ("onnxruntime", "onnxruntime")])
def test_eight_bits_are_calibrated_on_training_images_and_nearly_exact(
    engine: str, package: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    result = evaluate_weights(DIGITS, "digits", engine=engine, int8=True)
    assert result["precision"] == "int8"
    assert ", int8, 1 thread, calibrated on 300 images" in result["engine"]
    assert result["error_pct"] < 1.5
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "photo.png")
    (answer,) = predict_files(DIGITS, [tmp_path / "photo.png"], engine=engine, int8=True, data="digits")
    assert (answer["precision"], answer["engine"]) == ("int8", result["engine"])
    assert not model_files()  # it depends on the images, so that it is not kept


@pytest.mark.usefixtures("_packages")
def test_bf16_is_asked_for_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    if BF16_FLAGS & cpu_flags():
        result = evaluate_weights(DIGITS, "digits", engine="openvino", precision="bf16")
        assert ", bf16, " in result["engine"]
        assert result["error_pct"] < 1.5
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(UsageError, match="this CPU has no instructions for bf16; use precision='fp32'"):
        evaluate_weights(DIGITS, "digits", engine="openvino", precision="bf16")


@pytest.mark.usefixtures("_packages")
def test_any_number_of_images_is_taken_and_other_shapes_are_refused() -> None:
    weights = read_weights(DIGITS)
    images = torch.randn(130, 1, 8, 8)
    with torch.no_grad():
        expected = weights.network.eval()(images)
    for engine in ENGINES:
        network = run_with(weights.network, engine, (8, 8))
        for num in (3, 130, 0, 1):
            torch.testing.assert_close(network(images[:num]), expected[:num], atol=1e-4, rtol=1e-4)
        for wrong in (torch.zeros(2, 1, 9, 8), torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)):
            with pytest.raises(UsageError, match=r"of floating-point images \(B, 1, 8, 8\)"):
                network(wrong)


@pytest.mark.usefixtures("_packages")
def test_an_engine_that_computes_something_else_is_found_on_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = engines.network_to_onnx
    other = create("WRN-10-1", 10, in_channels=1).eval()
    monkeypatch.setattr(engines, "network_to_onnx", lambda _, size, **how: convert(other, size, **how))
    network = run_with(read_weights(DIGITS).network, "onnxruntime", (8, 8))
    with pytest.raises(DataError, match=r"ONNX Runtime .* differ by .* is rounding; leave out engine="):
        network(torch.randn(2, 1, 8, 8))
    with pytest.raises(DataError, match="is rounding"):  # it stays refused
        network(torch.randn(2, 1, 8, 8))


class _Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 10) if x.sum() > 0 else torch.ones(len(x), 10)


@pytest.mark.usefixtures("_packages")
def test_a_network_that_cannot_be_converted_is_one_line() -> None:
    network = create("WRN-10-1", 10)
    network.fc = _Undecided()  # type: ignore[assignment]
    with pytest.raises(
        UsageError, match=r"^engine='openvino': OpenVINO does not take WRN-10-1 .* leave it out$"
    ) as said:
        run_with(network, "openvino", (8, 8))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_a_missing_engine_is_named_with_what_to_install(
    verb: str, photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "openvino", None)  # its import fails
    assert main([verb, DIGITS, *([str(photos[0])] if verb == "predict" else ["--data", "digits"]),
                 "--engine", "openvino"]) == 2  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        'wrn: --engine openvino: needs openvino, which is not installed; pip install "wideresnet[export]"'
    ]


def test_a_kept_network_is_used_only_if_it_is_ours_whole_and_of_these_weights() -> None:
    network = create("WRN-10-1", 10).eval()
    made: list[bytes] = []

    def make() -> bytes:
        made.append(f"model {len(made)}".encode())
        return made[-1]

    def get() -> bytes:
        return kept_or_made(network, (8, 8), make)

    assert get() == get() == b"model 0"
    (path,) = model_files()
    path.write_bytes(b"damaged")
    assert get() == b"model 1"
    path.unlink()
    (path,) = model_files()
    path.chmod(0o666)
    assert get() == b"model 2"
    assert get() == b"model 2"
    assert kept_or_made(network, (8, 9), make) == b"model 3"
    with torch.no_grad():
        network.fc.bias.add_(1)
    assert get() == b"model 4"
    network.fc = nn.Sequential(network.fc)  # type: ignore[assignment]
    assert get() == b"model 5"
    for _ in range(MOST):
        with torch.no_grad():
            network.fc[0].bias.add_(1)  # type: ignore[index]
        get()
    assert len(model_files()) == MOST
    assert get() == made[-1]
    part = model_files()[0].with_name(f".{model_files()[0].name}.7.part")  # of a process that was killed
    part.write_bytes(b"begun")
    listed = [name for name, _, what in cache_contents() if "--engine" in what]
    assert len(listed) == MOST + 1
    clear_cache()
    assert not model_files()


def test_a_precision_that_there_is_and_images_to_quantize_by_are_needed() -> None:
    need_packages("onnx")
    with pytest.raises(UsageError, match="precision='fp16': must be one of fp32, bf16, int8"):
        run_with(create("WRN-10-1", 10), "onnxruntime", (8, 8), precision="fp16")
    with pytest.raises(UsageError, match="no images to quantize by"):
        run_with(create("WRN-10-1", 10), "onnxruntime", (8, 8), precision="int8")


@pytest.mark.usefixtures("_packages")
@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_weights_are_not_quantized_to_sound_ones(engine: str) -> None:
    network = create("WRN-10-1", 10)
    torch.nn.init.constant_(network.fc.weight, torch.nan)
    with pytest.raises(DataError, match=r"^WRN-10-1: the outputs are not finite; these weights are damaged"):
        run_with(network, engine, (8, 8), precision="int8", images=torch.randn(20, 3, 8, 8))


def test_the_network_that_is_given_stays_as_it_is() -> None:
    need_packages("onnx")
    weights = make_weights("WRN-10-1", size=(8, 8))
    network = dataclasses.replace(weights, network=weights.network.train()).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run_with(network, "onnxruntime", (8, 8))(torch.randn(2, 3, 8, 8))
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
