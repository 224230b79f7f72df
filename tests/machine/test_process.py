"""The age of this process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from wideresnet.machine.process import process_age_s


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs proc")
def test_a_process_ages_with_the_clock(tmp_path: Path) -> None:
    before, started = process_age_s(), time.monotonic()
    assert before > 0
    time.sleep(0.05)
    assert process_age_s() - before == pytest.approx(time.monotonic() - started, abs=0.03)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    ticks = int((time.clock_gettime(time.CLOCK_BOOTTIME) - 100) * os.sysconf("SC_CLK_TCK"))
    fields = ["0"] * 19 + [str(ticks)] + ["0"] * 10
    (tmp_path / "proc/self/stat").write_text(f"7 (a name) with) {' '.join(fields)}")
    assert process_age_s(tmp_path) == pytest.approx(100, abs=1)


def test_a_system_that_does_not_say_has_only_new_processes(tmp_path: Path) -> None:
    assert process_age_s(tmp_path) == 0.0
