"""The page of `wrn eval`: trained weights on any test set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.report import html
from wideresnet.report.calibration import calibration_section
from wideresnet.report.maps import ActivationMaps, maps_section
from wideresnet.report.predictions import mistakes_section, pictures_section, sample_tiles
from wideresnet.report.runs import Predictions
from wideresnet.report.summary import summary_section
from wideresnet.spec.files import write_atomic


def write_evaluation(
    out: Path, result: Mapping[str, Any], predictions: Predictions, images: np.ndarray, maps: ActivationMaps | None
) -> None:
    """Write the page.

    Args:
        out: the page; its folder is made if necessary.
        result: from `inference.evaluate.measure`.
        predictions: those that the result is about.
        images: uint8 (N, H, W, C), the test images.
        maps: of some of them; None if the network has none.
    """
    network, data = result["network"], result["dataset"]
    num_images, num_errors = result["num_images"], result["num_errors"]
    pairs = [
        ("weights", result["weights"]),
        ("test loss (NLL)", f"{result['loss']:.4f} nats"),
        ("calibration error (ECE)", f"{result['ece_pct']:.2f} %"),
        ("device", result["device"]),
        ("precision", result["precision"]),
    ]
    if "engine" in result:
        pairs.append(("engine", result["engine"]))
    if result["top5_error_pct"] is not None:
        pairs.insert(0, ("top-5 error", f"{result['top5_error_pct']:.2f} %"))
    body = [
        html.title(f"{network} on {data}", "trained weights, measured on test images"),
        html.headline(f"{result['error_pct']:.2f} %", f"test error: {num_errors:,} of {num_images:,} images"),
        *summary_section(num_images, num_errors, predictions),
        html.facts(pairs),
        *(html.paragraph(note, "note") for note in result["notes"]),
        *pictures_section(predictions, images, sample_tiles(predictions, images)),
        *(maps_section(maps, predictions) if maps else ()),
        *mistakes_section(predictions),
        *calibration_section(predictions),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.page(f"{network} on {data}", body))
