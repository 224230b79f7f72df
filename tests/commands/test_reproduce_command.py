"""`wrn reproduce` as people type it. What it trains is tested in tests/experiments/test_reproduce.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wideresnet.commands.main import main


def test_collecting_needs_no_data_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table3", "--collect", "--seeds", "2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "WRN-40-2-l4  cifar10   5.93" in said
    assert "partial: not all runs have finished" in said
    page = (tmp_path / "table3.html").read_text()
    assert "Partial: 8 of 8 runs have not finished" in page
    assert (tmp_path / "table3.csv").read_text().count("missing") == 8


def test_the_document_has_the_papers_numbers_and_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "reproduce",
        "Table 6",
        "--collect",
        "--dataset",
        "svhn",
        "--scale",
        "0.1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "table6-scale0.1"
    assert [(cell["label"], cell["published_pct"]) for cell in document["cells"]][:2] == [
        ("WRN-16-4", 1.85), ("WRN-16-4, dropout", 1.64),
    ]  # fmt: skip
    assert document["is_partial"]
    assert [Path(file).name for file in document["files"]] == [
        "table6-scale0.1.html", "table6-scale0.1.json", "table6-scale0.1.md", "table6-scale0.1.csv",
    ]  # fmt: skip


def test_all_exhibits_are_collected_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "all", "--collect", "--network", "WRN-16-8", "--out", str(tmp_path), "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [document["name"] for document in documents] == ["table4", "table5", "table6", "table9"]
    assert {cell["network"] for document in documents for cell in document["cells"]} == {"WRN-16-8"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table44"], "did you mean table4"),
        (["table8"], "ImageNet's recipes are not part of this package yet"),
        (["table3", "--dataset", "svhn"], "--dataset svhn: table3 has cifar10"),
        (["table3", "--network", "WRN-28-10"], "WRN-28-10: not a network of table3, which has WRN-40-2-l1"),
        (["table3", "--scale", "2"], "--scale 2.0: must be above 0 and at most 1"),
        (["table3", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["table3", "--data", "digits"], "--data digits: is not CIFAR-10, CIFAR-100 or SVHN, but digits"),
        (["table3", "--merge", "nowhere"], "--merge nowhere: holds no runs of wrn reproduce"),
        (["all", "--network", "WRN-16-8", "--dataset", "coco"], "no table or figure has such networks and data"),
        (["figure4", "--collect"], "bench.json does not exist; leave out --collect to measure"),
    ],
)
def test_mistakes_are_named_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
