"""Without the packages of the extra `export`: one line says what to install; torch.export works."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.commands.main import main
from wideresnet.export.packages import TELEMETRY, need
from wideresnet.export.write import target

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")


@pytest.fixture
def _without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)  # its import fails


@pytest.mark.usefixtures("_without_extras")
@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("openvino", "onnx")])
def test_a_missing_package_is_named_with_what_to_install(
    format: str, package: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "--format", format, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f'wrn: --format {format}: needs {package}, which is not installed; pip install "wideresnet[export]"'
    ]
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("_without_extras")
@pytest.mark.parametrize(("name", "package"), [("model.onnx", "onnx"), ("model.xml", "openvino")])
def test_reading_a_model_names_the_missing_package(
    name: str, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in (".onnx", ".xml", ".bin"):
        (tmp_path / f"model{ending}").write_bytes(b"x")
    assert main(["predict", str(tmp_path / name), "photo.png"]) == 2
    assert f'needs {package}, which is not installed; pip install "wideresnet[export]"' in capsys.readouterr().err


@pytest.mark.usefixtures("_without_extras")
def test_torch_export_needs_no_extra(
    trained: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", trained, "--format", "torch", "--out", tmp_path / "new", "--check", *photos[:3], "--json"]
    assert main(list(map(str, words))) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["check"]["failure"] == ""
    with np.load(tmp_path / "new" / "model.pt2.golden.npz", allow_pickle=False) as golden:
        images, logits = torch.from_numpy(golden["images"]), golden["logits"]
    extra = {"wideresnet.json": ""}
    module = torch.export.load(tmp_path / "new" / "model.pt2", extra_files=extra).module()
    np.testing.assert_allclose(module(images)[0], logits, atol=1e-5)
    assert json.loads(extra["wideresnet.json"]) == result["metadata"]


def test_openvino_is_imported_without_its_telemetry() -> None:
    if importlib.util.find_spec("openvino_telemetry") is None:  # without importing it here
        pytest.skip("openvino is not installed: pip install 'wideresnet[export]'")
    code = (
        "import sys; from wideresnet.export.packages import need; need('openvino', 'it');"
        f"telemetry = sys.modules['openvino.tools.ovc'].telemetry.__module__;"
        f"sys.exit({TELEMETRY!r} in sys.modules or 'stub' not in telemetry)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_onnx.py").write_text("raise ImportError('libgomp is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="it: needs broken_onnx, which fails: libgomp is missing"):
        need("broken_onnx", "it")


def test_names_of_files_follow_the_format(tmp_path: Path) -> None:
    assert target(tmp_path, "onnx") == tmp_path / "model.onnx"
    assert target(tmp_path / "new", "openvino", int8=True) == tmp_path / "new" / "model.int8.xml"
    assert target("cats.PT2", "torch") == Path("cats.PT2")
    with pytest.raises(UsageError, match=r"a file whose name ends in \.onnx"):
        target("cats.xml", "onnx")
