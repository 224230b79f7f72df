"""Trained weights that a run starts from, instead of random ones: `init_from` of a recipe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.base.format import counted
from wideresnet.data import Dataset
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import Network, create
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.weights.checkpoint import list_checkpoints
from wideresnet.weights.hub import Weights, read_preprocessing, read_weights
from wideresnet.weights.pretrained import weights_name

HEAD = ("fc.weight", "fc.bias")
"""The tensors of a network that depend on the number of classes."""

IN_FUNCTION = ("activation", "norm", "bn_eps")
"""Options that change what given weights compute. Others, such as dropout, are choices of the new run."""

SHOWN_DIGITS = 12
"""Of a SHA-256, in messages."""


@dataclass(frozen=True)
class Initial:
    """What a run takes over from trained weights.

    Attributes:
        preprocessing: theirs.
        weights: the weights; None if the run has checkpoints, which hold newer ones.
        notes: what was decided for the user, one line each.
    """

    preprocessing: Preprocessing
    weights: Weights | None
    notes: tuple[str, ...] = ()


def read_initial(recipe: Recipe, dataset: Dataset, begun: RunFolder | None) -> tuple[Recipe, Initial | None]:
    """Read the weights that a recipe starts from; those of a run that has checkpoints are not needed again.

    Args:
        recipe: with the network's canonical name.
        dataset: what is trained on.
        begun: the run that is continued; None for a new one.

    Returns:
        The recipe with the canonical name and the SHA-256 of the weights; None if it starts from random weights.

    Raises:
        UsageError: there are no such weights, they are not those that the recipe was made with, or they do not fit the
            recipe's network or preprocessing.
        DataError: the weights are damaged.
    """
    if recipe.init_from is None:
        return recipe, None
    if begun and begun.config.is_file() and (begun.result.is_file() or list_checkpoints(begun.checkpoint)):
        return recipe, Initial(read_preprocessing(begun.path), None)
    name, weights = weights_name(recipe.init_from), read_weights(recipe.init_from)
    if weights.sha256 is None:
        raise UsageError(f"init_from={name}: the run has not finished, so its weights will change; finish it first")
    if recipe.init_sha256 not in (None, weights.sha256):
        raise UsageError(
            f"init_from={name}: has the SHA-256 {weights.sha256[:SHOWN_DIGITS]}..., but the recipe was made with "
            f"{str(recipe.init_sha256)[:SHOWN_DIGITS]}...; put those weights there, or give init_from= to take these"
        )
    _check_fit(recipe, dataset, weights, name)
    notes = (*weights.notes, *_notes(dataset, weights, name))
    recipe = recipe.replace(init_from=name, init_sha256=weights.sha256)
    return recipe, Initial(weights.preprocessing, weights, notes)


def load_initial(network: Network, initial: Initial) -> None:
    """Give a new network the values of trained weights, running statistics included.

    The head stays as it is if they have another number of classes.
    """
    if initial.weights is None:
        return
    state: dict[str, Tensor] = initial.weights.network.state_dict()
    if network.num_classes != initial.weights.network.num_classes:
        own = network.state_dict()
        state |= {name: own[name] for name in HEAD}
    network.load_state_dict(state)


def _check_fit(recipe: Recipe, dataset: Dataset, weights: Weights, name: str) -> None:
    """Refuse weights of another network or preprocessing, naming the first difference."""
    theirs, options = weights.network, recipe.network_options.to_json()
    for option in IN_FUNCTION:
        if options[option] != theirs.options[option]:
            raise UsageError(
                f"{option}={options[option]}: the weights of {name} were trained with {theirs.options[option]}; "
                f"use {option}={theirs.options[option]}"
            )
    with torch.device("meta"), warnings.catch_warnings():  # shapes alone
        warnings.simplefilter("ignore", UserWarning)
        ours = create(
            recipe.network,
            len(dataset.class_names),
            family=recipe.family,
            in_channels=dataset.train.images.shape[3],
            **options,
        )
    skipped = HEAD if ours.num_classes != theirs.num_classes else ()
    here, there = ours.state_dict(), theirs.state_dict()
    for tensor in dict.fromkeys((*here, *there)):
        if tensor not in skipped and (shapes := _shapes(tensor, there, here)):
            channels = f"{counted(theirs.in_channels, 'channel')}, these have {ours.in_channels}"
            why = f"; they are for images of {channels}" if ours.in_channels != theirs.in_channels else ""
            raise UsageError(
                f"init_from={name}: the weights of {theirs.name} do not fit {ours.name}: {tensor} is {shapes}{why}"
            )
    kind = recipe.feed.preprocessing
    if kind != weights.preprocessing.kind:
        raise UsageError(
            f"preprocessing={kind}: the weights of {name} are for images preprocessed by {weights.preprocessing.kind}; "
            f"use preprocessing={weights.preprocessing.kind}"
        )


def _shapes(tensor: str, there: dict[str, Tensor], here: dict[str, Tensor]) -> str:
    """Say how the shapes of a tensor differ; empty if they do not."""
    old, new = (str(tuple(state[tensor].shape)) if tensor in state else "missing" for state in (there, here))
    return f"{old} there, {new} here" if old != new else ""


def _notes(dataset: Dataset, weights: Weights, name: str) -> list[str]:
    """Say what starting from weights means for this run."""
    sha256, names, theirs = str(weights.sha256), dataset.class_names, weights.class_names
    notes = [f"starts from the weights of {name} (SHA-256 {sha256[:SHOWN_DIGITS]}...)"]
    if len(names) != len(theirs):
        notes.append(f"the head is new: {counted(len(names), 'class', 'classes')} here, {len(theirs)} in those weights")
    elif names != theirs:
        place = next(place for place, pair in enumerate(zip(theirs, names, strict=True)) if pair[0] != pair[1])
        notes.append(
            f"the head is kept, since the number of classes is the same, though class {place} is {names[place]!r} here "
            f"and {theirs[place]!r} in those weights"
        )
    if weights.preprocessing.kind != "scale":
        notes.append("images are preprocessed as for those weights, not by statistics of these images")
    size = dataset.train.images.shape[1:3]
    if size != weights.input_size:
        height, width = weights.input_size
        fix = f"; image_size={height} resizes these" if height == width else ""
        notes.append(f"those weights were trained on images of {height}x{width}, these are {size[0]}x{size[1]}{fix}")
    return notes
