"""The page of a finished run, with what only its network can tell: where it looks."""

from __future__ import annotations

import logging

from wideresnet.data import Dataset
from wideresnet.engines.explain import activation_maps
from wideresnet.report.maps import ActivationMaps, choose_explained, store_maps
from wideresnet.report.pages import write_report
from wideresnet.report.runs import read_predictions, read_run
from wideresnet.spec.record import RunFolder
from wideresnet.weights.hub import read_weights
from wideresnet.weights.matching import fit_images

log = logging.getLogger(__name__)


def write_page(folder: RunFolder, dataset: Dataset | None = None) -> None:
    """Compute activation maps of a few test images, and write the run's page; without maps if they fail.

    Args:
        folder: a finished run.
        dataset: its data, if it is loaded already.

    Raises:
        UsageError, DataError: as for `report.pages.write_report`.
    """
    predictions, dataset, _ = read_predictions(read_run(folder.path), dataset)
    if predictions is not None and dataset is not None:
        try:
            weights, (index, labels) = read_weights(folder.path), choose_explained(predictions)
            images, _ = fit_images(weights, dataset, dataset.test.images[index])
            maps = activation_maps(weights.network, images, labels, weights.preprocessing)
            store_maps(folder, ActivationMaps.of(index, labels, maps, images))
        except Exception as error:  # such as no memory for a large image: it must not cost the rest of the page
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning(f"the page does not show where the network looks ({reason})")
    write_report(folder.path, dataset)
