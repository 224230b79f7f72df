"""Small other implementations, correct and faulty; the scripts in tools/."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wideresnet.bench.case import Case

PEERS = """
import torch
from wideresnet.networks import create

def same(depth, widen_factor, num_classes, dropRate):
    assert dropRate == 0
    return create(f"WRN-{depth}-{widen_factor}", num_classes)

def by_name(name):
    return create(name)

def wider(depth, k):
    return create(f"WRN-{depth}-{k + 1}")

def raising(depth):
    raise RuntimeError("two\\nlines")

def leaving(depth):
    raise SystemExit(2)

def asking(depth, temperature):
    return same(depth, 1, 10, 0)

def returning(depth):
    return "a network"

class Shapeless(torch.nn.Module):
    def __init__(self, depth=10):
        super().__init__()
        self.network = create("WRN-10-1")
    def forward(self, x):
        return self.network(x)[:, :5]
"""


@pytest.fixture
def make_case() -> Callable[..., Case]:
    def make(network: str = "WRN-10-1", job: str = "train", family: str = "cifar", batch_size: int = 2) -> Case:
        return Case(job, network, family, batch_size, "cpu", "fp32", 1)

    return make


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder with correct and faulty implementations."""
    (tmp_path / "others.py").write_text(PEERS)
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "others"


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Load a script of tools/ as a module; the scripts import each other as when they are run."""
    tools = Path(__file__).parent.parent.parent / "tools"
    monkeypatch.syspath_prepend(str(tools))

    def load(name: str) -> Any:
        path = tools / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
