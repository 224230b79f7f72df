"""The data of a run, read again for its weights."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wideresnet.analysis import analyze
from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.main import main
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.inference.predict import predict_files
from wideresnet.spec.recipes import resolve
from wideresnet.training import fit
from wideresnet.weights.matching import data_of_run

CHOICES = ("ripe or not", "kind")
"""Two columns of labels: which one is meant, only the user knows."""


def write_table(path: Path, num: int) -> None:
    random, images = np.random.default_rng(0), []
    for pixels in random.integers(0, 256, (num, 12, 12, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    labels = {name: [i % (2 + at) for i in range(num)] for at, name in enumerate(CHOICES)}
    pq.write_table(pa.table({"image": images, **labels}), path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the three kinds of a table that holds other labels, too."""
    home = tmp_path_factory.mktemp("home")
    (home / "fruit").mkdir()
    write_table(home / "fruit/train.parquet", 48)
    write_table(home / "fruit/test.parquet", 12)
    settings = {"epochs": 1, "batch_size": 16, "precision": "fp32", "device": "cpu", "label_column": "kind"}
    fit(resolve("quick", "WRN-10-1", str(home / "fruit"), settings, num_train=48), home / "run")
    return home / "run"


def test_its_columns_hold_for_every_use_of_its_weights(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ripe or not"):  # asks which one is meant
        evaluate_weights(run, Path(f"{run.parent}/fruit/../fruit"))
    found = evaluate_weights(run)
    assert [row["num_images"] for row in found["classes"]] == [4, 4, 4]
    assert analyze(run).num_test_images == 12
    Image.new("RGB", (12, 12)).save(tmp_path / "photo.png")
    (answer,) = predict_files(run, [tmp_path / "photo.png"], int8=True)
    assert answer["precision"] == "int8"


def test_its_columns_hold_for_the_calibration_of_an_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    main(["export", str(run), "--format", "onnx", "--int8", "--out", str(tmp_path / "x.onnx")])
    said = capsys.readouterr().err
    assert "only 48 images to calibrate by" in said
    assert "ripe or not" not in said


def test_data_that_is_gone_is_named_with_what_names_it_now(run: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "recipe.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    recipe = json.loads((run / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "data": "./gone"}))
    with pytest.raises(UsageError, match=r"was trained on \./gone, which is not there now; name it with data="):
        evaluate_weights(tmp_path)
    with pytest.raises(UsageError, match="name it with calibrate="):
        data_of_run(tmp_path, option="calibrate")
