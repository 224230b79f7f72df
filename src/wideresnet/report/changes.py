"""What was changed in a run's recipe: the one answer for pages, comparisons and the tables of README."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.spec import recipes
from wideresnet.spec.fields import show_value
from wideresnet.spec.recipe import Recipe


def find_changes(
    recipe: Recipe, data_name: str, *, num_train: int | None = None, asked: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]] | None:
    """Find the fields in which a run's recipe differs from the named recipe for the same network and data.

    Args:
        recipe: the one that the run stored.
        data_name: the name of the data set.
        num_train: number of its training images; None if it is not known, or if its name says it.
        asked: fields that the machine usually decides and the user gave by hand, as `env.json` has them.

    Returns:
        Flat key -> (the named recipe's value, the run's value); None if the named recipe is unknown or depends on a
        number of images that is unknown.
    """
    if recipe.name not in recipes.RECIPES:
        return None
    try:
        base = recipes.base_of(
            recipe.name, recipe.network, recipe.data, known_as=data_name, num_train=num_train, family=recipe.family
        )
    except UsageError:  # the recipe depends on the number of images
        return None
    return recipes.changes_in_record(recipe, base, asked)


def recipe_text(recipe: Recipe, changes: dict[str, tuple[Any, Any]] | None) -> str:
    """Name a recipe with what was changed in it: 'paper, epochs 10'. The seed is left out: it is no change.

    Args:
        recipe: the one that the run stored.
        changes: as `find_changes` returns them.
    """
    changed = (f"{key} {show_value(new)}" for key, (_, new) in (changes or {}).items() if key != "seed")
    return ", ".join([recipe.name, *changed])
