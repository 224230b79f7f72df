"""How well each class is found: a table with the worst classes on top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wideresnet.base.metrics import class_errors, class_scores
from wideresnet.report import html
from wideresnet.report.statistics import share_interval

BAR_ENDS_PCT = (1, 2, 5, 10, 20, 50, 100)
"""Where the bars of errors by class may end: round numbers, so that pages can be compared. This package's choice."""

MAX_ROWS = 100
"""Classes in the table; of more, the worst are shown. This package's choice."""


def classes_section(matrix: np.ndarray, class_names: Sequence[str], num_train: np.ndarray | None = None) -> list[str]:
    """Show error, recall, precision and F1 of each class, the worst first.

    Args:
        matrix: int64 (classes, classes), as `base.metrics.confusion` returns it.
        class_names: in the order of the labels.
        num_train: int64 (classes,), training images of each class; None if they are not known.
    """
    errors, scores = class_errors(matrix), class_scores(matrix)
    drawn_pct = np.nan_to_num(errors.error_pct)
    end_pct = next(end for end in BAR_ENDS_PCT if drawn_pct.max() <= end)
    order = np.argsort(-drawn_pct, kind="stable")
    num_predicted = matrix.sum(axis=0)
    rows = []
    for label in order[:MAX_ROWS].tolist():
        right, total = int(matrix[label, label]), int(errors.num_images[label])
        error = html.Bar(f"{drawn_pct[label]:.1f} %", float(drawn_pct[label] / end_pct)) if total else "no image"
        row = (
            class_names[label],
            error,
            _share(right, total),
            _share(right, int(num_predicted[label])),
            f"{100 * scores.f1[label]:.1f}" if total else "-",
            f"{total:,}",
        )
        rows.append(row if num_train is None else (*row, f"{int(num_train[label]):,}"))
    header = ["class", "error", "recall, %", "precision, %", "F1, %", "test images"]
    header += ["training images"] * (num_train is not None)
    about = (
        f"The worst first. A full bar is {end_pct} %. Recall: the share of the images of a class that are found, 100 % "
        "less its error. Precision: the share of the images given this class that are of it. F1: their harmonic mean. "
        "Small: the 95 % interval, which is wide for a class with few images."
    )
    if len(order) > MAX_ROWS:
        about += f" The worst {MAX_ROWS} of {len(order):,} classes; no other has more than "
        about += f"{drawn_pct[order[MAX_ROWS]]:.1f} % error."
    numbers = (*range(2, len(header)),)
    return [
        html.heading("Class by class"),
        html.paragraph(about, "muted"),
        html.table("results by class", header, rows, numbers=numbers),
    ]


def _share(count: int, total: int) -> html.Measured | str:
    """A share in percent with its interval; of no images there is none."""
    if not total:
        return "-"
    low, high = share_interval(count, total)
    return html.Measured(f"{100 * count / total:.1f}", f"{100 * low:.0f} to {100 * high:.0f}")
