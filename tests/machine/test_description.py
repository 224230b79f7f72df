from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import torch

from wideresnet.base.checkout import commit
from wideresnet.machine.cpu import usable_cpus
from wideresnet.machine.description import describe


def test_the_description_is_json_with_versions_and_hardware() -> None:
    about = describe("cpu")
    assert json.loads(json.dumps(about)) == about
    assert about["torch"] == torch.__version__
    assert about["device"] == "cpu"
    assert about["gpu"] is None
    assert about["num_threads"] == torch.get_num_threads()
    assert 1 <= about["usable_cpus"] == usable_cpus() <= about["num_cpus"]
    assert about["cpu"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(about["date"])) < timedelta(minutes=1)
    assert about["commit"] == commit()


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (["/home/someone/venv/bin/wrn", "train", "WRN-16-2", "--data", "my digits"],
         "wrn train WRN-16-2 --data 'my digits'"),
        (["/home/someone/venv/wideresnet/__main__.py", "eval", "runs/1"], "wrn eval runs/1"),
        ([r"C:\Users\someone\Scripts\wrn.exe", "train", "WRN-16-2"], "wrn train WRN-16-2"),
        (["/home/someone/work/script.py", "--flag"], "script.py --flag"),
        ("'/home/someone/my work/wrn' train WRN-16-2 --data 'my digits'", "wrn train WRN-16-2 --data 'my digits'"),
        ("/home/someone/wrn train WRN-16-2 --data it's", """wrn train WRN-16-2 --data 'it'"'"'s'"""),
        ([], "python"),
        ("", "python"),
        (None, "python"),
    ],
)  # fmt: skip
def test_the_description_has_what_was_typed_and_no_path_of_the_program(
    typed: Sequence[str] | str | None, recorded: str
) -> None:
    about = describe("cpu", typed)
    assert about["command"] == recorded
    assert not [value for value in about.values() if isinstance(value, str) and ("/home" in value or value[:1] == "/")]


def test_the_arguments_of_this_process_are_not_recorded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/someone/bin/wrn", "train"])
    assert describe("cpu")["command"] == "python"
