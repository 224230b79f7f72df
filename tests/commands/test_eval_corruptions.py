"""`wrn eval --corruptions`, from the command line to its table and files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wideresnet import create
from wideresnet.commands.main import main
from wideresnet.data.corruptions import CORRUPTIONS
from wideresnet.data.preprocess import Preprocessing
from wideresnet.weights.hub import Weights, write_weights


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network for digits that has not been trained."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Path("weights").mkdir()
    network = create("WRN-10-1", 10, in_channels=1).eval()
    write_weights(Path("weights"), Weights(network, Preprocessing("scale"), tuple(map(str, range(10))), (8, 8)))
    return Path("weights")


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--data", "digits", "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_people_get_a_table_in_80_columns_and_nothing_is_written(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(weights), "--data", "digits", "--corruptions", "--limit", "20"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert all(
        word in text for word in ("test error", "20 test images", "% mean corruption error", "NLL, nats", "ECE, %")
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["corruption", "1", "2", "3", "4", "5", "mean", "NLL", "ECE"] in rows
    assert sum(row[:1] in (["Gaussian"], ["JPEG"], ["fog"], ["mean"]) for row in rows) == 4
    assert [path.name for path in Path().iterdir()] == ["weights"]


def test_the_document_has_the_clean_result_and_each_error(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = evaluated(capsys, weights, "--corruptions", "--limit", 40)
    assert document.keys() == {
        "clean", "severities", "corruptions", "loss", "ece_pct", "mean_error_pct", "mean_loss", "mean_ece_pct",
        "seconds", "images_per_s", "notes",
    }  # fmt: skip
    assert list(document["corruptions"]) == list(CORRUPTIONS)
    plain = evaluated(capsys, weights, "--limit", 40)
    assert document["clean"].keys() == plain.keys()
    assert [document["clean"][key] for key in ("loss", "num_images")] == [plain["loss"], 40]


def test_the_page_and_the_table_are_written_if_asked_for(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--page", "new/page.html", "--csv", "errors.csv")
    document = evaluated(capsys, weights, "--corruptions", "--limit", 20, *files)
    assert document["page"] == "new/page.html"
    assert f"{document['mean_error_pct']:.2f} %" in Path("new/page.html").read_text()
    with Path("errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 51
    assert float(rows[0]["error_pct"]) == document["clean"]["error_pct"]
    for row in rows[1:]:
        place = int(row["severity"]) - 1
        for key, column in (("corruptions", "error_pct"), ("loss", "loss"), ("ece_pct", "ece_pct")):
            assert float(row[column]) == document[key][row["corruption"]][place]
