"""What all tests share: a cache folder of their own, one thread since they run side by side, no timing, no display."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wideresnet.base import progress
from wideresnet.commands.console import console
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import create
from wideresnet.weights import pretrained
from wideresnet.weights.hub import Weights, write_weights


@pytest.fixture(autouse=True)
def _own_data_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    root, shared = tmp_path_factory.mktemp("wrn-data"), tmp_path_factory.getbasetemp().parent / "kernels"
    shared.mkdir(exist_ok=True)
    (root / "kernels").symlink_to(shared)  # the C code is compiled once for all tests
    monkeypatch.setenv("WRN_DATA", str(root))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on a clock: the first configuration is taken, unless a test asks for `autotuning`."""
    monkeypatch.setenv("WRN_AUTOTUNE", "off")


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their page, which takes longer than training them, unless a test asks for `pages`."""
    monkeypatch.setenv("WRN_PAGE", "off")


@pytest.fixture
def pages(_no_page: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw their pages, in this process and in those that it starts."""
    monkeypatch.delenv("WRN_PAGE")


@pytest.fixture
def autotuning(_nothing_is_timed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `autotune` measure, in this process and in those that it starts."""
    monkeypatch.delenv("WRN_AUTOTUNE")


@pytest.fixture(autouse=True)
def _display_of_its_own() -> Iterator[None]:
    """A command shows progress in its whole process; the next test starts silent again."""

    def reset() -> None:  # to what it is at the start, since a fixture of a whole module may have run a command
        progress.set_reporter(None)
        console().quiet = False
        logging.disable(logging.NOTSET)
        logging.getLogger().setLevel(logging.WARNING)
        for name, log in list(logging.root.manager.loggerDict.items()):
            if isinstance(log, logging.Logger) and name.partition(".")[0] == "wideresnet":
                log.handlers, log.propagate, log.disabled = [], True, False
                log.setLevel(logging.NOTSET)

    reset()
    yield
    reset()


@pytest.fixture
def reported() -> list[str]:
    """The lines that the library reports from now on."""
    lines: list[str] = []

    class Reporter(progress.Silent):
        def report(self, message: str) -> None:
            lines.append(message)

    progress.set_reporter(Reporter())
    return lines


@pytest.fixture
def make_npz(tmp_path: Path) -> Callable[..., Path]:
    """Write an `.npz` of random images that a small network can learn: the class shows in the mean brightness."""

    def make(num_train: int = 64, num_test: int = 24, size: int = 8, channels: int = 3, num_classes: int = 4) -> Path:
        random = np.random.default_rng(0)
        arrays = {}
        for split, num in (("train", num_train), ("test", num_test)):
            labels = np.arange(num) % num_classes
            noise = random.integers(0, 40, (num, size, size, channels))
            arrays[f"x_{split}"] = (noise + (labels * 180 // num_classes)[:, None, None, None]).astype(np.uint8)
            arrays[f"y_{split}"] = labels
        path = tmp_path / "own.npz"
        np.savez(path, **arrays)
        return path

    return make


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Let the package come with no network but those that the test adds: small ones of random weights."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "shipped")

    def add(name: str = pretrained.DEFAULT, network: str = "WRN-10-1", num_classes: int = 4, channels: int = 3) -> Path:
        torch.manual_seed(0)
        built = create(network, num_classes, in_channels=channels)
        with torch.no_grad():
            for _ in range(5):
                built(torch.randn(16, channels, 8, 8))
        folder = tmp_path / "shipped" / name
        folder.mkdir(parents=True)
        preprocessing = Preprocessing("mean_std", (120.0,) * channels, (60.0,) * channels)
        names = tuple(f"kind{label}" for label in range(num_classes))
        write_weights(folder, Weights(built.eval(), preprocessing, names, (8, 8)), half=True)
        params = sum(parameter.numel() for parameter in built.parameters())
        card = {"network": network, "dataset": "cifar10", "params": params, "test_error_pct": 5.93}
        (folder / pretrained.CARD).write_text(json.dumps(card))
        return folder

    return add
