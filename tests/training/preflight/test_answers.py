"""`fastest.json` is written by one process at a time, and whoever asks at the same time waits for the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tuning import Rates, decide

from wideresnet.base.paths import measurements_file
from wideresnet.training.preflight import answers

pytestmark = pytest.mark.usefixtures("autotuning")

STORE = """
import sys, time
from wideresnet.training.preflight import answers
with answers.turn(lambda _: None) as turn:
    answers.store(sys.argv[1], {"number": int(sys.argv[1])})
"""
HOLD = """
import sys
from wideresnet.training.preflight import answers
with answers.turn(lambda _: None) as turn:
    print("held", flush=True)
    sys.stdin.readline()
    if len(sys.argv) > 1:
        turn.leave(sys.argv[1], {"left": True})
        print("left", flush=True)
        sys.stdin.readline()
"""

HOLD_AND_STORE = """
import json, sys
from wideresnet.training.preflight import answers
with answers.turn(lambda _: None) as turn:
    print("held", flush=True)
    sys.stdin.readline()
    answers.store(sys.argv[1], json.loads(sys.argv[2]))
"""
LATER = """
from wideresnet.training.preflight import answers
with answers.turn(print) as turn:
    print(turn.left("key"))
"""


def python(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that is measuring."""
    process = python(HOLD)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_writers_at_the_same_time_keep_all_answers() -> None:
    writers = [python(STORE, str(number)) for number in range(3)]
    assert [writer.communicate() and writer.returncode for writer in writers] == [0] * 3
    stored = json.loads(measurements_file().read_text())
    assert stored == {str(number): {"number": number} for number in range(3)}


def test_who_waits_in_vain_takes_what_is_usually_fastest_and_stores_nothing(holder: subprocess.Popen[str]) -> None:
    del holder
    told: list[str] = []
    now = iter(range(1000))
    with answers.turn(told.append, wait_s=3, clock=lambda: float(next(now)), sleep=lambda _: None) as turn:
        assert turn is None
    assert told[0] == "waiting for another process that is timing configurations, 1 s of at most 3"
    assert len(told) == 2


@pytest.mark.slow
def test_who_waits_adopts_the_answer() -> None:
    measure = Rates(contiguous=200.0)
    decide(measure, kernels="pytorch")
    ((key, answer),) = json.loads(measurements_file().read_text()).items()
    measurements_file().unlink()
    holder = python(HOLD_AND_STORE, key, json.dumps({**answer, "told": "by another process"}))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            holder.communicate("\n")

    again = Rates()
    execution, note = decide(again, kernels="pytorch", tell=tell)
    assert (execution.layout, again.asked) == ("contiguous", [])
    assert told[0].startswith("waiting for another process")
    assert note.startswith("by another process")


@pytest.mark.slow
def test_an_answer_that_is_not_trusted_is_left_to_those_who_were_waiting_alone() -> None:
    process = python(HOLD, "key")
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "left\n"
    process.communicate("\n")

    def left(key: str) -> Any:
        with answers.turn(lambda _: None) as turn:
            assert turn is not None
            return turn.left(key)

    assert left("key") == {"left": True}  # this process started before that answer
    assert left("other") is None
    assert python(LATER).communicate()[0] == "None\n"
    assert answers.find("key") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff", b'[{"key": "key"}]'])
def test_a_damaged_lock_file_holds_no_answer(damage: bytes) -> None:
    measurements_file().with_suffix(".lock").write_bytes(damage)
    with answers.turn(lambda _: None) as turn:
        assert turn is not None
        assert turn.left("key") is None
        turn.leave("key", {})
