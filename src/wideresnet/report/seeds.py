"""The page of a folder of several seeds."""

from __future__ import annotations

from pathlib import Path

from wideresnet.base.errors import UsageError
from wideresnet.report.pages import write_comparison, write_report
from wideresnet.spec.record import SeedsFolder


def write_seeds_report(path: str | Path) -> Path:
    """Compare the seeds of a folder, those that have a finished epoch; write the page of a single one.

    Args:
        path: a folder that `fit_seeds` made.

    Returns:
        The page: `comparison.html` in the folder, or `report.html` of its only seed.

    Raises:
        UsageError: the folder holds no seeds, or none with a finished epoch.
        DataError: a file of a run is damaged.
    """
    folder = SeedsFolder(path)
    if not folder.is_begun():
        raise UsageError(f"{path}: holds no seeds; name a folder that fit_seeds (wrn train --seeds) made")
    runs = [run for run in folder.runs() if run.read_metrics()]
    if not runs:
        raise UsageError(f"{path}: no seed has finished an epoch, so there is nothing to report yet; try again later")
    if len(runs) == 1:
        return write_report(runs[0].path).page
    return write_comparison([run.path for run in runs], folder.page)
