from __future__ import annotations

import json
import sys

import pytest
import torch

from wideresnet.machine.description import describe


def test_the_description_is_json_with_versions_and_hardware() -> None:
    about = describe("cpu")
    assert json.loads(json.dumps(about)) == about
    assert about["torch"] == torch.__version__
    assert about["device"] == "cpu"
    assert about["gpu"] is None
    assert about["num_threads"] == torch.get_num_threads()
    assert about["cpu"]


def test_the_description_tells_no_path_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/someone/venv/bin/wrn", "train", "WRN-16-2", "--data", "my digits"])
    about = describe("cpu")
    assert about["command"] == "wrn train WRN-16-2 --data 'my digits'"
    assert not [value for value in about.values() if isinstance(value, str) and ("/home" in value or value[:1] == "/")]
    monkeypatch.setattr(sys, "argv", ["/home/someone/work/script.py", "--flag"])
    assert describe("cpu")["command"] == "python"
