"""A model from a stranger runs no code, reads no other file, and is refused in one line if it is not ours."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_exports import need_packages

from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.main import main
from wideresnet.export import read_exported

Export = Callable[..., Path]


@pytest.fixture
def edited(exported: Export, tmp_path: Path) -> Callable[[Callable[[Any, Any], object]], Path]:
    """Change the message of an ONNX file."""

    def edit(change: Callable[[Any, Any], object]) -> Path:
        path = exported("onnx")
        onnx = importlib.import_module("onnx")
        model = onnx.load_model(str(path))
        change(onnx, model)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    return edit


def outside(onnx: Any, model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def outside_in_a_node(onnx: Any, model: Any) -> None:
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["extra"], value=tensor))


def custom(onnx: Any, model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Spawn", ["images"], ["extra"], domain="evil"))


def loop(onnx: Any, model: Any) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=body))


def function(onnx: Any, model: Any) -> None:
    model.functions.append(onnx.FunctionProto(name="f", domain="mine"))


def unknown(onnx: Any, model: Any) -> None:
    del onnx
    del model.metadata_props[:]


def fewer_classes(onnx: Any, model: Any) -> None:
    del onnx
    (entry,) = [entry for entry in model.metadata_props if entry.key == "class_names"]
    entry.value = '["cat", "dog", "owl"]'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (outside, "is in another file; a model must be in one file"),
        (outside_in_a_node, "is in another file; a model must be in one file"),
        (custom, "the operator Spawn is from evil"),
        (loop, "Loop has a graph of its own"),
        (function, "has functions of its own"),
        (unknown, "holds no metadata of wrn export"),
    ],
)
def test_what_wrn_export_never_writes_is_refused(change: Any, reason: str, edited: Any) -> None:
    path = edited(change)
    with pytest.raises(DataError, match=reason) as caught:
        read_exported(path)
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_other_outputs_than_promised_is_refused(
    edited: Any, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(edited(fewer_classes)), str(photos[0])]) == 1
    assert "promises logits of 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a model", b"\x08\x0a" * 99])
def test_damaged_onnx_files_are_refused(content: bytes, tmp_path: Path) -> None:
    need_packages("onnx")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.onnx: "):
        read_exported(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("cut", [".xml", ".bin"])
def test_damaged_openvino_files_are_refused(share: float, cut: str, exported: Export, tmp_path: Path) -> None:
    path = exported("openvino")
    for ending in (".xml", ".bin"):
        shutil.copy(path.with_suffix(ending), tmp_path)
    damaged = tmp_path / f"model{cut}"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"model\.xml: OpenVINO cannot read it"):
        read_exported(tmp_path / "model.xml")


def test_openvino_needs_both_files(exported: Export, tmp_path: Path) -> None:
    shutil.copy(exported("openvino"), tmp_path / "model.xml")
    with pytest.raises(DataError, match=r"model\.bin: No such file"):
        read_exported(tmp_path / "model.xml")


def test_a_file_that_is_larger_than_any_model_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2**31)  # takes no space
    with pytest.raises(DataError, match="a model has at most 2 GiB"):
        read_exported(tmp_path / "model.onnx")


def test_an_archive_of_torch_export_is_not_read_since_it_may_run_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt2").write_bytes(b"x")
    assert main(["predict", str(tmp_path / "model.pt2"), "photo.png"]) == 2
    assert "may run code" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.onnx", "model.tflite"])
def test_other_paths_are_usage_errors(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=name):
        read_exported(tmp_path / name)
