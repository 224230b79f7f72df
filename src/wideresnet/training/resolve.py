"""From what was asked for to the final recipe: named recipe, overrides, what the data decides, a stored run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.data import Dataset
from wideresnet.data.load import load_for
from wideresnet.machine.device import pick_device
from wideresnet.spec.execution import ELSEWHERE, SETTLED
from wideresnet.spec.names import is_ambiguous, parse
from wideresnet.spec.recipe import Recipe, overridden
from wideresnet.spec.recipes import base_of, resolve
from wideresnet.spec.record import RunFolder, read_json
from wideresnet.weights.pretrained import weights_name

SMALLEST_IMAGENET_PX = 112
"""Below this side a name with two readings means the network for 32x32 images: ImageNet's networks reduce a side
32-fold, and fewer than 4 positions per side would be left to pool."""


def resolve_for_data(
    recipe: str, network: str, data: str, overrides: dict[str, Any] | None = None
) -> tuple[Recipe, Recipe, Dataset]:
    """Return the recipe, the named recipe that it starts from, and the data they are for.

    The data is loaded first, because a recipe may depend on what a folder turns out to be: a folder that holds CIFAR-10
    is trained as CIFAR-10.

    Args:
        recipe, network, data, overrides: as for `recipes.resolve`.
    """
    overrides = overrides or {}
    if not is_ambiguous(network):  # report a wrong name before the data is read
        parse(network, overrides.get("family"))
    first = resolve(recipe, network, data, overrides, num_train=1_000_000)  # only for how the data is to be loaded
    pick_device(first.machine.device)
    dataset = load_for(first)
    limit = first.feed.limit or len(dataset.train)
    num_train = max(1, min(len(dataset.train), limit) - first.feed.holdout)
    known: dict[str, Any] = {"known_as": dataset.name, "num_train": num_train}
    base = base_of(recipe, network, data, **known, family=overrides.get("family"))
    return resolve(recipe, network, data, overrides, **known), base, dataset


def recipe_for(recipe: str, network: str, data: str, **overrides: Any) -> Recipe:
    """Return the recipe that `wrn train` would run: a named one as the data decides it, with changes.

    Args:
        recipe: one of `spec.recipes.RECIPES`, or the path of a recipe file.
        network: name of the network.
        data: as for `load_dataset`; it is loaded, because a recipe may depend on the number of its images.
        overrides: flat fields of a recipe, e.g. `epochs=10`.

    Raises:
        UsageError, DataError: as for `recipes.resolve` and `load_dataset`.
    """
    return resolve_for_data(recipe, network, data, overrides)[0]


def resolve_network(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the final recipe: the network's canonical name, and its family, which the data decides if need be.

    Raises:
        UsageError: an unknown name.
    """
    family = recipe.family
    if family is None and is_ambiguous(recipe.network):
        family = "cifar" if max(dataset.train.images.shape[1:3]) < SMALLEST_IMAGENET_PX else "imagenet"
    name = parse(recipe.network, family)
    return recipe.replace(network=str(name), family=name.family)


def resumed_recipe(path: Path, stored: Recipe, asked: Recipe, *, keep_threads: bool = True) -> Recipe:
    """Return the stored recipe with what may change on resuming: where and how the run is computed.

    Args:
        path: of the run, for messages.
        asked: the stored recipe with the changes that the user asks for.
        keep_threads: whether the stored number of threads still holds.

    Raises:
        UsageError: anything else differs.
    """
    wanted = asked.values()
    for key, (old, new) in overridden(asked, stored).items():
        if key in ("family", "feed", *SETTLED) and new in ("auto", None):  # leaves it to the run
            wanted[key] = old
        elif key not in ELSEWHERE and _canonical(key, new, stored.family) != old:
            argument = key if key == "network" else f"{key}="  # it is no flag
            raise UsageError(
                f"resume=True: {path} has {key} {old}, asked for is {new}; leave out {argument}, or start a new run in "
                "another folder"
            )
    changes = {key: wanted[key] for key in ELSEWHERE}
    return stored.replace(**changes if keep_threads else {**changes, "threads": None})


def _canonical(key: str, value: Any, family: str | None) -> Any:
    """Return a name in a recipe as a run stores it, any other value as it is."""
    if key == "network":
        return str(parse(value, family))
    return weights_name(value) if key == "init_from" and value is not None else value


def check_processes(folder: RunFolder, recipe: Recipe, now: int) -> str:
    """Refuse to resume with another number of processes, unless that changes only the rounding.

    It does if batch and lr stay the same, and neither normalization nor a perturbation of the weights depends on how a
    batch is split. Otherwise the
    result would be a run that no recipe and no number of processes describes.

    Returns:
        A note; empty if the number is the same.

    Raises:
        UsageError: the numbers would be those of another run.
    """
    before = read_json(folder.env).get("num_processes", 1) if folder.env.is_file() else now
    if now == before:
        return ""
    if recipe.schedule.batch_rule == "linear":
        why = "under batch_rule='linear' its batch and lr would change"
    elif recipe.network_options.norm == "batch" and not recipe.schedule.sync_bn:
        why = "without sync_bn=True each process normalizes by its own share of a batch, so it would be another run"
    elif recipe.optimizer.sam_rho:
        why = (
            f"with sam_rho={recipe.optimizer.sam_rho:g} each process perturbs the weights by its own share of a batch, "
            "so it would be another run"
        )
    else:
        masks = "; dropout draws other masks from here on" if recipe.network_options.dropout else ""
        return f"the run had {before} processes and continues with {now}: the same up to rounding{masks}"
    raise UsageError(f"resume=True: {folder.path} was trained by processes={before}, now {now}: {why}")
