"""The page of a folder of several seeds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wideresnet.commands.main import main
from wideresnet.spec.record import SeedsFolder

RECORDS = sorted((Path(__file__).parent.parent.parent / "results").glob("wrn-16-2-cifar10-fast-seed*"))


@pytest.fixture
def seeds(tmp_path: Path) -> SeedsFolder:
    """Three recorded seeds as `fit_seeds` leaves them, and one that has only begun."""
    folder = SeedsFolder(tmp_path / "seeds")
    for seed, record in enumerate(RECORDS):
        shutil.copytree(record, folder.run(seed).path)
    folder.write_summary({"recipe": folder.run(0).read_recipe().to_json()})
    begun = folder.run(10)
    begun.path.mkdir()
    shutil.copy(folder.run(0).recipe, begun.recipe)
    return folder


def test_the_seeds_are_compared_in_their_order(seeds: SeedsFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run.path.name for run in seeds.runs()] == ["seed0", "seed1", "seed2", "seed10"]
    assert main(["report", str(seeds.path)]) == 0
    assert str(seeds.page) in capsys.readouterr().out.replace("\n", "")
    page = seeds.page.read_text()
    assert "seed0" in page
    assert "seed2" in page
    assert "seed10" not in page


def test_seeds_without_a_finished_epoch_are_refused(seeds: SeedsFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        seeds.run(seed).metrics.write_bytes(b"")
        seeds.run(seed).result.unlink()
    assert main(["report", str(seeds.path)]) == 2
    assert "no seed has finished an epoch" in " ".join(capsys.readouterr().err.split())
