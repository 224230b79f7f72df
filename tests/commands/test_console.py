"""The terminal: progress and warnings of the library on stderr, only while a command shows them."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from wideresnet.base import progress
from wideresnet.commands.console import LogReporter, TerminalReporter, hide_progress, show_progress

log = logging.getLogger("wideresnet.training.loop")


def work() -> None:
    with progress.task("training", total=10, fields=("loss", "rate")) as line:
        line.update(completed=4, loss="0.123", rate="56 images/s")
        with progress.task("evaluating", total=3) as inner:
            inner.update(advance=2)
        line.update(completed=10, description="epoch 2/2")
        progress.report("epoch 2 loss 0.100")
    with progress.status("timing a few steps") as tell:
        tell("timing [the] others")
    assert list(progress.track(range(3), "decoding")) == [0, 1, 2]


def in_terminal(reporter: Callable[[], progress.Reporter] = TerminalReporter) -> str:
    """Do the work in a terminal of 80 columns; return everything that it was sent."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wideresnet.commands.console.console", lambda: screen)
        progress.set_reporter(reporter())
        work()
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_terminal_shows_bars_with_their_fields_in_80_columns() -> None:
    shown = in_terminal()
    for text in ("epoch 2/2", "loss 0.123 56 images/s", "decoding"):
        assert text in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80


def test_the_line_of_an_epoch_stays_and_no_older_bar_beside_it() -> None:
    shown = in_terminal()
    end = shown.rindex("epoch 2 loss 0.100")
    assert shown[end:].rstrip().endswith("\x1b[1A\x1b[2K")  # the last bar is wiped away


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_a_line_with_the_time_left_now_and_then_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress.set_reporter(LogReporter(now=clock))
    with progress.task("training", total=1000, fields=("loss", "rate")) as line:
        line.update(completed=400, description="epoch 5/10")  # resumed there, so this took no time
        for step in range(401, 701):
            clock.now_s += 1
            line.update(completed=step, loss=f"{1 / step:.4f}", rate="56 images/s")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 10
    assert said[0] == "epoch 5/10  43 %  about 10 min left  loss 0.0023 56 images/s"
    assert said[-1].startswith("epoch 5/10  70 %  about 5 min left")


def test_what_takes_no_time_writes_nothing_into_a_log_but_its_results(capfd: pytest.CaptureFixture[str]) -> None:
    show_progress()
    work()
    assert capfd.readouterr() == ("", "epoch 2 loss 0.100\n")


def test_a_line_that_stays_is_plain_text_in_the_words_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(lambda message: message.replace("limit=3", "--limit 3"))
    progress.report("[bold]cats[/b] use limit=3")
    assert capsys.readouterr().err == "[bold]cats[/b] use --limit 3\n"


def test_a_failure_closes_the_display_and_the_next_one_opens(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), progress.task("first", 3), progress.task("within", 3):
            raise KeyboardInterrupt
    work()
    assert "epoch 2 loss" in capsys.readouterr().err


def test_warnings_are_shown_once_and_notes_for_a_log_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        show_progress()
    log.warning("checkpoint [x] is damaged")
    log.info("a detail")
    assert capsys.readouterr().err == "checkpoint [x] is damaged\n"


def test_nothing_is_shown_before_a_command_asks_for_it_or_after_it_hides(capfd: pytest.CaptureFixture[str]) -> None:
    work()
    progress.report("a line")
    show_progress()
    hide_progress()
    work()
    progress.report("a line")
    assert capfd.readouterr() == ("", "")
