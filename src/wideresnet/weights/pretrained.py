"""The trained networks that come with the package: their names, their folders, their cards.

`pretrained/NAME/` is a weights folder with tensors in 16 bits, see `weights.hub`. Its `card.json` holds what was
measured, and its `README.md` says the same for people; tools/pretrained.py writes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import nearest
from wideresnet.spec.fields import short
from wideresnet.spec.files import read_json
from wideresnet.spec.record import MODEL
from wideresnet.spec.result import has_type

FOLDER = Path(__file__).parent.parent / "pretrained"
"""Where they are, one folder each, named as users name them."""

CARD = "card.json"

DEFAULT = "WRN-16-4-cifar10"
"""What classifies images if no weights are named."""


TORCHVISION = "torchvision"
"""The word that asks for torchvision's weights, where weights to start from are named."""


@dataclass(frozen=True)
class Card:
    """What is known of a shipped network.

    Attributes:
        name: as users name it.
        network: name of the network.
        dataset: name of the data set that it was trained on.
        params: number of its parameters.
        test_error_pct: of the shipped weights on all test images of that data set, percent.
        values: everything that `card.json` holds.
    """

    name: str
    network: str
    dataset: str
    params: int
    test_error_pct: float
    values: dict[str, Any]


def list_pretrained() -> list[str]:
    """List the names of the networks that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{MODEL}"))


def shipped_name(weights: str | Path) -> str | None:
    """Return the canonical name of the shipped network that is meant, None if none is; a path that exists wins.

    Args:
        weights: a path, or a name in any case: "wrn-16-4-CIFAR10".
    """
    if Path(weights).exists():
        return None
    asked = str(weights).casefold()
    return next((name for name in list_pretrained() if name.casefold() == asked), None)


def find_weights(weights: str | Path) -> Path:
    """Return the path of weights: that of the shipped network of this name, or what is given."""
    name = shipped_name(weights)
    return FOLDER / name if name else Path(weights)


def weights_name(weights: str | Path) -> str:
    """Return what weights are called in messages and records: a shipped network's canonical name, or the path."""
    return shipped_name(weights) or str(weights)


def is_download(weights: str | Path) -> bool:
    """Tell whether weights are the word that asks for a download; a path of that name wins."""
    return str(weights).casefold() == TORCHVISION and not Path(weights).exists()


def check_exists(weights: str) -> None:
    """Refuse weights that are not there, before data is read.

    Raises:
        UsageError: naming what they may be.
    """
    if not is_download(weights) and not find_weights(weights).exists():
        raise UsageError(
            f"init_from={weights}: no such run or weights folder, no file of weights{other_names(weights)}; or "
            f"{TORCHVISION}, to download its weights"
        )


def read_card(weights: str | Path) -> Card | None:
    """Return the card of a shipped network, None for other weights.

    Raises:
        DataError: the card is missing or damaged.
    """
    name = shipped_name(weights)
    if name is None:
        return None
    path = FOLDER / name / CARD
    values = read_json(path)
    kinds = {"network": str, "dataset": str, "params": int, "test_error_pct": float}
    for key, kind in kinds.items():
        if not has_type(values.get(key), kind):
            raise DataError(
                f"{path}: {key} is {short(values.get(key))}; the file was damaged, install the package anew"
            )
    return Card(name, values=values, **{key: values[key] for key in kinds})


def default_name() -> str:
    """Return the name of the network that is used if no weights are named.

    Raises:
        UsageError: this installation has no such network.
    """
    if DEFAULT in list_pretrained():
        return DEFAULT
    raise UsageError(
        f"no weights are named, and this installation lacks {DEFAULT}, which would be used; name a run folder or a "
        f"weights folder{other_names(DEFAULT)}"
    )


def other_names(asked: str) -> str:
    """Return the end of an error on weights that are not there: ', or a shipped network (one of ...)'.

    Args:
        asked: what was given, to which the nearest name is offered.
    """
    names = list_pretrained()
    return f", or a shipped network: {nearest(asked, names)}" if names else " (no network is shipped with this package)"
