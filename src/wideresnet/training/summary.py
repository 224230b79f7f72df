"""What is about to run, as data: a terminal, a log and a page show it in their own ways."""

from __future__ import annotations

from dataclasses import dataclass

from wideresnet.base.format import counted, human_seconds
from wideresnet.data.feeds.resident import share_of
from wideresnet.spec.fields import brief_value, show_value
from wideresnet.spec.recipe import GROUPS, Recipe, overridden
from wideresnet.training.preflight.plan import Plan
from wideresnet.training.schedules import shared_batch
from wideresnet.training.setup import Job

MAIN_FIELDS = ("epochs", "batch_size", "lr", "weight_decay", "flip", "crop_padding", "preprocessing", "dropout", "seed")
"""What people look at before a run, in addition to what was overridden. `recipe.json` has everything."""

LONG_S = 15 * 60
"""From this expected time on, a shorter choice is named."""


@dataclass(frozen=True)
class Summary:
    """A run before its first step.

    Attributes:
        title: network, data and recipe.
        groups: group -> flat key -> its value in effect.
        overridden: flat key -> (the named recipe's value, the value in effect), for all that differ.
        facts: (name, value): data, arithmetic, device.
        notes: what was decided for the user, one line each.
    """

    title: str
    groups: dict[str, dict[str, str]]
    overridden: dict[str, tuple[str, str]]
    facts: list[tuple[str, str]]
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return what people need to see: the main values, what was overridden, the facts."""
        values = {key: value for keys in self.groups.values() for key, value in keys.items()}
        rows = [("recipe", ", ".join(f"{key} {values[key]}" for key in MAIN_FIELDS))]
        if self.overridden:
            changes = (f"{key} {new} (recipe: {old})" for key, (old, new) in self.overridden.items())
            rows.append(("overridden", ", ".join(changes)))
        return [*rows, *self.facts]

    def lines(self) -> list[str]:
        """Return the whole summary as plain text, for a log."""
        groups = (f"{name}: {', '.join(f'{k} {v}' for k, v in keys.items())}" for name, keys in self.groups.items())
        facts = (f"{name}: {value}" for name, value in self.facts)
        return [self.title, *groups, *facts, *(f"note: {note}" for note in self.notes)]


def summarize(job: Job, plan: Plan, base: Recipe | None) -> Summary:
    """Collect the resolved recipe with what was overridden, the data, and the arithmetic.

    Args:
        base: the named recipe, without the changes of a recipe file and of flags; None for a resumed run.
    """
    recipe, data, world = job.recipe, job.data, job.world
    values = {key: show_value(value) for key, value in {**recipe.values(), **job.execution.settled()}.items()}
    changed = overridden(recipe, base) if base else {}
    for key in ("network", "family"):  # only spelled differently, or decided by the data
        changed.pop(key, None)
    height, width = data.feed.size
    facts = [
        (
            "data",
            f"{data.feed.num_images:,} training and {counted(len(data.test), 'test image')} of {height}x{width}, "
            f"{len(data.class_names)} classes, from {recipe.data}",
        ),
        *plan.lines(),
        ("device", f"{job.execution.device}: {job.execution.describe()}"),
    ]
    epochs = recipe.schedule.epochs
    if plan.seconds > LONG_S and epochs > 1 and base is not None and plan.left_s is None:
        fewer = max(1, min(epochs // 2, int(epochs * LONG_S / plan.seconds)))
        facts.append(("shorter", f"epochs={fewer} takes about {human_seconds(plan.seconds * fewer / epochs)}"))
    if world.size > 1:
        _, lr = shared_batch(recipe.schedule, world.size)
        shares = [share_of(data.feed.batch_size, rank, world.size) for rank in range(world.size)]
        sizes = [share.stop - share.start for share in shares]
        each = f"x {sizes[0]}" if len(set(sizes)) == 1 else f"of {', '.join(map(str, sizes))}"
        facts.append(
            (
                "processes",
                f"{data.feed.batch_size} images per step: {world.size} processes {each}, lr {lr:g} "
                f"(rule {recipe.schedule.batch_rule})",
            )
        )
    return Summary(
        title=f"{recipe.network} on {data.name}, recipe {recipe.name}",
        groups={group: {key: values[key] for key in keys} for group, keys in GROUPS.items() if group != "what"},
        overridden={key: (brief_value(old), brief_value(new)) for key, (old, new) in changed.items()},
        facts=facts,
        notes=job.notes,
    )
