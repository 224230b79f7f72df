"""Machines for tests of autotuning: with kernels, with a GPU, with threads to spare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from wideresnet.kernels.library import why_unavailable
from wideresnet.training.preflight import autotune


@pytest.fixture
def needs_kernels() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `autotune` asks of a GPU, on machines without one."""
    monkeypatch.setattr(autotune, "reset_peak_memory", lambda _: True)
    monkeypatch.setattr(autotune, "pick_precision", lambda wanted, _: "bf16" if wanted == "auto" else wanted)


@pytest.fixture
def own_threads() -> Iterator[None]:
    """Let a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
