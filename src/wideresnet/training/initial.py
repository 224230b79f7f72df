"""Trained weights that a run starts from, instead of random ones: `init_from` of a recipe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.base.format import counted
from wideresnet.data import Dataset
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import Network, create
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training.choose_feed import IMAGENET_MEAN, IMAGENET_STD, has_synsets
from wideresnet.weights.checkpoint import list_checkpoints
from wideresnet.weights.downloads import download
from wideresnet.weights.foreign import COUNTER, Foreign, is_foreign, read_foreign
from wideresnet.weights.hub import Weights, read_preprocessing, read_weights
from wideresnet.weights.pretrained import TORCHVISION, check_exists, is_download, weights_name

HEAD = ("fc.weight", "fc.bias")
"""The tensors of a network that depend on the number of classes."""

IN_FUNCTION = ("activation", "norm", "bn_eps")
"""Options that change what given weights compute. Others, such as dropout, are choices of the new run."""

SHOWN_DIGITS = 12
"""Of a SHA-256, in messages."""

SHOWN_DIFFERENCES = 3
"""Tensors that a refusal names, of those that do not fit."""


NUM_SYNSETS = 1000
"""Classes of ImageNet-1k, which published weights number in the order of their synsets."""


@dataclass(frozen=True)
class Initial:
    """What a run takes over from trained weights.

    Attributes:
        preprocessing: theirs; None if nothing says how images were preprocessed.
        state: the tensors that are taken over, which lack the head if that is new; None if the run has checkpoints,
            which hold newer ones.
        notes: what was decided for the user, one line each.
    """

    preprocessing: Preprocessing | None
    state: dict[str, Tensor] | None
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
        DataError: the weights are damaged, or hold more than tensors.
        WRNError: they cannot be downloaded.
    """
    if recipe.init_from is None:
        return recipe, None
    if begun and begun.config.is_file() and (begun.result.is_file() or list_checkpoints(begun.checkpoint)):
        return recipe, Initial(read_preprocessing(begun.path), None)
    check_exists(recipe.init_from)
    name = TORCHVISION if is_download(recipe.init_from) else weights_name(recipe.init_from)
    ours = _shapes_of(recipe, dataset)
    if is_download(name) or is_foreign(name):
        found = download(ours.name) if is_download(name) else read_foreign(Path(name))
        sha256, initial = found.sha256, _from_foreign(found, recipe, dataset, ours, name)
    else:
        weights = read_weights(recipe.init_from)
        if weights.sha256 is None:
            raise UsageError(f"init_from={name}: the run has not finished, so its weights will change; finish it first")
        sha256, initial = weights.sha256, _from_own(weights, recipe, dataset, ours, name)
    if recipe.init_sha256 not in (None, sha256):
        raise UsageError(
            f"init_from={name}: has the SHA-256 {sha256[:SHOWN_DIGITS]}..., but the recipe was made with "
            f"{str(recipe.init_sha256)[:SHOWN_DIGITS]}...; put those weights there, or give init_from= to take these"
        )
    note = f"starts from the weights of {name} (SHA-256 {sha256[:SHOWN_DIGITS]}...)"
    initial = Initial(initial.preprocessing, initial.state, (note, *initial.notes))
    return recipe.replace(init_from=name, init_sha256=sha256), initial


def load_initial(network: Network, initial: Initial) -> None:
    """Give a new network the values of trained weights, running statistics included; a head that is new stays."""
    if initial.state is not None:
        network.load_state_dict({**network.state_dict(), **initial.state})


def _shapes_of(recipe: Recipe, dataset: Dataset) -> Network:
    """Return the run's network as shapes alone."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return create(
            recipe.network,
            len(dataset.class_names),
            family=recipe.family,
            in_channels=dataset.train.images.shape[3],
            **recipe.network_options.to_json(),
        )


def _from_own(weights: Weights, recipe: Recipe, dataset: Dataset, ours: Network, name: str) -> Initial:
    """Take over weights that this package wrote, whose classes and preprocessing are known."""
    theirs, options = weights.network, recipe.network_options.to_json()
    for option in IN_FUNCTION:
        if options[option] != theirs.options[option]:
            raise UsageError(
                f"{option}={options[option]}: the weights of {name} were trained with {theirs.options[option]}; "
                f"use {option}={theirs.options[option]}"
            )
    state, told = _with_head(theirs.state_dict(), weights.class_names, dataset)
    _check_fit(state, ours, name, str(theirs.name))
    _check_preprocessing(recipe, weights.preprocessing.kind, name)
    notes = [*weights.notes, *told]
    if weights.preprocessing.kind != "scale":
        notes.append("images are preprocessed as for those weights, not by statistics of these images")
    size = dataset.train.images.shape[1:3]
    if size != weights.input_size:
        height, width = weights.input_size
        fix = f"; image_size={height} resizes these" if height == width else ""
        notes.append(f"those weights were trained on images of {height}x{width}, these are {size[0]}x{size[1]}{fix}")
    return Initial(weights.preprocessing, state, tuple(notes))


def _from_foreign(found: Foreign, recipe: Recipe, dataset: Dataset, ours: Network, name: str) -> Initial:
    """Take over a state dict, of which at most mean and std are known besides its tensors."""
    notes, state = list(found.notes), dict(found.tensors)
    for key, tensor in ours.state_dict().items():
        if key.endswith(COUNTER) and key not in state:
            state[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    head = state.get(HEAD[0])
    num_theirs = len(head) if head is not None and head.ndim == 2 else 0
    if not (num_theirs == ours.num_classes == NUM_SYNSETS and has_synsets(dataset)):
        theirs = f"that of {name} is for {counted(num_theirs, 'class', 'classes')}, it does not say which"
        notes.append(f"the head is new: {theirs if num_theirs else f'{name} has none'}")
        state = {key: tensor for key, tensor in state.items() if key not in HEAD}
    else:
        notes.append("the head is kept: these classes are ImageNet's synsets, in the order that it was trained with")
    _check_fit(state, ours, name, "that file")
    _check_preprocessing(recipe, "mean_std", name)
    mean, std, source = found.mean, found.std, f"{name} says so"
    if mean is None and ours.name.family == "imagenet" and ours.in_channels == 3:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        source = "as torchvision's and most of timm's weights expect; the file does not say"
    if mean is None or std is None or len(mean) != ours.in_channels:
        notes.append(f"{name} does not say how images were preprocessed: the mean and std of these images are used")
        return Initial(None, state, tuple(notes))
    shown = ("/".join(f"{value / 255:.3f}" for value in values) for values in (mean, std))
    notes.append(f"images are normalized by mean {next(shown)} and std {next(shown)} (of 0..1): {source}")
    return Initial(Preprocessing("mean_std", mean, std), state, tuple(notes))


def _with_head(
    state: dict[str, Tensor], theirs: tuple[str, ...], dataset: Dataset
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights with the head that these classes need, and say what became of it.

    It is kept for the same classes, in their order here, and for classes that are only numbered, of which nothing else
    is known. For other classes it is new: each of its rows is about a class of its own.
    """
    names = dataset.class_names
    if names == theirs:
        return state, []
    kept = {name: tensor for name, tensor in state.items() if name not in HEAD}
    if len(names) != len(theirs):
        return kept, [
            f"the head is new: {counted(len(names), 'class', 'classes')} here, {len(theirs)} in those weights"
        ]
    if sorted(names) == sorted(theirs) and len(set(names)) == len(names):
        order = torch.tensor([theirs.index(name) for name in names])
        rows = {name: state[name].index_select(0, order) for name in HEAD}
        return {**state, **rows}, ["the head is kept, its rows in the order of the classes here, by their names"]
    place = next(place for place, pair in enumerate(zip(theirs, names, strict=True)) if pair[0] != pair[1])
    if dataset.facts is None and names == tuple(str(label) for label in range(len(names))):
        why = "the number of classes is the same and these are only numbered"
        return state, [f"the head is kept, since {why}: class {place} is taken for {theirs[place]!r}"]
    return kept, [f"the head is new: class {place} is {names[place]!r} here and {theirs[place]!r} in those weights"]


def _check_preprocessing(recipe: Recipe, theirs: str, name: str) -> None:
    """Refuse a recipe that feeds a network other images than it was trained on."""
    kind = recipe.feed.preprocessing
    if kind != theirs:
        raise UsageError(
            f"preprocessing={kind}: the weights of {name} are for images preprocessed by {theirs}; "
            f"use preprocessing={theirs}"
        )


def _check_fit(there: dict[str, Tensor], ours: Network, name: str, whose: str) -> None:
    """Refuse tensors of another network, naming the first that differ; a head that is not there is new."""
    here = {key: tensor for key, tensor in ours.state_dict().items() if key not in HEAD or HEAD[0] in there}
    found = [(key, shapes) for key in dict.fromkeys((*here, *there)) if (shapes := _shapes(key, there, here))]
    if not found:
        return
    shown = "; ".join(f"{key} is {shapes}" for key, shapes in found[:SHOWN_DIFFERENCES])
    more = f"; and {len(found) - SHOWN_DIFFERENCES} more" if len(found) > SHOWN_DIFFERENCES else ""
    stem = next(iter(here))
    theirs = there[stem].shape[1] if stem in there and there[stem].ndim == 4 else ours.in_channels
    fix = f"train the network that they are of, or start from weights of {ours.name}"
    if theirs != ours.in_channels:
        fix = f"they are for images of {counted(theirs, 'channel')}, these have {ours.in_channels}"
    raise UsageError(f"init_from={name}: the weights of {whose} do not fit {ours.name}: {shown}{more}; {fix}")


def _shapes(tensor: str, there: dict[str, Tensor], here: dict[str, Tensor]) -> str:
    """Say how the shapes of a tensor differ; empty if they do not."""
    old, new = (str(tuple(state[tensor].shape)) if tensor in state else "missing" for state in (there, here))
    return f"{old} there, {new} here" if old != new else ""
