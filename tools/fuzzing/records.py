"""Weights, the files of a run, and names of networks for the fuzzer."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors

from wideresnet.data import Dataset, load_dataset
from wideresnet.data.preprocess import Preprocessing
from wideresnet.experiments.store import Store, Task
from wideresnet.networks import create
from wideresnet.report.pages import write_report
from wideresnet.report.runs import read_predictions, read_run
from wideresnet.spec.analysis import read_analyses, write_analyses
from wideresnet.spec.names import parse
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights, read_weights, write_weights

from .mutations import damage_bytes, damage_json, damage_json_lines
from .reader import Files, Reader, damage_one

NAME = "WRN-10-0.125"  # two channels: 2 kB

# Weights and the files of a run.


@functools.cache
def _weights() -> Files:
    folder = Path("valid-weights").resolve()
    folder.mkdir()
    torch.manual_seed(0)
    preprocessing = Preprocessing.fit("mean_std", np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3))
    write_weights(folder, Weights(create(NAME, num_classes=2), preprocessing, ("cat", "dög"), (8, 8)))
    files: Files = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return files


def _damage_safetensors(random: Random, content: bytes) -> bytes:
    if random.random() < 0.5:
        return damage_bytes(random, content)
    length = int.from_bytes(content[:8], "little")
    header = damage_json(random, content[8 : 8 + length])
    size = random.choice((len(header), len(header), len(header), 0, 2**63, length)).to_bytes(8, "little")
    return size + header + content[8 + length :]


def _read_weights(folder: Path) -> None:
    weights = read_weights(folder)
    json.dumps(weights.class_names, ensure_ascii=False).encode()
    assert all(isinstance(name, str) for name in weights.class_names)


@functools.cache
def _run() -> Files:
    recipe = Recipe.flat(network="WRN-10-1", data="digits", recipe="paper", epochs=3, lr_drop_epochs=(2,))
    losses = {"train_loss": 2.3, "train_error_pct": 88.2, "test_loss": 2.2, "test_error_pct": 80.5}
    lines = [
        {"epoch": n, "step": 11 * n, "lr": 0.1, "image_scale": 1.0, "train_s": 0.2 * n, **losses} for n in (1, 2, 3)
    ]
    result = {
        "network": "WRN-10-1", "dataset": "digits", "recipe": "paper", "params": 77562, "epochs": 3,
        "test_error_pct": 80.5,
        "test_loss": 2.2, "num_test_images": 360, "seconds": 0.9, "train_s": 0.6, "images_per_s": 8688.5,
        "peak_memory_mib": 861.6, "seed": 0, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    logits = np.random.default_rng(0).normal(size=(360, 10)).astype(np.float32)
    predictions = save_safetensors({"logits": logits, "labels": _digits().test.labels})
    env = {"python": "3.11", "torch": "2.11", "cpu": "a processor", "gpu": None, "threads": 2}
    documents = {"recipe.json": recipe.to_json(), "result.json": result, "env.json": env}
    files: Files = {name: json.dumps(document, indent=1).encode() for name, document in documents.items()}
    files["metrics.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return {**files, "test_predictions.safetensors": predictions}


@functools.cache
def _digits() -> Dataset:
    return load_dataset("digits")


def _read_recipe(folder: Path) -> None:
    recipe = Recipe.from_file(folder / "recipe.json")
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def _read_run(folder: Path) -> None:
    run = read_run(folder)
    assert run.progress
    assert isinstance(run.data_name, str)
    assert isinstance(run.processor, str)
    RunFolder(folder).read_metrics()


def _read_predictions(folder: Path) -> None:
    predictions, _, _ = read_predictions(read_run(folder), _digits())
    if predictions is not None:
        assert len(predictions.labels) == len(predictions.predicted) == len(predictions.probability)


def _damage_run(random: Random, files: Files, other: Files) -> Files:
    return random.choice((RESULT, METRICS, RECIPE, PREDICTIONS)).damage(random, files, other)


# What blocks contribute, and runs that a reproduction intends.


@functools.cache
def _analysis() -> Files:
    block = {"name": "conv2.1", "projects": True, "params": 99, "error_without_pct": 88.0, "branch_share": 0.6,
             "gradient_norm": 1.5, "gradient_share": 0.5}  # fmt: skip
    values = {
        "weights": "runs/mine", "weights_sha256": "ab" * 32, "network": "WRN-10-1", "params": 77562,
        "dataset": "digits", "num_test_images": 360, "device": "cpu", "seconds": 1.5, "notes": ["one"],
        "num_images": 360, "num_compared": 128, "error_pct": 5.0, "blocks": [block, {**block, "name": "conv3.1"}],
        "similarity": [[1.0, 0.5], [0.5, 1.0]],
    }  # fmt: skip
    return {"analysis.json": json.dumps({"networks": [values]}).encode()}


def _read_analysis(folder: Path) -> None:
    analyses = read_analyses(folder / "analysis.json")
    write_analyses(folder / "again.json", analyses)
    assert read_analyses(folder / "again.json") == analyses


@functools.cache
def _intent() -> Files:
    recipe = Recipe.flat(network="WRN-10-1", data="cifar10", epochs=3)
    task = Task.of(recipe, "cifar10", "0" * 16, 0)
    values = {"recipe": task.recipe.to_json(), "dataset": "cifar10", "data_digest": "0" * 16, "owner": {"pid": 1},
              "started": "2026-11-26", "attempts": 1, "failure": "the loss is not finite"}  # fmt: skip
    return {f"{task.name}.json": json.dumps(values).encode()}


def _read_intent(folder: Path) -> None:
    store = Store(folder)
    for name in store.names():
        assert store.state(name) in ("finished", "failed", "begun", "missing")
    store.digests("cifar10")
    Store(folder / "here").merge(folder)


# Names of networks.

_PIECES = ("WRN", "wrn", "ResNet", "PreActResNet", "ResNeXt", "wide_resnet", "-", "_", " ", "28", "10", "1", "0",
           "9994", "3994",
           "100", "1000", "2.5", "1e9", "-B(3,1,3)", "B313", "-l3", "-bottleneck", "(7,7,7,7,7,7,7,7)", "x4d", "32",
           "²", "٣",
           "\x00", "\ud800", "\n", "'", "9" * 5000, ".", "1/3", "k", "d", "n")  # fmt: skip


def _damage_name(random: Random, files: Files, _other: Files) -> Files:
    content = files["name"]
    assert isinstance(content, bytes)
    if random.random() < 0.4:
        return {"name": damage_bytes(random, content, b"WRN-40-2-B(3,1,3)")}
    text = content.decode()
    for _ in range(random.choice((1, 2, 5))):
        start = random.randrange(len(text) + 1)
        text = text[:start] + random.choice(_PIECES) + text[start + random.choice((0, 1, 3)) :]
    return {"name": text.encode("utf-8", "surrogatepass")}


def _read_name(folder: Path) -> None:
    name = parse((folder / "name").read_bytes().decode("utf-8", "surrogateescape"))
    assert parse(str(name), name.family) == name
    with torch.device("meta"):
        create(name)


_NAMES = (
    "WRN-28-10",
    "WRN-40-2-B(3,1,3)",
    "WRN-40-2-l3",
    "WRN-50-2-bottleneck",
    "ResNet-110",
    "PreActResNet-164",
    "ResNeXt-50-32x4d",
)


WEIGHTS = Reader("weights", lambda: [_weights()], damage_one(_damage_safetensors, "model.safetensors"), _read_weights)
CONFIG = Reader("config", lambda: [_weights()], damage_one(damage_json, "config.json"), _read_weights)
RECIPE = Reader("recipe", lambda: [_run()], damage_one(damage_json, "recipe.json"), _read_recipe)
METRICS = Reader("metrics", lambda: [_run()], damage_one(damage_json_lines, "metrics.jsonl"), _read_run)
RESULT = Reader("result", lambda: [_run()], damage_one(damage_json, "result.json", "env.json"), _read_run)
PREDICTIONS = Reader(
    "predictions", lambda: [_run()], damage_one(_damage_safetensors, "test_predictions.safetensors"), _read_predictions
)
REPORT = Reader("report", lambda: [_run()], _damage_run, lambda folder: write_report(folder, _digits()))
ANALYSIS = Reader("analysis", lambda: [_analysis()], damage_one(damage_json, "analysis.json"), _read_analysis)
INTENT = Reader("intent", lambda: [_intent()], damage_one(damage_json, *_intent()), _read_intent)
NAMES = Reader("names", lambda: [{"name": name.encode()} for name in _NAMES], _damage_name, _read_name)
