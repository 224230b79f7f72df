"""Every test of the engines begins with the same seed; those that need the kernels are skipped without a compiler."""

from __future__ import annotations

import pytest
import torch

from wideresnet.kernels.library import why_unavailable


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def needs_kernels() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine without kernels; returns the reason."""
    reason = "no C compiler here (gcc, cc or clang)"
    monkeypatch.setattr("wideresnet.kernels.library.why_unavailable", lambda: reason)
    return reason
