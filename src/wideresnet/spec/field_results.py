"""Errors that others have published for Wide ResNets since the paper, as data to hold the recipes against.

Errors are in percent, for training from scratch without extra data, and are targets to compare with: not ours, and made
with networks and code that differ in small things from these, see the recipes' docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass

FORET = "Foret et al. 2021, arXiv 2010.01412, Table 1"
MUELLER = "Mueller & Hutter 2021, arXiv 2103.10158"


@dataclass(frozen=True)
class FieldResult:
    """An error that somebody has published.

    Attributes:
        network: canonical name.
        data: "cifar10" or "cifar100".
        recipe: the recipe of this package that comes nearest; "" if none is near.
        error_pct: on the test images.
        setting: how it was trained, in words.
        statistic: of how many runs it is what.
        source: where it is printed.
    """

    network: str
    data: str
    recipe: str
    error_pct: float
    setting: str
    statistic: str
    source: str


def field_results(
    *, network: str | None = None, data: str | None = None, recipe: str | None = None
) -> tuple[FieldResult, ...]:
    """Select published results; all of them without arguments."""
    wanted = (network, data, recipe)
    return tuple(
        row
        for row in FIELD_RESULTS
        if all(ask in (None, has) for ask, has in zip(wanted, (row.network, row.data, row.recipe), strict=True))
    )


def _sam(recipe: str, setting: str, cifar10: float, cifar100: float) -> tuple[FieldResult, FieldResult]:
    return (
        FieldResult("WRN-28-10", "cifar10", recipe, cifar10, setting, "mean of several runs", FORET),
        FieldResult("WRN-28-10", "cifar100", recipe, cifar100, setting, "mean of several runs", FORET),
    )


FIELD_RESULTS: tuple[FieldResult, ...] = (
    *_sam("sam", "SAM, 200 epochs, basic augmentation", 2.7, 16.5),
    *_sam("sam", "the same without SAM", 3.5, 18.8),
    *_sam("", "SAM, 200 epochs, Cutout", 2.3, 14.9),
    *_sam("", "SGD, 200 epochs, Cutout", 2.6, 16.9),
    *_sam("", "SAM, 200 epochs, AutoAugment", 2.1, 13.6),
    *_sam("", "SGD, 200 epochs, AutoAugment", 2.3, 15.8),
    *_sam("", "SAM, 1800 epochs, AutoAugment", 1.6, 12.8),
    FieldResult(
        "WRN-28-10", "cifar100", "strong", 15.67, "TrivialAugmentWide and Cutout, 200 epochs, no label smoothing",
        "mean of several runs", MUELLER,
    ),
)  # fmt: skip
