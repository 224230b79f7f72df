"""On a GPU: streamed runs equal resident ones, and resumed ones those that were not stopped; skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import after_steps, assert_same_run, interrupt

from imagenet_like import make_folders
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Interrupted, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIXED = {"random_resized_crop": 0.2, "color_jitter": 0.4, "pca_lighting": 0.1, "mixup": 0.2, "cutmix": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("tiny") / "set", num_classes=20, train=6, test=1, high=100)


def recipe(data: Path, **changes: Any) -> Recipe:
    machine = {"device": "cuda", "deterministic": True, "layout": "channels_last", "compile": False}
    values = {"epochs": 2, "batch_size": 16, "image_size": 32, "lr": 0.05, "workers": 2, **machine, **changes}
    return Recipe.flat(network="WRN-10-1", data=str(data), **values)


def test_a_streamed_run_on_a_gpu_is_the_resident_one(folder: Path, tmp_path: Path) -> None:
    fit(recipe(folder, crop_padding=2, feed="stream"), tmp_path / "stream")
    fit(recipe(folder, crop_padding=2), tmp_path / "resident")
    assert_same_run(tmp_path / "stream", tmp_path / "resident")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stop_in_an_epoch_changes_nothing_on_a_gpu(folder: Path, tmp_path: Path, precision: str) -> None:
    changes: dict[str, Any] = {**MIXED, "crop_padding": 0, "precision": precision, "feed": "stream"}
    fit(recipe(folder, **changes), tmp_path / "whole")
    with after_steps(4, interrupt), pytest.raises(Interrupted):
        fit(recipe(folder, **changes), tmp_path / "stopped")
    fit(recipe(folder, **changes, workers=0), tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
