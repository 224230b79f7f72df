"""The sections of a run's page that are made from its stored predictions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from wideresnet.base.metrics import confusion
from wideresnet.data import Dataset
from wideresnet.data.facts import superclasses
from wideresnet.report import html
from wideresnet.report.figures import Tile, draw_confusion
from wideresnet.report.runs import Predictions

NUM_SAMPLES, NUM_WRONG_SAMPLES = 16, 6
NUM_WORST = 24
MAX_TABLE_CLASSES = 20
"""Up to this number of classes the confusion matrix is a table of numbers, with more of them a picture. This package's
choice."""


def sample_tiles(predictions: Predictions, dataset: Dataset) -> list[Tile]:
    """Choose a few correct and wrong predictions, spread evenly over the set."""

    def spread(index: np.ndarray, wanted: int) -> np.ndarray:
        return index[np.linspace(0, len(index) - 1, min(wanted, len(index))).round().astype(int)]

    wrong = spread(np.flatnonzero(predictions.is_wrong), NUM_WRONG_SAMPLES)
    right = spread(np.flatnonzero(~predictions.is_wrong), NUM_SAMPLES - len(wrong))
    return _tiles(np.sort(np.concatenate([wrong, right])), predictions, dataset)


def _tiles(index: np.ndarray, predictions: Predictions, dataset: Dataset) -> list[Tile]:
    names = predictions.class_names
    return [
        Tile(
            image=dataset.test.images[i],
            true=names[predictions.labels[i]],
            predicted=names[predictions.predicted[i]],
            probability=float(predictions.probability[i]),
            is_wrong=bool(predictions.is_wrong[i]),
        )
        for i in index
    ]


def kinds_text(samples: Sequence[Tile]) -> str:
    """Count them: '10 correct and 6 wrong predictions'."""
    num_wrong = sum(tile.is_wrong for tile in samples)
    return f"{len(samples) - num_wrong} correct and {num_wrong} wrong predictions"


def pictures_section(predictions: Predictions, dataset: Dataset, samples: list[Tile]) -> list[str]:
    """Show the samples, and the wrong predictions with the highest probability."""
    wrong = np.flatnonzero(predictions.is_wrong)
    worst = wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:NUM_WORST]
    about = (
        f"A choice, not in proportion: {kinds_text(samples)}, each kind spread evenly over the set. Of all "
        f"{len(dataset.test):,} predictions {len(wrong):,} are wrong."
    )
    body = [html.heading("Some test images"), html.paragraph(about, "muted"), html.tiles(samples)]
    if len(wrong):
        about = "The wrong predictions with the highest probability; the true class is below the predicted one."
        tiles = html.tiles(_tiles(worst, predictions, dataset))
        body += [html.heading("Worst mistakes"), html.paragraph(about, "muted"), tiles]
    return body


def mistakes_section(predictions: Predictions) -> list[str]:
    """Show which classes are taken for which, and the error of each class."""
    names = predictions.class_names
    matrix = confusion(predictions.labels, predictions.predicted, len(names))
    if not predictions.is_wrong.any():
        return [html.heading("Mistakes"), html.paragraph("None: every test image is classified correctly.")]
    body = [html.heading("Confusion matrix")]
    if len(names) <= MAX_TABLE_CLASSES:
        body.append(html.confusion_table(matrix, names))
    else:
        body += _confusion_picture(matrix, superclasses(names))
        body += [html.heading("Most confused classes"), html.confused_pairs(matrix, names)]
    return [*body, html.heading("Error by class"), html.class_error_bars(matrix, names)]


def _confusion_picture(matrix: np.ndarray, superclass: Mapping[str, Sequence[int]]) -> list[str]:
    """The matrix as a picture, its classes next to those of the same superclass if the set has some."""
    num_classes, groups = len(matrix), [(name, len(labels)) for name, labels in superclass.items()]
    alt = f"Confusion matrix of {num_classes} classes; the most confused ones are listed below."
    about = (
        "A row per true class, a column per predicted one; the stronger the color, the larger the share of the class."
    )
    if groups:
        order = np.concatenate(list(superclass.values()))
        matrix = matrix[np.ix_(order, order)]
        member = np.arange(len(groups)).repeat([size for _, size in groups])
        within = int(matrix[member[:, None] == member].sum() - matrix.diagonal().sum())
        num_wrong = int(matrix.sum() - matrix.diagonal().sum())
        about += (
            f" Classes are grouped by the set's {len(groups)} superclasses: of {num_wrong:,} mistakes {within:,} "
            f"({100 * within / num_wrong:.0f} %) stay within one."
        )
    return [html.picture(functools.partial(draw_confusion, matrix, groups), alt), html.paragraph(about, "muted")]
