"""The page of a reproduced table or figure: axes that can be read, and words that fit the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wideresnet.report.figures import Curve
from wideresnet.report.reproduction import markdown, write_reproduction
from wideresnet.report.reproduction_figures import draw_bands, draw_costs
from wideresnet.spec.exhibits import describe_exhibit


def cell(params: int, seconds: float, dataset: str = "cifar10", n: int = 1) -> dict[str, Any]:
    run = {"state": "finished", "params": params, "train_s": seconds, "test_error_pct": 5.0, "seed": 0, "name": "run"}
    nothing = dict.fromkeys(("mean_pct", "std_pct", "half_width_pct"))
    return {
        "label": "WRN-16-4", "dataset": dataset, "published_pct": 5.02, "median_pct": 5.0, "n": n, "macs": 143 * params,
        "runs": [run] * n, "verdict": "", **nothing,
    }  # fmt: skip


def document(exhibit: str, *datasets: str) -> dict[str, Any]:
    cells = [cell(1, 1, each, 0) for each in datasets]
    return {
        "name": exhibit, "exhibit": describe_exhibit(exhibit), "scale": 0.1, "width": None, "ranks": {}, "left_out": [],
        "scaled_down": "10 % of the paper's epochs", "is_partial": False, "cells": cells,
    }  # fmt: skip


@pytest.mark.parametrize("factor", [1, 1.3, 30, 1000])
@pytest.mark.parametrize("params", [77_562, 2_748_890, 5_100_000, 36_479_194])
def test_every_axis_of_cost_has_a_labeled_tick_in_view(params: int, factor: float) -> None:
    figure = draw_costs([cell(params, 131.0), cell(round(params * factor), 131.0 * factor)])
    for panel in figure.axes:
        low, high = panel.get_xlim()
        ticks = [place for place in panel.get_xticks() if low <= place <= high]
        assert 1 <= len(ticks) <= 4


def test_epochs_are_whole_numbers() -> None:
    epochs = list(range(1, 21))
    values = [20.0 - epoch / 2 for epoch in epochs]
    curve = Curve("one", "test", epochs, values, values, [0, 20], [0.1, 0], epochs, values, values, lr_is_stepped=False)
    figure = draw_bands([("one", [curve])])
    assert all(place == round(place) for place in figure.axes[1].get_xticks())


def test_a_figure_on_other_data_names_where_the_errors_are_from_and_how_they_came_about(tmp_path: Path) -> None:
    own, other = document("figure3", "svhn"), document("figure3", "cifar10")
    assert "Table" not in markdown(own)
    assert "The paper's errors on CIFAR-10 are those of its Table 6." in markdown(other)
    for each, said in ((own, "SVHN: train and extra images"), (other, "CIFAR-10: SGD with Nesterov momentum")):
        page = write_reproduction(each, tmp_path)[0].read_text()
        assert said in page
        assert page.count("The authors&#x27; code: ") == 1


def test_a_table_of_two_protocols_shows_both(tmp_path: Path) -> None:
    page = write_reproduction(document("table6", "cifar10", "cifar100", "svhn"), tmp_path)[0].read_text()
    assert "CIFAR-10 and CIFAR-100: SGD with" in page
    assert "SVHN: train and extra images" in page
