"""Lines of progress of runs in workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from wideresnet.base import progress
from wideresnet.experiments.lines import Lines
from wideresnet.spec.recipe import Recipe


class Shown(progress.Silent):
    """Keeps what a line was told last, by its total."""

    def __init__(self) -> None:
        self.totals: list[float | None] = []
        self.told: list[dict[str, Any]] = []

    @contextmanager
    def task(self, description: str, total: float | None, fields: Sequence[str]) -> Iterator[Any]:  # noqa: ARG002
        self.totals.append(total)
        yield SimpleNamespace(update=lambda **told: self.told.append(told))


def test_the_time_left_counts_the_area_of_the_images() -> None:
    recipe = Recipe.flat(epochs=4, image_scales=((0.0, 0.5), (0.5, 1.0)))
    shown = Shown()
    before = progress.set_reporter(shown)
    try:
        with Lines() as lines:
            worker: Any = Mock(report=None)
            lines.show(worker, "seed 0", recipe, 400)
            assert not shown.told
            for step in (200, 300, 400):
                worker.report = SimpleNamespace(step=step, loss=1.0, error_pct=12.34)
                lines.show(worker, "seed 0", recipe, 400)
    finally:
        progress.set_reporter(before)
    assert shown.totals == [1.0]
    assert [told["completed"] for told in shown.told] == [0.2, 0.6, 1.0]
    assert [told["description"] for told in shown.told] == [
        "seed 0  epoch 2/4",
        "seed 0  epoch 3/4",
        "seed 0  epoch 4/4",
    ]
    assert shown.told[0]["error"] == "12.3 %"
