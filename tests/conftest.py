"""What all tests share: a cache folder of their own, few threads, since they run beside others, and no measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wideresnet.training.preflight import autotune as tune


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
def _all_ways_are_equally_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test's arithmetic hangs on a clock: the first of the ways to train is taken. `test_tune` measures."""
    monkeypatch.setattr(tune, "_measure", lambda *asked: [1.0] * len(asked[-1]))


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
