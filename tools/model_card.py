"""The model card of a network that comes with the package: its README.md, made from its card.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from wideresnet.base.format import human_bytes, human_seconds
from wideresnet.data import FACTS
from wideresnet.spec.record import MODEL
from wideresnet.weights.pretrained import DEFAULT

HOW = {
    "fp32": "as trained, in fp32",
    "fp16": "as shipped, in fp16; computed in fp32",
    "int8": "as shipped; computed in int8",
}
"""The ways in which the weights were evaluated, in words."""


def readme(card: dict[str, Any]) -> str:
    """Write the page in Markdown, with the metadata of the Hugging Face hub."""
    about = [*_head(card), *_accuracy(card), *_corruptions(card.get("corruptions", {})), *_runs(card), *_making(card)]
    return "\n\n".join(about) + "\n"


def _head(card: dict[str, Any]) -> Iterator[str]:
    name, network, dataset, names = card["name"], card["network"], card["dataset"], card["class_names"]
    height, width = card["input_size"]
    title = FACTS[dataset].title if dataset in FACTS else dataset
    metadata = ["license: mit", "library_name: wideresnet", "pipeline_tag: image-classification", "datasets:"]
    yield "\n".join(["---", *metadata, f"- {dataset}", "---"])
    yield f"# {name}"
    yield (
        f"**{card['test_error_pct']:.2f} % test error** on {title}: all {card['num_test_images']:,} test images, last "
        f"epoch, seed {card['seed']}. {network}, {card['params']:,} parameters, recipe {card['recipe_text']}."
    )
    yield (
        f"It knows {len(names)} classes and nothing else: {', '.join(names)}. Whatever an image shows, the answer is "
        f"one of them. Images are resized and center-cropped to {width} x {height} pixels."
    )
    commands = (
        f"wrn predict {'' if name == DEFAULT else f'{name} '}photo.jpg",
        f"wrn eval {name} --data {dataset}",
        f"wrn train {network} --data path/to/images --from {name}",
    )
    yield "\n".join(["```", *commands, "```"])


def _accuracy(card: dict[str, Any]) -> Iterator[str]:
    yield "## Accuracy and calibration"
    rows = [
        (
            HOW[how],
            f"{each['error_pct']:.2f} %",
            f"{each['num_errors']:,} of {card['num_test_images']:,}",
            f"{each['nll']:.4f}",
            f"{each['ece_pct']:.2f} %",
        )
        for how, each in card["errors"].items()
    ]
    yield _table(("weights", "test error", "wrong", "NLL, nats", "ECE"), rows)
    yield (
        "NLL: negative log likelihood. ECE: expected calibration error, in 15 bins. For int8 the network was "
        "calibrated on training images."
    )
    yield "![How often the predicted class is right, by its probability](reliability.svg)"


def _corruptions(errors: dict[str, Any]) -> Iterator[str]:
    """Write the section on corrupted images.

    Args:
        errors: name -> test errors at severities 1 to 5, percent, and what is about all: "num_images", "clean" (the
            error without corruption), "mean" (over all kinds and severities), "mean_nll" and "mean_ece_pct".
    """
    if not errors:
        return
    yield "## Corrupted images"
    yield (
        f"Mean test error over all corruptions and severities: {errors['mean']:.2f} %, NLL {errors['mean_nll']:.4f}, "
        f"ECE {errors['mean_ece_pct']:.2f} %; on {errors['num_images']:,} test images, {errors['clean']:.2f} % without "
        "corruption. The definitions are those of CIFAR-10-C, the files are not; `wrn eval --corruptions` measures "
        "the same for any weights."
    )
    rows = [(name, *(f"{x:.2f} %" for x in each)) for name, each in errors.items() if isinstance(each, list)]
    yield _table(("corruption", "severity 1", "2", "3", "4", "5"), rows)


def _runs(card: dict[str, Any]) -> Iterator[str]:
    yield "## Every full run"
    yield f"The one of seed {card['seed']} is shipped, whatever its error. All errors are those of the last epoch."
    rows = [
        (
            run["recipe_text"],
            run["seed"],
            run["epochs"],
            f"{run['test_error_pct']:.2f} %",
            f"{run['test_loss']:.4f}",
            "-" if run["test_ece_pct"] is None else f"{run['test_ece_pct']:.2f} %",
            human_seconds(run["seconds"]),
            f"{run['hardware']}, {run['precision']}, torch {run['torch']}",
        )
        for run in card["runs"]
    ]
    yield _table(("recipe", "seed", "epochs", "test error", "NLL, nats", "ECE", "time", "on"), rows)


def _making(card: dict[str, Any]) -> Iterator[str]:
    yield "## How it was made"
    if card["command"]:
        yield f"```\n{card['command']}\n```"
    by = card["measured_with"]
    yield (
        f"`card.json` has every field of the recipe. Measured on {card['date']} by wideresnet {by['wideresnet']} with "
        f"torch {by['torch']}, {by['hardware']}. `{MODEL}` has {human_bytes(card['bytes'])} and the SHA-256 "
        f"`{card['sha256'][MODEL]}`."
    )
    yield "This page is made from `card.json` by `tools/pretrained.py`."


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
