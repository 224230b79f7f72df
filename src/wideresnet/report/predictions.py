"""The sections of a run's page that are made from its stored predictions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from wideresnet.base.metrics import confusion, most_confused
from wideresnet.data.facts import superclasses
from wideresnet.report import html
from wideresnet.report.classes import classes_section
from wideresnet.report.figures import Tile, draw_confusion
from wideresnet.report.runs import Predictions

NUM_SAMPLES, NUM_WRONG_SAMPLES = 16, 6
NUM_WORST = 24
MAX_TABLE_CLASSES = 20
"""Up to this number of classes the confusion matrix is a table of numbers, with more of them a picture. This package's
choice."""

MAX_DRAWN_CLASSES = 200
"""Up to this number of classes the picture has a cell of two pixels or more on a telephone. This package's choice."""


def sample_tiles(predictions: Predictions, images: np.ndarray) -> list[Tile]:
    """Choose a few correct and wrong predictions, spread evenly over the set.

    Args:
        predictions: on the test set.
        images: uint8 (N, H, W, C), the test images.
    """

    def spread(index: np.ndarray, wanted: int) -> np.ndarray:
        return index[np.linspace(0, len(index) - 1, min(wanted, len(index))).round().astype(int)]

    wrong = spread(np.flatnonzero(predictions.is_wrong), NUM_WRONG_SAMPLES)
    right = spread(np.flatnonzero(~predictions.is_wrong), NUM_SAMPLES - len(wrong))
    return _tiles(np.sort(np.concatenate([wrong, right])), predictions, images)


def _tiles(index: np.ndarray, predictions: Predictions, images: np.ndarray) -> list[Tile]:
    names = predictions.class_names
    return [
        Tile(
            image=images[i],
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


def pictures_section(predictions: Predictions, images: np.ndarray, samples: list[Tile]) -> list[str]:
    """Show the samples, and the wrong predictions with the highest probability; arguments as for `sample_tiles`."""
    wrong = np.flatnonzero(predictions.is_wrong)
    worst = wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:NUM_WORST]
    about = (
        f"A choice, not in proportion: {kinds_text(samples)}, each kind spread evenly over the set. Of all "
        f"{len(predictions.labels):,} predictions {len(wrong):,} {'is' if len(wrong) == 1 else 'are'} wrong."
    )
    body = [html.heading("Some test images"), html.paragraph(about, "muted"), html.tiles(samples)]
    if len(wrong):
        about = "The wrong predictions with the highest probability; the true class is below the predicted one."
        tiles = html.tiles(_tiles(worst, predictions, images))
        body += [html.heading("Worst mistakes"), html.paragraph(about, "muted"), tiles]
    return body


def mistakes_section(predictions: Predictions, num_train: np.ndarray | None = None) -> list[str]:
    """Show which classes are taken for which, and how well each class is found.

    Args:
        predictions: on the test set.
        num_train: int64 (classes,), training images of each class; None if they are not known.
    """
    names = predictions.class_names
    matrix = confusion(predictions.labels, predictions.predicted, len(names))
    if not predictions.is_wrong.any():
        return [html.heading("Mistakes"), html.paragraph("None: every test image is classified correctly.")]
    body = [html.heading("Confusion matrix")]
    if len(names) <= MAX_TABLE_CLASSES:
        body.append(html.confusion_table(matrix, names))
    elif len(names) <= MAX_DRAWN_CLASSES:
        body += _confusion_picture(matrix, names)
    else:
        body += _confusion_block(matrix, names)
    if len(names) > MAX_TABLE_CLASSES:
        body += [html.heading("Most confused classes"), html.confused_pairs(matrix, names)]
    return [*body, *classes_section(matrix, names, num_train)]


def _confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """The matrix as a picture, its classes next to those of their superclass, or to those that they are taken for."""
    superclass = superclasses(names)
    groups = [(name, len(labels)) for name, labels in superclass.items()]
    order = np.concatenate(list(superclass.values())) if groups else order_by_confusion(matrix)
    matrix = matrix[np.ix_(order, order)]
    alt = f"Confusion matrix of {len(matrix)} classes; the most confused ones are listed below."
    about = (
        "A row per true class, a column per predicted one; the stronger the color, the larger the share of the class."
    )
    if groups:
        member = np.arange(len(groups)).repeat([size for _, size in groups])
        within = int(matrix[member[:, None] == member].sum() - matrix.diagonal().sum())
        num_wrong = int(matrix.sum() - matrix.diagonal().sum())
        about += (
            f" Classes are grouped by the set's {len(groups)} superclasses: of {num_wrong:,} mistakes {within:,} "
            f"({100 * within / num_wrong:.0f} %) stay within one."
        )
    else:
        about += " Classes that are taken for each other are neighbors, so that they form blocks along the diagonal."
    labels = [] if groups else [names[int(label)] for label in order]
    drawing = html.picture(functools.partial(draw_confusion, matrix, groups, names=labels), alt)
    return [drawing, html.paragraph(about, "muted")]


def _confusion_block(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """Of very many classes, those of the most frequent mistakes as a table of numbers."""
    chosen: dict[int, None] = {}
    for mistake in most_confused(matrix, matrix.size):
        if len(chosen | dict.fromkeys(mistake[:2])) > MAX_TABLE_CLASSES:
            break
        chosen |= dict.fromkeys(mistake[:2])
    some = np.array(list(chosen))
    some = some[order_by_confusion(matrix[np.ix_(some, some)])]
    block = matrix[np.ix_(some, some)]
    num_wrong = int(matrix.sum() - matrix.diagonal().sum())
    within = int(block.sum() - block.diagonal().sum())
    about = (
        f"The {len(some)} classes with the most frequent mistakes, of {len(names):,}: {within:,} of all {num_wrong:,} "
        "mistakes are between them. The colors are shares of all images of the class."
    )
    table = html.confusion_table(block, [names[int(label)] for label in some], matrix.sum(axis=1)[some])
    return [html.paragraph(about, "muted"), table]


def order_by_confusion(matrix: np.ndarray) -> np.ndarray:
    """Order classes so that those that are taken for each other are neighbors.

    Args:
        matrix: int64 (classes, classes), as `base.metrics.confusion` returns it.

    Returns:
        int64 (classes,): the leaves of the tree of average linkage, turned so that neighbors are as similar as it
        allows.

    Source: Bar-Joseph, Gifford & Jaakkola 2001, "Fast optimal leaf ordering for hierarchical clustering".
    """
    if len(matrix) < 3:
        return np.arange(len(matrix))
    from scipy.cluster.hierarchy import leaves_list, linkage  # with scikit-learn; takes a while to load
    from scipy.spatial.distance import squareform

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    similar = share + share.T
    np.fill_diagonal(similar, 0)
    distance = 1 - similar / max(similar.max(), 1e-12)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True)).astype(np.int64)
