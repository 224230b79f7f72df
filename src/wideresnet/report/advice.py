"""What to try next: a few rules, each of which stands on a number of the record and names a command."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import WRNError
from wideresnet.base.format import counted
from wideresnet.base.metrics import calibration, confusion, most_confused
from wideresnet.data import Dataset
from wideresnet.data.catalog import Catalog, ReadOptions
from wideresnet.data.dataset import count_repeats
from wideresnet.data.decode import MAX_NATIVE_SIDE_PX
from wideresnet.data.feeds.lazy import lazy
from wideresnet.data.images import UnreadableError, read_header, silent_pillow
from wideresnet.data.inspection.findings import IMBALANCE
from wideresnet.data.load import open_data
from wideresnet.report import html
from wideresnet.report.runs import Predictions, Run
from wideresnet.report.statistics import share_interval
from wideresnet.report.text import shell_command
from wideresnet.spec.recipe import Recipe
from wideresnet.weights.pretrained import DEFAULT, read_card

# The thresholds of the rules, all this package's choice
MAX_HALF_WIDTH_PCT = 3
"""From this half width of the error's interval on, more test images are worth more than a better network."""

SURE, MIN_SURE = 0.9, 5
"""Mistakes of at least this probability are confident; from so many on, and a tenth of all mistakes, labels are asked
into question."""

MIN_GAP_PCT = 5
"""Percentage points by which the test error must exceed the training error, and be twice as high: overfitting."""

FEW_TRAIN, SMALL_SET = 50, 10_000
"""Training images of a class, and of all, below which more of them, or trained weights to start from, help most."""

MIN_PAIR, MIN_PAIR_SHARE = 5, 0.25
"""Two classes that are taken for each other this often, and in this share of all mistakes, are named."""

LARGER = 2
"""Times the input size from which on images are called much larger."""

MAX_ECE_PCT = 5
_MAX_HEADERS = 500  # read to find out how large the images are


@dataclass(frozen=True)
class Advice:
    """What to try.

    Attributes:
        finding: the number that it stands on.
        what: what to do about it.
        command: that does it; "" if it is nothing that a command can do.
    """

    finding: str
    what: str
    command: str = ""


def advice_section(
    run: Run, changes: Mapping[str, Any] | None, predictions: Predictions | None, dataset: Dataset | None
) -> list[str]:
    """Show what to try next.

    Args:
        run: a finished run.
        changes: as `find_changes` returns them.
        predictions: on its test set; None if they are not available.
        dataset: its data; likewise.
    """
    found = list(advise(run, changes, predictions, dataset))
    body = [html.heading("What to try next")]
    if not found:
        body.append(html.paragraph("Nothing stands out in the record: no rule of this page applies."))
    for advice in found:
        body.append(html.paragraph(f"{advice.finding} {advice.what}"))
        body += [html.command(advice.command)] * bool(advice.command)
    if dataset is not None and dataset.facts is None:
        about = (
            "To see equal and nearly equal images, also across training and test set, and files that cannot be read:"
        )
        body += [html.paragraph(about), html.command(shell_command(["wrn", "check", run.recipe.data]))]
    return body


def advise(
    run: Run, changes: Mapping[str, Any] | None, predictions: Predictions | None, dataset: Dataset | None
) -> Iterator[Advice]:
    """Yield what the rules find; arguments as for `advice_section`."""
    if run.result is None:
        return
    is_own = dataset is not None and dataset.facts is None
    check = shell_command(["wrn", "check", run.recipe.data])
    check_labels = shell_command(["wrn", "check", run.recipe.data, "--with", str(run.folder.path)])
    if dataset is not None and is_own:
        yield from _data_rules(dataset, check)
    if predictions is not None:
        yield from _mistake_rules(predictions, check_labels if is_own else "")
    yield from _schedule_rules(run, changes)
    if dataset is not None and is_own:
        yield from _input_rules(run, dataset)
    if predictions is not None:
        yield from _certainty_rules(run, predictions)


def _data_rules(dataset: Dataset, check: str) -> Iterator[Advice]:
    """Copies across the splits, small and unbalanced classes."""
    if lazy(dataset.train.images) is None:
        shared, _ = count_repeats(dataset)
        if shared:
            are = "is" if shared == 1 else "are"
            yield Advice(
                f"{counted(shared, 'test image')} of {len(dataset.test):,} {are} also in the training set, pixel for "
                "pixel, so the true error is higher.", "See which, and remove them from one of the two:", check,
            )  # fmt: skip
    counts, names = np.bincount(dataset.train.labels, minlength=len(dataset.class_names)), dataset.class_names
    few = [label for label in np.argsort(counts, kind="stable").tolist() if counts[label] < FEW_TRAIN]
    if few:
        have = "has" if len(few) == 1 else "have"
        listed = ", ".join(f"{names[label]} {counts[label]}" for label in few[:5]) + ", ..." * (len(few) > 5)
        yield Advice(
            f"{len(few)} of {len(names)} classes {have} fewer than {FEW_TRAIN} training images ({listed}).",
            "More images of them are worth more than any setting.",
        )
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= IMBALANCE * counts[least]:
        yield Advice(
            f"The classes are unbalanced: {names[most]} has {counts[most]:,} training images, {names[least]} "
            f"{counts[least]:,}.",
            "The overall error is mostly that of the large classes: judge by the table of classes, and add images of "
            "the small ones.",
        )


def _mistake_rules(predictions: Predictions, check_labels: str) -> Iterator[Advice]:
    """Confident mistakes, and two classes that are taken for each other."""
    num_wrong = int(predictions.is_wrong.sum())
    sure = int((predictions.is_wrong & (predictions.probability >= SURE)).sum())
    if check_labels and sure >= MIN_SURE and sure >= num_wrong / 10:
        yield Advice(
            f"{sure:,} of {counted(num_wrong, 'mistake')} were made with a probability of {100 * SURE:.0f} % or more.",
            "Some labels may be wrong. List those that the network doubts:", check_labels,
        )  # fmt: skip
    names = predictions.class_names
    if num_wrong and len(names) > 2:
        matrix = confusion(predictions.labels, predictions.predicted, len(names))
        pair = most_confused(np.triu(matrix + matrix.T), 1)[0]
        if pair.num_images >= MIN_PAIR and pair.num_images >= MIN_PAIR_SHARE * num_wrong:
            yield Advice(
                f"{names[pair.true]} and {names[pair.predicted]} are taken for each other in {pair.num_images:,} of "
                f"{counted(num_wrong, 'mistake')}.",
                "Look whether these images can be told apart at all, and add images of both.",
            )


def _schedule_rules(run: Run, changes: Mapping[str, Any] | None) -> Iterator[Advice]:
    """A short schedule, a training set that was learned too well or not well enough."""
    recipe, result = run.recipe, run.result or {}
    own_file, wanted = str(run.folder.recipe), (changes or {}).get("epochs", (0, 0))[0]
    time_s, trained = recipe.schedule.time_s, run.curve.epochs[-1]
    if wanted > trained:
        longer = ("--epochs", str(wanted))
        if time_s is not None:  # which decides the epochs, so they cannot be asked for
            longer = ("--time", f"{math.ceil(time_s * wanted / trained / 60)}m")
        command = _train(recipe, own_file, *longer, out=f"{run.folder.path}-longer")
        finding = f"The run had {counted(trained, 'epoch')}; recipe {recipe.name} has {wanted:,} here."
        yield Advice(finding, "Train as long as that:", command)
    if recipe.feed.mixup or recipe.feed.cutmix:  # their training errors are those of blended images
        return
    num_images, test_pct, train_pct = result["num_test_images"], result["test_error_pct"], run.curve.train_error_pct[-1]
    low, _ = share_interval(round(test_pct * num_images / 100), num_images)
    errors = f"The error is {train_pct:.1f} % on training images and {test_pct:.1f} % on test images"
    if 100 * low > train_pct + MIN_GAP_PCT and test_pct > 2 * train_pct:
        what = "it fits the ones it has seen much better than new ones. More training images help most"
        if recipe.feed.auto_augment == "none":
            command = _train(recipe, "strong", out=f"{run.folder.path}-strong")
            yield Advice(f"{errors}:", f"{what}; else stronger augmentation:", command)
        else:
            yield Advice(f"{errors}:", f"{what}.")
    elif train_pct > MIN_GAP_PCT and train_pct >= test_pct and wanted <= trained:
        wider = re.fullmatch(r"(WRN-\d+)-(\d+)", recipe.network)
        command = ""
        if wider:
            network = f"{wider[1]}-{2 * int(wider[2])}"
            command = _train(recipe.replace(network=network), own_file, out=f"{run.folder.path}-wider")
        yield Advice(f"{errors}:", "it has not learned even those. Train longer, or a wider network:", command)


def _input_rules(run: Run, dataset: Dataset) -> Iterator[Advice]:
    """Images that are much larger than what the network sees, and trained weights to start from."""
    recipe, folder = run.recipe, run.folder.path
    side, median = min(dataset.train.images.shape[1:3]), _median_side_px(recipe)
    if median is not None and median >= LARGER * side and LARGER * side <= MAX_NATIVE_SIDE_PX:
        command = _train(
            recipe, str(run.folder.recipe), "--image-size", str(LARGER * side), out=f"{folder}-{LARGER * side}px"
        )
        yield Advice(
            f"The network sees images of {side} px; the shorter side of the files has a median of {median:,} px.",
            "If the details matter, train on larger ones, which takes about four times as long:", command,
        )  # fmt: skip
    starts_small = recipe.init_from is None and len(dataset.train) < SMALL_SET and dataset.train.images.shape[3] == 3
    if starts_small and (card := read_card(DEFAULT)):
        words = ["wrn", "train", card.network, "--data", recipe.data, "--from", DEFAULT, "--recipe", "finetune"]
        yield Advice(
            f"The run started from random weights and has {len(dataset.train):,} training images.",
            f"Start from weights that were trained on {card.dataset}:",
            shell_command([*words, "--out", f"{folder}-tuned"]),
        )


def _certainty_rules(run: Run, predictions: Predictions) -> Iterator[Advice]:
    """Few test images, and probabilities that promise too much."""
    num_images, num_wrong = len(predictions.labels), int(predictions.is_wrong.sum())
    low, high = (100 * share for share in share_interval(num_wrong, num_images))
    if high - low >= 2 * MAX_HALF_WIDTH_PCT:
        yield Advice(
            f"With {counted(num_images, 'test image')} the error is only known to be between {low:.1f} and "
            f"{high:.1f} %.",
            "Test on more images before you compare settings.",
        )
    measured = calibration(predictions.probability, ~predictions.is_wrong)
    is_over = predictions.probability.mean() > (~predictions.is_wrong).mean()
    if measured.error_pct > MAX_ECE_PCT and is_over and not run.recipe.optimizer.label_smoothing:
        command = _train(
            run.recipe, str(run.folder.recipe), "--label-smoothing", "0.1", out=f"{run.folder.path}-smooth"
        )
        finding = f"The probabilities are too high: the expected calibration error is {measured.error_pct:.1f} %."
        yield Advice(finding, "Smoothed labels make a network less sure:", command)


def _train(recipe: Recipe, base: str, *flags: str, out: str) -> str:
    """The command that trains again from a recipe with other flags."""
    return shell_command(
        ["wrn", "train", recipe.network, "--data", recipe.data, "--recipe", base, *flags, "--out", out]
    )


def _median_side_px(recipe: Recipe) -> int | None:
    """The median of the shorter sides of image files, of the first of them; None if the data holds no such files."""
    try:
        with silent_pillow():
            opened = open_data(recipe.data, ReadOptions(skip_unreadable=True))
            if not isinstance(opened, Catalog):
                return None
            stride = max(1, len(opened.labels) // _MAX_HEADERS)
            sides = []
            for encoded in islice(opened.read(), 0, None, stride):
                if isinstance(encoded.source, Path):
                    try:
                        header = read_header(encoded.source)
                        sides.append(min(header.height, header.width))
                    except UnreadableError:
                        continue
    except WRNError:  # the page does not depend on it
        return None
    return int(np.median(sides)) if sides else None
