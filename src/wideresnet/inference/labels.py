"""Labels that a trained network doubts: images of which it is sure that they belong to another class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from wideresnet.base import progress
from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.catalog import Catalog
from wideresnet.data.decode import Encoded, in_threads
from wideresnet.data.depth import WHITE, UnreadableError
from wideresnet.data.feeds.decoder import fitted
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.data.images import decode_quietly, fit_to_size, silent_pillow
from wideresnet.data.inspection.findings import image_at
from wideresnet.data.inspection.survey import Opened, Survey
from wideresnet.engines import optimize
from wideresnet.weights.hub import Weights

_IMAGES_AT_ONCE = 256
_SURE, _LEAD = 0.9, 0.5
MAX_SUSPICIOUS = 1000


def doubtful_labels(
    weights: Weights, opened: Opened, seen: Survey, *, device: str = "cpu", white: int | None = None
) -> list[dict[str, Any]]:
    """Rank the images of which a network is sure that they belong to another class.

    It is sure if the probability of that class is at least the mean that images of the class get for it, which is the
    off-diagonal of the confident joint in "Confident Learning" (Northcutt et al. 2021, section 3.1). After long
    training this mean is so close to 1 that half of the right images are below it, so 0.9 is enough, and so is a
    probability that exceeds that of the label by 0.5. Both numbers are this package's choice.

    Args:
        weights: the network, its classes and preprocessing.
        opened: the data.
        seen: from `survey`.
        device: "cpu" or "cuda".
        white: of 16-bit images.

    Returns:
        Values for JSON: as `image_at`, with `predicted`, `probability` and `label_probability`; the surest first.

    Raises:
        UsageError: the network does not know the classes of the data, or takes other channels.
        DataError: its outputs are not finite.
    """
    names, rows = opened.class_names, _rows_of_classes(weights, opened)
    probabilities = _probabilities(weights, opened, len(seen.labels), device, white)
    readable = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    labels = np.array([rows[label] for label in seen.labels.tolist()])
    threshold = np.full(len(weights.class_names), _SURE)
    for place in set(labels[readable].tolist()):
        mean = probabilities[readable[labels[readable] == place], place].mean()
        threshold[place] = min(_SURE, mean)
    own = probabilities[np.arange(len(labels)), labels]
    predicted = np.where(np.isnan(probabilities), -1, probabilities).argmax(axis=1)
    best = probabilities[np.arange(len(labels)), predicted]
    is_sure = (best >= threshold[predicted]) | (best - own >= _LEAD)
    doubtful = readable[((predicted != labels) & is_sure)[readable]]
    ranked = doubtful[np.argsort(-(best - own)[doubtful], kind="stable")][:MAX_SUSPICIOUS]
    return [
        {
            **image_at(seen, row, names), "predicted": weights.class_names[predicted[row]],
            "probability": float(best[row]), "label_probability": float(own[row]),
        }
        for row in ranked.tolist()
    ]  # fmt: skip


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
            raise DataError("the outputs are not finite; these weights are damaged, so train again")
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
