"""The same command gives the same network: also when it is started several times at once, with nothing measured yet."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wideresnet.spec.execution import SETTLED

COMMAND = (sys.executable, "-m", "wideresnet", "train", "WRN-10-1", "--data", "digits", "--epochs", "2", "--out")


@pytest.mark.slow
@pytest.mark.usefixtures("autotuning")
@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_identical_commands_at_once_give_one_network(tmp_path: Path, recipe: str) -> None:
    runs = [tmp_path / f"run{number}" for number in range(3)]
    started = [
        subprocess.Popen([*COMMAND, str(run), "--recipe", recipe], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for run in runs
    ]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    settled = [{key: json.loads((run / "recipe.json").read_text())[key] for key in SETTLED} for run in runs]
    assert settled == [settled[0]] * 3
    assert len({hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() for run in runs}) == 1
