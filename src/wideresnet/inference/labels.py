"""Labels that trained networks doubt: images of which they are sure that they belong to another class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wideresnet.base import progress
from wideresnet.base.errors import DAMAGED, DataError, UsageError
from wideresnet.data.catalog import Catalog
from wideresnet.data.decode import Encoded, in_threads
from wideresnet.data.depth import WHITE, UnreadableError
from wideresnet.data.feeds.decoder import fitted
from wideresnet.data.feeds.resident import evaluation_batches, split_rows
from wideresnet.data.images import decode_quietly, fit_to_size, silent_pillow
from wideresnet.data.inspection.findings import image_at
from wideresnet.data.inspection.survey import Opened, Survey
from wideresnet.engines import optimize
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import Weights

_IMAGES_AT_ONCE = 256
MAX_SUSPICIOUS = 1000

MIN_OF_CLASS = 5
"""Images of a class from which on their mean says something; smaller classes take that of all. Own choice."""

SHARE_BELOW = 0.2
"""Share of the images of a class that may be less sure than what counts as sure. Own choice."""


@dataclass(frozen=True)
class Doubts:
    """What networks say of the labels of a data set.

    Attributes:
        images: values for JSON, as `image_at`, with `predicted`, `probability`, `label_probability` and `is_learned`;
            those that are new to a network first, then by how much more it believes in the other class.
        num_learned: images that all networks have learned from, as far as is known.
        num_agreed: those of them of which the networks believe the label.
    """

    images: list[dict[str, Any]]
    num_learned: int
    num_agreed: int


def doubtful_labels(
    runs: Sequence[tuple[Weights, np.ndarray]],
    opened: Opened,
    seen: Survey,
    *,
    device: str = "cpu",
    white: int | None = None,
) -> Doubts:
    """Rank the images of which networks are sure that they belong to another class.

    An image is judged by the mean of the networks that have not learned from it; if all have, by that of all.

    Args:
        runs: networks of the same classes, each with the images that it has learned from, see `learned_images`.
        opened: the data.
        seen: from `survey`.
        device: "cpu" or "cuda".
        white: of 16-bit images.

    Raises:
        UsageError: the networks do not know the classes of the data, differ in theirs, or take other channels.
        DataError: their outputs are not finite.
    """
    first = runs[0][0]
    if strange := next((weights for weights, _ in runs if weights.class_names != first.class_names), None):
        raise UsageError(
            f"{', '.join(strange.class_names[:5])}: classes of one run, but another has "
            f"{', '.join(first.class_names[:5])}; give runs of the same classes"
        )
    rows = np.array(_rows_of_classes(first, opened))
    each = [_probabilities(weights, opened, len(seen.labels), device, white) for weights, _ in runs]
    counts = np.stack([~learned for _, learned in runs]).astype(float)
    is_learned = counts.max(axis=0) == 0
    counts[:, is_learned] = 1
    shares = (counts / counts.sum(axis=0))[:, :, None]
    probabilities = (shares * np.stack(each)).sum(axis=0)
    labels: np.ndarray = rows[seen.labels]
    readable = ~np.isnan(probabilities[:, 0])
    believed, ranked = np.full(len(labels), -1), list[int]()
    judged = readable & is_learned
    for part in (readable & ~is_learned, judged):
        inside = np.flatnonzero(part)
        if len(inside):
            believed[inside], lead = other_classes(probabilities[inside], labels[inside])
            doubtful = np.flatnonzero(believed[inside] >= 0)
            ranked += inside[doubtful[np.argsort(-lead[doubtful], kind="stable")]].tolist()
    agreed = probabilities[judged].argmax(axis=1) == labels[judged]
    images = [
        {
            **image_at(seen, row, opened.class_names), "predicted": first.class_names[believed[row]],
            "probability": float(probabilities[row, believed[row]]),
            "label_probability": float(probabilities[row, labels[row]]), "is_learned": bool(is_learned[row]),
        }
        for row in ranked[:MAX_SUSPICIOUS]
    ]  # fmt: skip
    return Doubts(images, len(agreed), int(agreed.sum()))


def other_classes(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell which labels are wrong, and what they should be, by confident learning.

    A class counts for an image if its probability is at least the mean that images with this label get for it
    (Northcutt, Jiang, Chuang 2021, "Confident Learning", section 3.1, the off-diagonal of the confident joint), or at
    least what all but `SHARE_BELOW` of them get: after label smoothing the mean is near the median, and half of the
    wrong labels would be missed. So it does not matter how sure a network is in general, or of a class, as of a rare
    one. The class must also be more probable than the label.

    Args:
        probabilities: (N, classes), of networks that have not learned from these images.
        labels: int (N,), columns of `probabilities`.

    Returns:
        The class that an image shows instead of its label, int64 (N,), -1 if there is no reason to doubt; and by how
        much it is more probable than the label, (N,).
    """
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = np.full(probabilities.shape[1], _usual(own))
    for label in np.flatnonzero(np.bincount(labels) >= MIN_OF_CLASS):
        thresholds[label] = _usual(own[labels == label])
    candidates = np.where((probabilities >= thresholds) & (probabilities > own[:, None]), probabilities, -1)
    best = candidates.max(axis=1)
    return np.where(best > 0, candidates.argmax(axis=1), -1), best - own


def _usual(own: np.ndarray) -> float:
    """The probability that the label of an image usually gets, at the least."""
    return float(min(own.mean(), np.quantile(own, SHARE_BELOW)))


def learned_images(source: str | Path | Weights, opened: Opened, seen: Survey) -> np.ndarray:
    """Tell from which images a network may have learned: the training images, without those that its run held out.

    What was held out is known if the record of the run names this data and as many training images.

    Args:
        source: where the weights are from; a run folder has a record.
        opened: the data.
        seen: from `survey`.

    Returns:
        bool (N,).
    """
    learned = ~seen.is_test
    folder = RunFolder(source) if isinstance(source, str | Path) else None
    if folder is None or not folder.recipe.is_file() or not folder.result.is_file():
        return learned
    recipe, result = folder.read_recipe(), folder.read_result()
    readable = learned.copy()
    readable[list(seen.failures)] = False
    rows = np.flatnonzero(readable)
    same = {recipe.data, str(Path(recipe.data).resolve())} & {opened.source, str(Path(opened.source).resolve())}
    options = recipe.feed
    if same and options.holdout < min(len(rows), options.limit or len(rows)):
        kept, _ = split_rows(len(rows), options.limit, options.holdout, recipe.seed)
        if len(kept) == result.get("num_train_images"):
            learned = np.zeros_like(learned)
            learned[rows[kept]] = True
    return learned


def _rows_of_classes(weights: Weights, opened: Opened) -> list[int]:
    """Return for each label of the data which output of the network it is: by name, or by number without names."""
    known, found = weights.class_names, opened.class_names
    if set(found) <= set(known):
        return [known.index(name) for name in found]
    if len(found) == len(known) and found == tuple(str(label) for label in range(len(found))):
        return list(range(len(found)))
    strange = ", ".join([name for name in found if name not in known][:5])
    raise UsageError(
        f"{opened.source}: the run does not know the classes {strange}; use a run that was trained on them"
    )


def _probabilities(weights: Weights, opened: Opened, total: int, device: str, white: int | None) -> np.ndarray:
    """Compute probabilities, float32 (N, classes), in batches; NaN for images that cannot be read."""
    channels = weights.network.in_channels
    if channels not in (1, 3):
        raise UsageError(f"{weights.network.name}: takes images of {channels} channels, but image files have 1 or 3")
    probabilities = np.full((total, len(weights.class_names)), np.nan, dtype=np.float32)
    network = optimize(weights.network.to(device))
    images, rows = list[np.ndarray](), list[int]()

    def run() -> None:
        batches = evaluation_batches(np.stack(images), weights.preprocessing, device=device)
        with torch.inference_mode():
            logits = torch.cat([network(batch).float().cpu() for batch in batches])
        if not logits.isfinite().all():
            raise DataError(DAMAGED)
        probabilities[rows] = logits.softmax(1).numpy()
        images.clear()
        rows.clear()

    with silent_pillow():
        decoded = _decoded(opened, channels, weights, white or WHITE)
        for row, pixels in enumerate(progress.track(decoded, "classifying images", total)):
            if pixels is not None:
                images.append(pixels)
                rows.append(row)
            if len(images) == _IMAGES_AT_ONCE:
                run()
    if images:
        run()
    return probabilities


def _decoded(opened: Opened, channels: int, weights: Weights, white: int) -> Iterator[np.ndarray | None]:
    """Yield images, uint8 (H, W, channels), scaled and cropped to the size that the network takes."""
    size = weights.input_size

    def one(encoded: Encoded) -> np.ndarray | None:
        try:
            if encoded.source is None:
                return None
            return fitted(decode_quietly(encoded.source, channels, white)[0], size, weights.resize)
        except UnreadableError:
            return None

    if isinstance(opened, Catalog):
        yield from in_threads(one, opened.read())
        return
    for image in (image for part in (opened.train, opened.test) for image in part.images):
        if image.shape[2] == 3 and channels == 1:
            raise UsageError(f"{opened.source}: images in color, but the run takes grayscale; use another run")
        yield fit_to_size(np.repeat(image, 3, axis=2) if image.shape[2] < channels else image, size)
