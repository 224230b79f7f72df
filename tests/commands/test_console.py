"""The terminal: progress and warnings of the library on stderr, only while a command shows them."""

from __future__ import annotations

import logging

import pytest

from wideresnet.base import progress
from wideresnet.commands.console import hide_progress, show_progress

log = logging.getLogger("wideresnet.training.loop")


def work() -> None:
    with progress.task("training", total=10, fields=("loss", "rate")) as line:
        line.update(completed=4, loss="0.123", rate="56 images/s")
        with progress.task("evaluating", total=3) as inner:
            inner.update(advance=2)
        line.update(completed=10, description="epoch 2/2")
    with progress.status("timing a few steps") as tell:
        tell("timing [the] others")
    assert list(progress.track(range(3), "decoding")) == [0, 1, 2]


def test_a_command_shows_lines_with_their_fields_and_keeps_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress()
    work()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 2/2" in captured.err
    assert "loss 0.123 56 images/s" in captured.err
    assert "evaluating" not in captured.err  # a line within another one goes
    assert "decoding" in captured.err


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
    assert "epoch 2/2" in capsys.readouterr().err


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
