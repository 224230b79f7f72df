"""The page that compares several runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from page_runs import PREDICTIONS, RECORD, Page, change

from wideresnet.base.errors import UsageError
from wideresnet.report.pages import write_comparison, write_report
from wideresnet.spec.record import RunFolder, SeedsFolder


def test_a_comparison_overlays_runs_and_takes_medians_over_seeds(run: Path, trained: Path, tmp_path: Path) -> None:
    copies: dict[str, Path] = {}
    for seed, error in enumerate((10.0, 40.0, 20.0)):
        copy = Path(shutil.copytree(run, tmp_path / f"seed-{seed}"))
        change(copy / "recipe.json", seed=seed, device="auto" if seed else "cpu")
        change(copy / "result.json", seed=seed, test_error_pct=error)
        copies[copy.name] = copy
    other = Path(shutil.copytree(run, tmp_path / "<i>wider lr"))
    change(other / "recipe.json", lr=0.5)
    page = Page(write_comparison([*copies.values(), other], tmp_path / "out" / "page.html"))
    assert page.source.count("<i>") == 0
    assert "<i>wider lr" in page.text
    start = next(place for place, row in enumerate(page.rows) if "median, %" in row)
    medians = page.rows[start + 1 : start + 3]
    assert medians[0] == [
        "WRN-10-1", "pets & <b>", "quick", "lr 0.3", "20.00", "10.00 to 40.00", "3", "0, 1, 2",
    ]  # fmt: skip
    error = RunFolder(trained).read_result()["test_error_pct"]
    assert medians[1][3:7] == ["lr 0.5", f"{error:.2f}", "-", "1"]
    start = next(place for place, row in enumerate(page.rows) if row[0] == "run")
    assert [row[0] for row in page.rows[start + 1 :]] == [*copies, "<i>wider lr"]
    assert page.pictures()


def test_a_comparison_has_likelihood_and_calibration_of_every_run_that_knows_them(
    run: Path, trained: Path, tmp_path: Path
) -> None:
    older, bare = (Path(shutil.copytree(run, tmp_path / name)) for name in ("older", "bare"))
    result = RunFolder(trained).read_result()
    for folder in (older, bare):  # records from before there was a calibration error, one without predictions
        RunFolder(folder).result.write_text(json.dumps({k: v for k, v in result.items() if k != "test_ece_pct"}))
    (bare / PREDICTIONS).unlink()
    page = Page(write_comparison([run, older, bare], tmp_path / "page.html"))
    start = next(place for place, row in enumerate(page.rows) if "ECE, %" in row)
    assert page.rows[start][2:4] == ["NLL, nats", "ECE, %"]
    nll, ece = f"{result['test_loss']:.4f}", f"{result['test_ece_pct']:.2f}"
    assert [row[2:4] for row in page.rows[start + 1 :]] == [[nll, ece], [nll, ece], [nll, "-"]]


def test_an_unfinished_run_is_compared_but_not_counted(run: Path, trained: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "again"))
    change(again / "recipe.json", seed=1)
    (run / "result.json").unlink()
    page = Page(write_comparison([run, trained, again], tmp_path / "page.html"))
    assert "not counted in any median" in page.text
    start = next(place for place, row in enumerate(page.rows) if "median, %" in row)
    assert page.rows[start + 1][6] == "2"


def test_single_runs_have_no_medians(run: Path, trained: Path, tmp_path: Path) -> None:
    change(run / "recipe.json", lr=0.5)
    page = Page(write_comparison([run, trained], tmp_path / "page.html"))
    assert "Medians" not in page.text
    assert any(row[0] == "run" for row in page.rows)


def test_a_comparison_leads_to_the_pages_of_its_runs_and_seeds_lead_back(run: Path, tmp_path: Path) -> None:
    seeds = SeedsFolder(tmp_path / "a:b #1")
    runs = [Path(shutil.copytree(run, seeds.run(seed).path)) for seed in (0, 1)]
    seeds.summary.write_text("{}")
    alone = Page(write_report(run).page)
    assert alone.all("a") == []
    pages = [write_report(path).page for path in runs]
    comparison = Page(write_comparison(runs, seeds.page))
    addresses = [a["href"] for a in comparison.all("a")]
    assert addresses == ["seed0/report.html", "seed1/report.html"]
    assert [a["href"] for a in Page(pages[0]).all("a")] == ["../comparison.html"]
    far = Page(write_comparison(runs, tmp_path / "pages" / "all.html"))
    assert far.all("a")[0]["href"] == "../a%3Ab%20%231/seed0/report.html"


def test_a_comparison_names_what_was_changed_in_a_published_sets_recipe(tmp_path: Path) -> None:
    other = Path(shutil.copytree(RECORD, tmp_path / "other"))
    change(other / "recipe.json", lr=0.05)
    page = Page(write_comparison([RECORD, other], tmp_path / "page.html"))
    start = next(place for place, row in enumerate(page.rows) if row[0] == "run")
    assert [row[6] for row in page.rows[start + 1 :]] == ["paper", "paper, lr 0.05"]


def test_a_comparison_says_which_runs_were_computed_differently(run: Path, trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    assert "computed differently" not in Page(write_comparison([run, other], tmp_path / "page.html")).text
    change(other / "recipe.json", precision="bf16")
    page = Page(write_comparison([run, other, trained], tmp_path / "page.html"))
    assert "computed differently, so another precision gives other results: precision fp32 in" in page.text


def test_runs_with_the_same_name_are_labeled_by_their_paths(run: Path, trained: Path, tmp_path: Path) -> None:
    page = Page(write_comparison([run, trained], tmp_path / "page.html"))
    assert {str(run), str(trained)} <= {row[0] for row in page.rows}


def test_an_impossible_comparison_is_a_usage_error(run: Path, trained: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[Path], str, str]] = [
        ([run], "page.html", "two runs or more"),
        ([run, run / ".." / run.name], "page.html", "given twice"),
        ([run, tmp_path], "page.html", "not a run folder"),
        ([run, trained], "page.txt", "ends in .html"),
    ]
    for runs, out, message in cases:
        with pytest.raises(UsageError, match=message):
            write_comparison(runs, tmp_path / out)
