from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from page_runs import make_data, train

from wideresnet.spec.record import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run next to its data; `run` copies it and nothing changes it."""
    folder = tmp_path_factory.mktemp("runs")
    return train(folder / "run", make_data(folder))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run without its digests, which a test may change."""
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    RunFolder(copy).result.write_text(json.dumps(RunFolder(copy).read_result()))
    return copy
