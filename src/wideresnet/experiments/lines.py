"""A line of progress for each run that trains in a worker."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from wideresnet.base import progress
from wideresnet.experiments.process import Worker
from wideresnet.spec.recipe import Recipe
from wideresnet.training.schedules import share_done


class Lines:
    """The lines of all running workers; a context manager that removes them at its end."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lines: dict[Worker, tuple[ExitStack, progress.Task]] = {}

    def show(self, worker: Worker, label: str, recipe: Recipe, num_steps: int) -> None:
        """Bring the line of a worker up to date, from its latest report.

        Args:
            worker: nothing is shown before its first report, so that a resumed run's speed does not count the steps
                before.
            label: what it trains.
            recipe: of its run.
            num_steps: of the whole run.
        """
        report = worker.report
        if report is None:
            return
        if worker not in self._lines:
            own = self._stack.enter_context(ExitStack())
            self._lines[worker] = own, own.enter_context(progress.task("", total=1.0, fields=("loss", "error")))
        epochs = recipe.schedule.epochs
        self._lines[worker][1].update(
            description=f"{label}  epoch {(report.step - 1) * epochs // num_steps + 1}/{epochs}",
            completed=share_done(recipe, report.step / num_steps),
            loss=f"{report.loss:.3f}",
            error=f"{report.error_pct:.1f} %",
        )

    def remove(self, worker: Worker) -> None:
        """Remove the line of a worker that has ended."""
        if worker in self._lines:
            self._lines.pop(worker)[0].close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
