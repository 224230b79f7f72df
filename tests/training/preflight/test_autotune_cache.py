"""An answer of `autotune` is cached for the same question, if it can be trusted; a damaged cache costs only time."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuning import HOST, Rates, a_network, a_shape, decide

from wideresnet.base.paths import measurements_file
from wideresnet.training.preflight import answers

pytestmark = pytest.mark.usefixtures("autotuning")


def test_an_answer_is_remembered_for_the_same_question() -> None:
    measure, again = Rates(contiguous=200.0), Rates(channels_last=200.0)
    first, told = decide(measure)
    execution, told_again = decide(again, num_images=3, shape=a_shape(momentum=0.5))
    assert (len(measure.asked), again.asked) == (1, [])
    assert execution == first
    assert told_again == f"{told} (measured before; autotune='again' measures again)"
    others: list[dict[str, Any]] = [
        {"host": replace(HOST, cpu_flags=HOST.cpu_flags | {"avx512f"})},
        {"host": replace(HOST, kernels="other sources")},
        {"host": replace(HOST, torch="torch 3")},
        {"host": replace(HOST, hardware="another CPU")},
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
        b'{"KEY": {"settings": 5, "told": "x", "measured": []}}',
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
    monkeypatch.setattr(answers, "MAX_STORED", 3)
    measure = Rates()
    for batch_size in (1, 2, 3, 4):
        decide(measure, shape=a_shape(batch_size))
    assert len(json.loads(measurements_file().read_text())) == 3
    decide(measure, shape=a_shape(2))
    assert len(measure.asked) == 4
    decide(measure, shape=a_shape(1))
    assert len(measure.asked) == 5


@pytest.mark.parametrize(
    ("rounds", "cpu_share", "why"),
    [
        ((1.0, 1.5, 1.0), 1.0, "its rounds scatter by a factor of 1.50"),
        ((1.0, 1.0, 1.0), 0.6, "other programs were computing: this one had 60 % of the time"),
    ],
)
def test_a_measurement_on_a_busy_machine_is_neither_trusted_nor_stored(
    rounds: tuple[float, ...], cpu_share: float, why: str
) -> None:
    busy = Rates(contiguous=1000.0)
    busy.rounds, busy.cpu_share = rounds, cpu_share
    for _ in range(2):
        execution, note = decide(busy)
        assert execution.layout == "channels_last"
        assert note.endswith(f"not measured, because {why}; nothing is stored, so the next run measures again")
    assert len(busy.asked) == 2
    assert not measurements_file().exists()
    assert decide(Rates(contiguous=1000.0))[0].layout == "contiguous"


def test_what_is_stored_says_how_it_was_measured_and_is_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRN_DATA", str(tmp_path / "new" / "cache"))
    decide(Rates(contiguous=200.0))
    (answer,) = json.loads(measurements_file().read_text()).values()
    measured = answer["measured"]
    assert {name: measured[name] for name in ("hardware", "kernels", "torch", "cpu_share")} == {
        "hardware": "a CPU", "kernels": "kernels", "torch": "torch 2", "cpu_share": 1.0,
    }  # fmt: skip
    assert len(measured["date"]) == len("2026-11-25 12:00:00")
    assert measured["load_average"] >= 0
    assert all(len(rates) == 3 for rates in measured["images_per_s"].values())
    assert [200.0] * 3 in measured["images_per_s"].values()
    assert stat.S_IMODE(measurements_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(measurements_file().parent.stat().st_mode) == 0o700


def test_again_measures_anew_and_replaces_the_answer() -> None:
    decide(Rates(contiguous=200.0))
    measure = Rates(channels_last=100.0)
    execution, note = decide(measure, mode="again")
    assert (execution.layout, len(measure.asked)) == ("channels_last", 1)
    assert "measured before" not in note
    assert decide(Rates(contiguous=200.0))[0].layout == "channels_last"
    assert len(json.loads(measurements_file().read_text())) == 1


def test_again_on_a_busy_machine_keeps_what_was_measured_before() -> None:
    decide(Rates(contiguous=200.0))
    busy = Rates()
    busy.cpu_share = 0.5
    execution, note = decide(busy, mode="again")
    assert execution.layout == "contiguous"
    assert note.startswith("not measured again, because other programs were computing")
    assert decide(Rates())[0].layout == "contiguous"
