"""Runs on a tiny "ImageNet" that stays on the disk: equal to resident ones, whatever the workers and the stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import after_steps, assert_same_run, break_off, interrupt, metrics, weights

from imagenet_like import make_folders, make_shards
from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.metrics import top_k_error
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.spec.execution import Execution
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit
from wideresnet.training.interrupt import Interrupted
from wideresnet.training.setup import build_network
from wideresnet.training.step import count_errors, training_loss

SIMPLE = {"crop_padding": 2, "auto_augment": "trivial"}
RICH = {
    "crop_padding": 0, "random_resized_crop": 0.2, "color_jitter": 0.4, "pca_lighting": 0.1, "mixup": 0.2,
    "cutmix": 1.0, "random_erasing": 0.3, "auto_augment": "trivial", "repeated_augmentation": 2, "eval_size": 40,
    "eval_resize": 48, "label_smoothing": 0.1, "ema_decay": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("tiny") / "set", num_classes=20, train=3, test=1, high=200)


def recipe(data: Path, **changes: Any) -> Recipe:
    values = {"epochs": 2, "batch_size": 16, "image_size": 32, "device": "cpu", "lr": 0.05, "workers": 1, **changes}
    return Recipe.flat(network="WRN-10-1", data=str(data), **values)


def test_a_streamed_run_is_the_resident_one(folder: Path, tmp_path: Path) -> None:
    stream = fit(recipe(folder, **SIMPLE, feed="stream"), tmp_path / "stream")
    resident = fit(recipe(folder, **SIMPLE), tmp_path / "resident")
    assert_same_run(tmp_path / "stream", tmp_path / "resident")
    assert stream["test_loss"] == resident["test_loss"]
    assert 0 <= stream["data_wait_pct"] <= 100
    assert (stream["workers"], stream["num_unreadable"]) == (1, 0)
    assert "data_wait_pct" not in resident


def test_shards_workers_and_a_stop_in_an_epoch_change_nothing(folder: Path, tmp_path: Path) -> None:
    expected = fit(recipe(folder, **RICH), tmp_path / "whole")
    with after_steps(4, interrupt), pytest.raises(Interrupted, match="stopped after step 4; everything is saved"):
        fit(recipe(folder, **RICH, workers=0), tmp_path / "stopped")
    result = fit(recipe(folder, **RICH, workers=3), tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert result["test_error_pct"] == expected["test_error_pct"]
    shards = make_shards(tmp_path / "shards", folder, per_shard=25)
    fit(recipe(shards, **RICH), tmp_path / "packed")
    assert weights(tmp_path / "whole") == weights(tmp_path / "packed")


def test_top5_and_the_evaluation_of_the_run_are_those_of_wrn_eval(folder: Path, tmp_path: Path) -> None:
    result = fit(recipe(folder, **RICH, epochs=1), tmp_path / "run")
    again = evaluate_weights(tmp_path / "run")
    assert again["num_images"] == 20
    assert (again["error_pct"], again["loss"]) == (result["test_error_pct"], pytest.approx(result["test_loss"], 1e-6))
    assert again["top5_error_pct"] == result["test_top5_error_pct"]
    predictions = RunFolder(tmp_path / "run").predictions
    from safetensors.numpy import load_file

    tensors = load_file(predictions)
    assert top_k_error(tensors["logits"], tensors["labels"], 5) == result["test_top5_error_pct"]


def test_what_could_not_be_read_is_counted_over_stops_too(tmp_path: Path) -> None:
    copy = make_folders(tmp_path / "set", num_classes=20, train=3, test=1, high=100)
    for name in ("class03/1.jpg", "class07/0.jpg"):
        path = copy / "train" / name
        path.write_bytes(path.read_bytes()[:650])
    with pytest.raises(DataError, match=r"class0[37]/[01]\.jpg cannot be read \(damaged.*skip_unreadable=True"):
        fit(recipe(copy, feed="stream", preprocessing="scale"), tmp_path / "run")
    skipping = recipe(copy, feed="stream", skip_unreadable=True)
    with after_steps(3, interrupt), pytest.raises(Interrupted):
        fit(skipping, tmp_path / "stopped", overwrite=True)
    result = fit(skipping, tmp_path / "stopped", resume=True)
    assert result["num_unreadable"] == 2


def test_damaged_test_images_are_found_before_the_run(tmp_path: Path) -> None:
    copy = make_folders(tmp_path / "set", num_classes=4, train=3, test=2, high=100)
    path = copy / "val/class02/0.jpg"
    path.write_bytes(path.read_bytes()[:650])
    with pytest.raises(DataError, match=r"1 of 8 test images cannot be read: val/class02/0\.jpg \(damaged"):
        fit(recipe(copy, feed="stream", batch_size=4), tmp_path / "run")
    result = fit(recipe(copy, feed="stream", batch_size=4, epochs=1, skip_unreadable=True), tmp_path / "run")
    assert result["num_test_images"] == 7


def test_a_resumed_run_keeps_its_feed(folder: Path, tmp_path: Path) -> None:
    with after_steps(2, break_off), pytest.raises(Interrupted):
        fit(recipe(folder, **SIMPLE, feed="stream"), tmp_path / "run")
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    assert stored["feed"] == "stream"
    with pytest.raises(UsageError, match="has feed stream, asked for is resident"):
        fit(Recipe.from_json(stored).replace(feed="resident"), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed": "resident", "random_resized_crop": 0.1}, "feed='resident': random_resized_crop, .*use feed='stream'"),
        ({"feed": "stream", "preprocessing": "zca"}, "preprocessing='zca': whitens the whole set in advance"),
        ({"feed": "stream", "crop_padding": 40}, "crop_padding=40: reflection needs a padding smaller than the image"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(recipe(folder, **changes), tmp_path / "run")


def test_limit_and_holdout_take_parts_of_a_stream(folder: Path, tmp_path: Path) -> None:
    changes = {"limit": 40, "holdout": 8, "crop_padding": 2}
    fit(recipe(folder, **changes, feed="stream"), tmp_path / "stream")
    fit(recipe(folder, **changes), tmp_path / "resident")
    assert_same_run(tmp_path / "stream", tmp_path / "resident")
    assert "val_error_pct" in metrics(tmp_path / "stream")[-1]


def test_soft_labels_that_are_hard_give_the_same_loss_and_errors() -> None:
    network, _ = build_network(Recipe.flat(network="WRN-10-1"), 5, 3)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 0])
    execution = Execution(device="cpu")
    hard, logits = training_loss(network.eval(), images, labels, execution, 0.1)
    soft, _ = training_loss(network, images, F.one_hot(labels, 5).float(), execution, 0.1)
    assert soft.item() == pytest.approx(hard.item(), rel=1e-6)
    assert count_errors(logits, F.one_hot(labels, 5).float()) == count_errors(logits, labels)


@pytest.mark.slow
def test_a_kill_leaves_no_worker_and_a_run_that_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "wideresnet", "train", "WRN-10-1", "--data", str(folder), "--image-size", "32",
               "--batch-size", "16", "--epochs", "40", "--feed", "stream", "--workers", "2", "--out", str(out),
               "--checkpoint-every", "0"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any((out / "checkpoint").glob("*")))
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(map(alive, workers)))
    process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(children(process.pid)) >= 2)
    time.sleep(1)
    for pid in (*children(process.pid), process.pid):  # as a terminal does, to the whole group
        subprocess.run(["kill", "-INT", str(pid)], check=False)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "everything is saved" in errors
    assert "Traceback" not in errors


def wait_for(happened: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_lazy_arrays_look_like_arrays(folder: Path) -> None:
    from wideresnet.data import load_dataset

    images = load_dataset(folder, image_size=32, feed="stream").train.images
    whole = np.asarray(images)
    np.testing.assert_array_equal(np.asarray(images[5:9]), whole[5:9])
    np.testing.assert_array_equal(np.asarray(images[np.array([7, 1])]), whole[[7, 1]])
    np.testing.assert_array_equal(images[-1], whole[-1])
