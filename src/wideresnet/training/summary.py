"""What `wrn train` says before the first step and after the last."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.markup import escape
from rich.table import Table

from wideresnet.base.console import console
from wideresnet.distributed.world import describe_batch
from wideresnet.spec.recipe import SETTLED, Recipe, show_value
from wideresnet.spec.recipes import overridden
from wideresnet.spec.record import RunFolder
from wideresnet.training import Job, Plan
from wideresnet.training.preflight.autotune import describe_configuration


def announce_run(job: Job, plan: Plan, base: Recipe | None) -> None:
    """The resolved recipe with what was overridden, the data, the arithmetic.

    Args:
        base: the recipe without overrides; None when a run is resumed.
    """
    recipe = job.recipe
    changed = {} if base is None else overridden(recipe, base)
    changed.pop("network", None)  # only spelt differently
    for name in SETTLED:
        if base and getattr(base, name) in ("auto", None):
            changed.pop(name, None)
    out = console()
    table = Table(title=escape(f"{recipe.network} on {job.dataset_name}, recipe {recipe.recipe}"), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")  # a long path is shown whole
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(Recipe):
        text = escape(f"{field.name} {show_value(getattr(recipe, field.name))}")
        if field.name in changed:
            text = f"[yellow]{text} (recipe: {escape(show_value(changed[field.name][0]))})[/]"
        groups.setdefault(field.metadata["group"], []).append(text)
    for group, texts in groups.items():
        if group != "what":
            table.add_row(group, ", ".join(texts))
    table.add_section()
    train, test = job.feed.num_images, len(job.test.labels)
    height, width = job.feed.size
    table.add_row("data", f"{train:,} training and {test:,} test images of {height}x{width}, "
                  f"{len(job.class_names)} classes, from {escape(recipe.data)}")  # fmt: skip
    for name, value in plan.lines():
        table.add_row(name, value)
    table.add_row("device", f"{job.device}: {describe_configuration(recipe)}")
    if job.world.size > 1:
        table.add_row("processes", describe_batch(job.world, recipe, job.feed.batch_size))
    out.print(table)
    if changed:
        out.print("overridden: " + ", ".join(changed))
    for note in job.notes:
        out.print(f"note: {note}", markup=False)


def show_result(result: dict[str, Any]) -> None:
    """The result, on stdout."""
    print(
        f"test error {result['test_error_pct']:.2f} % (epoch {result['epochs']}, the last, on all "
        f"{result['num_test_images']:,} test images)"
    )


def show_pictures(run: RunFolder) -> None:
    """Where the pictures of a run are, on stdout."""
    for label, path in (("curves", run.curves), ("predictions", run.pictures), ("run page", run.report)):
        if path.is_file():
            print(f"{label:<12} {path}")
