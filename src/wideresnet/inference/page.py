"""The page of weights on a test set: what `wrn eval --page` draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base import progress
from wideresnet.engines.explain import activation_maps
from wideresnet.inference.evaluate import Subject, measure_logits
from wideresnet.report.evaluation_page import write_evaluation
from wideresnet.report.maps import ActivationMaps, choose_explained
from wideresnet.report.runs import Predictions


def measure_and_draw(subject: Subject, page: Path) -> dict[str, Any]:
    """Evaluate, and write a page with the mistakes and with where the network looks.

    An exported model shows its outputs alone, so its page has no activation maps.

    Args:
        subject: weights and images.
        page: the file; an old one is replaced.

    Returns:
        What `evaluate_weights` returns, and page.
    """
    with progress.task("evaluating", total=len(subject.images)) as task:
        result, logits = measure_logits(subject, lambda num: task.update(advance=num))
    predictions = Predictions.of(logits.astype(np.float64), subject.labels, subject.weights.class_names)
    maps = None
    if subject.weights.precision is None:
        index, labels = choose_explained(predictions)
        images, read = subject.images[index], subject.weights
        device = next(read.network.parameters()).device.type  # it may be the caller's own network
        maps = activation_maps(read.network, images, labels, read.preprocessing, device=device)
        maps = ActivationMaps.of(index, labels, maps, images)
    write_evaluation(page, result, predictions, subject.images, maps)
    return {**result, "page": str(page)}
