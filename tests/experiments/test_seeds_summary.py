"""The summary over seeds: its statistics, and what it says about seeds that have not finished."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from wideresnet.commands.train import render_seeds as render
from wideresnet.experiments.summary import seeds_document, seeds_text
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import SeedsFolder, write_json
from wideresnet.spec.result import REQUIRED


def finished(folder: SeedsFolder, errors_pct: dict[int, float]) -> None:
    for seed, error_pct in errors_pct.items():
        folder.run(seed).path.mkdir(parents=True)
        anything = {name: "text" if kind is str else 1 for name, kind in REQUIRED.items()}
        result = {**anything, "seed": seed, "test_error_pct": error_pct, "seconds": 61.0, "images_per_s": 1234.5}
        result["test_ece_pct"] = error_pct / 2
        write_json(folder.run(seed).result, {**result, "peak_memory_mib": 300.0, "params": 1})


def test_mean_standard_deviation_of_the_sample_and_median(tmp_path: Path) -> None:
    folder = SeedsFolder(tmp_path)
    finished(folder, {0: 4.0, 1: 5.0, 2: 9.0})
    summary = seeds_document(folder, Recipe(), range(3), 120.0, 2, {1: 10.0, 2: 19.0})
    assert summary["n"] == 3
    assert summary["test_error_pct_mean"] == pytest.approx(6.0)
    assert summary["test_error_pct_std"] == pytest.approx(7**0.5)  # ((2^2 + 1^2 + 3^2) / 2)^(1/2)
    assert summary["test_error_pct_median"] == 5.0
    assert (summary["test_loss_mean"], summary["test_ece_pct_mean"]) == (1, pytest.approx(3.0))
    assert summary["images_per_s_at_once"] == {"1": 10.0, "2": 19.0}
    assert [run["test_error_pct"] for run in summary["runs"]] == [4.0, 5.0, 9.0]
    assert summary["unfinished"] == []


def test_a_seed_that_has_not_finished_is_named_and_not_counted(tmp_path: Path) -> None:
    folder = SeedsFolder(tmp_path)
    finished(folder, {3: 4.0, 9: 99.0})
    summary = seeds_document(folder, Recipe.flat(seed=3), range(3, 6), 1.0, 1, {})
    assert (summary["n"], summary["unfinished"]) == (1, [4, 5])
    assert summary["test_error_pct_mean"] == summary["test_error_pct_median"] == 4.0
    assert summary["test_error_pct_std"] is None  # one value has no spread
    none = seeds_document(SeedsFolder(tmp_path / "new"), Recipe(), range(2), 0.0, 1, {})
    assert (none["n"], none["test_error_pct_mean"], none["unfinished"]) == (0, None, [0, 1])


def test_seeds_of_older_records_have_no_calibration_error(tmp_path: Path) -> None:
    folder = SeedsFolder(tmp_path)
    finished(folder, {0: 4.0, 1: 5.0})
    result = folder.run(1).read_result()
    del result["test_ece_pct"]
    write_json(folder.run(1).result, result)
    summary = seeds_document(folder, Recipe(), range(2), 1.0, 1, {})
    assert summary["test_ece_pct_mean"] is None
    assert [run["test_ece_pct"] for run in summary["runs"]] == [2.0, None]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(summary))
    assert "mean 4.50 1.0000 -" in " ".join(capture.get().replace("│", " ").split())


def test_the_table_has_every_seed_and_every_statistic(tmp_path: Path) -> None:
    folder = SeedsFolder(tmp_path)
    finished(folder, {0: 4.0, 1: 5.0, 2: 9.0})
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(seeds_document(folder, Recipe.flat(data="[x]"), range(3), 120.0, 2, {})))
    shown = " ".join(capture.get().replace("│", " ").split())
    for words in (
        "WRN-16-2 on [x]",
        "2 9.00 1.0000 4.50 1 min 1,234",
        "mean 6.00 1.0000 3.00",
        "std 2.65 0.0000 1.32",
        "median 5.00",
        "n 3 2 min 2 at once",
    ):
        assert words in shown, words


def test_seeds_are_listed_in_words() -> None:
    assert seeds_text([3]) == "seed 3"
    assert seeds_text([0, 2, 4]) == "seeds 0, 2 and 4"
