from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from wideresnet.base import progress


class Recorder:
    """A reporter that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    @contextmanager
    def task(self, description: str, total: float | None, fields: Sequence[str]) -> Iterator[RecordedTask]:
        self.events.append(("open", description, total, tuple(fields)))
        yield RecordedTask(self, description)
        self.events.append(("close", description))

    @contextmanager
    def status(self, description: str) -> Iterator[Callable[[str], object]]:
        self.events.append(("status", description))
        yield lambda text: self.events.append(("changed", text))
        self.events.append(("done", description))

    def report(self, message: str) -> None:
        self.events.append(("report", message))


class RecordedTask:
    def __init__(self, recorder: Recorder, description: str) -> None:
        self.recorder, self.description = recorder, description

    def update(self, **values: object) -> None:
        self.recorder.events.append(("update", self.description, values))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    installed = Recorder()
    before = progress.set_reporter(installed)
    yield installed
    progress.set_reporter(before)


def test_without_a_reporter_everything_works_and_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track("abc", "reading")) == ["a", "b", "c"]
    with progress.task("epoch", total=2, fields=("loss",)) as task:
        task.update(completed=1, loss="0.1")
        with progress.task("evaluating") as inner:
            inner.update(advance=1, total=2, description="still evaluating")
    with progress.status("measuring") as tell:
        tell("measuring more")
        progress.report("a line")
    assert capfd.readouterr() == ("", "")


def test_track_yields_every_item_and_ends_at_the_number_of_items(recorder: Recorder) -> None:
    assert list(progress.track([5, 6, 7], "reading")) == [5, 6, 7]
    assert recorder.events == [
        ("open", "reading", 3, ()),
        ("update", "reading", {"completed": 3}),
        ("close", "reading"),
    ]


def test_track_takes_the_total_of_an_iterator_from_its_argument(recorder: Recorder) -> None:
    assert list(progress.track(iter("ab"), "reading", total=2)) == ["a", "b"]
    assert recorder.events[0] == ("open", "reading", 2, ())
    list(progress.track(iter("ab"), "of unknown length"))
    assert ("open", "of unknown length", None, ()) in recorder.events


def test_tasks_nest_and_pass_their_fields_on(recorder: Recorder) -> None:
    with progress.task("epoch 1/2", total=10, fields=("loss", "rate")) as epoch:
        epoch.update(completed=5, loss="0.1")
        with progress.task("evaluating", total=4) as evaluating:
            evaluating.update(advance=4)
    assert recorder.events == [
        ("open", "epoch 1/2", 10, ("loss", "rate")),
        ("update", "epoch 1/2", {"completed": 5, "loss": "0.1"}),
        ("open", "evaluating", 4, ()),
        ("update", "evaluating", {"advance": 4}),
        ("close", "evaluating"),
        ("close", "epoch 1/2"),
    ]


def test_status_and_lines_reach_the_reporter(recorder: Recorder) -> None:
    with progress.status("measuring") as tell:
        tell("measuring, round 2")
        progress.report("halfway")
    assert recorder.events == [
        ("status", "measuring"), ("changed", "measuring, round 2"), ("report", "halfway"), ("done", "measuring"),
    ]  # fmt: skip


def test_set_reporter_returns_the_one_before_and_none_silences(recorder: Recorder) -> None:
    assert progress.set_reporter(None) is recorder
    progress.report("heard by nobody")
    progress.set_reporter(recorder)
    assert recorder.events == []
