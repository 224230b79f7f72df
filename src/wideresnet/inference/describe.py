"""What trained weights are: the content of `wrn info --weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wideresnet.networks.describe import describe
from wideresnet.weights.hub import read_weights
from wideresnet.weights.matching import run_of
from wideresnet.weights.pretrained import find_weights, list_pretrained, read_card, weights_name


def describe_weights(weights: str | Path, *, batch_size: int = 128) -> dict[str, Any]:
    """Describe trained weights: their network as `describe` does, what it was trained on and what it is known to do.

    Args:
        weights: a run folder, a weights folder, a `model.safetensors` or the name of a shipped network.
        batch_size: images in the training batch for `activation_bytes`.

    Returns:
        JSON-ready: what `describe` returns, and weights, class_names, preprocessing (as in `config.json`), sha256 (None
        for an unfinished run), dataset and test_error_pct (percent, on all its test images; both None if unknown), card
        (what the `card.json` of a shipped network holds, else None) and notes.

    Raises:
        UsageError, DataError: as for `read_weights`.
    """
    read, card, run = read_weights(weights), read_card(weights), run_of(weights)
    known: dict[str, Any] = {"dataset": None, "test_error_pct": None}
    if card:
        known = {"dataset": card.dataset, "test_error_pct": card.test_error_pct}
    elif run.is_run() and run.result.is_file():
        result = run.read_result()
        known = {name: result[name] for name in known}
    about = describe(
        str(read.network.name),
        num_classes=read.network.num_classes,
        input_size=read.input_size,
        batch_size=batch_size,
        **read.network.options,
    )
    return {
        **about,
        "weights": weights_name(weights),
        "class_names": list(read.class_names),
        "preprocessing": read.preprocessing.to_config(),
        "sha256": read.sha256,
        **known,
        "card": card.values if card else None,
        "notes": list(read.notes),
    }


def describe_pretrained() -> list[dict[str, Any]]:
    """Describe the networks that come with the package.

    Returns:
        JSON-ready, for each: name, network, dataset, params, test_error_pct (percent) and bytes (of its folder).

    Raises:
        DataError: a card is damaged.
    """
    cards = [card for name in list_pretrained() if (card := read_card(name))]
    return [
        {
            "name": card.name, "network": card.network, "dataset": card.dataset, "params": card.params,
            "test_error_pct": card.test_error_pct,
            "bytes": sum(file.stat().st_size for file in (find_weights(card.name)).iterdir()),
        }
        for card in cards
    ]  # fmt: skip
