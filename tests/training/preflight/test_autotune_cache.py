"""An answer of `autotune` is cached for the same question; a damaged or unwritable cache costs only time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tuning import Rates, a_network, a_shape, decide

from wideresnet.base.paths import measurements_file
from wideresnet.training.preflight import autotune

pytestmark = pytest.mark.usefixtures("autotuning")


def test_an_answer_is_remembered_for_the_same_question() -> None:
    measure, again = Rates(contiguous=200.0), Rates(channels_last=200.0)
    first, told = decide(measure)
    execution, told_again = decide(again, num_images=3, shape=a_shape(momentum=0.5))
    assert (len(measure.asked), again.asked) == (1, [])
    assert execution == first
    assert told_again == f"{told} (measured before)"
    others: list[dict[str, Any]] = [
        {"shape": a_shape(batch_size=16)},
        {"shape": a_shape(accumulate=2)},
        {"shape": a_shape(size=(16, 16))},
        {"threads": 3},
        {"kernels": "pytorch"},
        {"network": a_network("WRN-10-2")},
        {"network": a_network(dropout=0.1)},
        {"network": a_network(in_channels=1)},
    ]
    for other in others:
        before = len(again.asked)
        decide(again, **other)
        assert len(again.asked) == before + 1, other
    assert decide(again)[1] == told_again  # which the others did not push out


@pytest.mark.parametrize("options", [{"init": "fan_out"}, {"bn_scale": "uniform"}])
def test_initial_weights_make_no_other_question(options: dict[str, str]) -> None:
    measure = Rates()
    decide(measure)
    decide(measure, a_network(**options))
    assert len(measure.asked) == 1


def test_a_remembered_answer_is_as_deterministic_as_is_asked_for() -> None:
    measure = Rates()
    assert [decide(measure, deterministic=wanted)[0].deterministic for wanted in (False, True)] == [False, True]
    assert len(measure.asked) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"KEY": 3}',
        b'{"KEY": "text"}',
        b'{"KEY": {"settings": {"kernels": "winograd"}, "told": ""}}',
        b'{"KEY": {"settings": {"kernels": "none", "layout": 1, "precision": 2, "threads": 0, "compile": 9}}}',
        b'{"KEY": {"settings": 5, "told": "x"}}',
    ],
)
def test_a_damaged_cache_is_measured_anew_and_mended(damage: bytes) -> None:
    measure = Rates()
    decide(measure)
    (key,) = json.loads(measurements_file().read_text())
    measurements_file().write_bytes(damage.replace(b'"KEY"', json.dumps(key).encode()))
    decide(measure)
    assert len(measure.asked) == 2
    decide(measure)
    assert len(measure.asked) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WRN_DATA", str(tmp_path / "file"))
    decide(Rates())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("WRN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(os, "fsync", full)
    decide(Rates())
    assert not measurements_file().exists()


def test_the_cache_keeps_the_newest_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "MAX_REMEMBERED", 3)
    measure = Rates()
    for batch_size in (1, 2, 3, 4):
        decide(measure, shape=a_shape(batch_size))
    assert len(json.loads(measurements_file().read_text())) == 3
    decide(measure, shape=a_shape(2))
    assert len(measure.asked) == 4
    decide(measure, shape=a_shape(1))
    assert len(measure.asked) == 5
