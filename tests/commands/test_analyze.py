"""`wrn analyze`, from the command line to its files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wideresnet import create
from wideresnet.commands.main import main
from wideresnet.data.preprocess import Preprocessing
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.report.pages import write_report
from wideresnet.spec.analysis import read_analyses
from wideresnet.spec.recipes import resolve
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit
from wideresnet.weights.hub import Weights, write_weights

FILES = {"analysis.json", "analysis.html", "analysis-blocks.svg", "analysis-similarity.svg"}
NETWORK_KEYS = {
    "weights", "weights_sha256", "network", "params", "dataset", "num_test_images", "device", "seconds", "notes",
    "num_images", "num_compared", "error_pct", "blocks", "similarity",
}  # fmt: skip
BLOCK_KEYS = {
    "name", "projects", "params", "error_without_pct", "branch_share", "gradient_norm", "gradient_share",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits; `run` copies it and nothing changes it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = {"epochs": 1, "batch_size": 128, "crop_padding": 1, "precision": "fp32", "device": "cpu"}
    fit(resolve("quick", "WRN-10-1", "digits", settings, known_as="digits", num_train=1437), folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, "run"))


def random_weights(folder: Path, name: str = "WRN-16-1", names: int = 10, channels: int = 1) -> Path:
    folder.mkdir()
    network = create(name, names, in_channels=channels)
    classes = tuple(map(str, range(names)))
    write_weights(folder, Weights(network, Preprocessing("scale"), classes, (8, 8)))
    return folder


def analyzed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["analyze", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["analyze", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_a_run_gets_its_files_and_a_section_on_its_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "run", "--limit", "64", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "64 of 360 test images of digits" in text
    assert all(name in text for name in ("WRN-10-1", "conv2.1", "conv4.1", "projection", "run/analysis.html"))
    assert max(map(len, text.splitlines())) <= 80
    assert {path.name for path in run.iterdir()} >= FILES
    (analysis,) = read_analyses(run / "analysis.json")
    page = (run / "report.html").read_text()
    assert "<h2>Blocks</h2>" in page
    assert 'href="analysis.html"' in page
    assert f"{analysis.blocks[0].error_without_pct:.2f}" in (run / "analysis.html").read_text()
    RunFolder(run).check_free(overwrite=True)  # its files are the run's own, so that it can be replaced


def test_the_error_of_the_whole_network_is_that_of_wrn_eval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (network,) = analyzed(capsys, run, "--limit", 5000)["networks"]
    assert network["error_pct"] == evaluate_weights(run, device="cpu")["error_pct"]
    assert network["num_images"] == network["num_test_images"] == 360


def test_the_document_has_these_keys(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = analyzed(capsys, run, "--limit", 8)
    assert document.keys() == {"networks", "page", "files"}
    (network,) = document["networks"]
    assert network.keys() == NETWORK_KEYS
    assert all(block.keys() == BLOCK_KEYS for block in network["blocks"])
    assert network["weights_sha256"] == RunFolder(run).digests().values["model.safetensors"]
    assert np.shape(network["similarity"]) == (3, 3)
    assert all(Path(path).is_file() for path in document["files"])


def test_networks_are_laid_side_by_side_in_a_folder_of_their_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = random_weights(Path("other"))
    document = analyzed(capsys, run, other, "--data", "digits", "--limit", 16)
    page = Path(document["page"])
    assert re.fullmatch(r"runs/analyze-WRN-10-1-[-0-9]+/analysis.html", str(page))
    assert "Blocks of WRN-10-1 and WRN-16-1" in page.read_text()
    assert [each.network for each in read_analyses(page.with_name("analysis.json"))] == ["WRN-10-1", "WRN-16-1"]
    assert (run / "analysis.html").is_file()  # the run has its own, too
    assert sorted(path.name for path in other.iterdir()) == ["config.json", "model.safetensors"]


def test_with_out_all_goes_there_and_runs_stay_as_they_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    shutil.copytree(run, "run2")
    document = analyzed(capsys, run, "run2", "--limit", 8, "--out", "here")
    assert {Path(path).name for path in document["files"]} == FILES == {path.name for path in Path("here").iterdir()}
    assert sorted(run.iterdir()) == before
    assert "WRN-10-1 (run2)" in Path("here/analysis.html").read_text()  # networks of one name are told apart


def test_weights_without_a_run_and_runs_that_have_not_finished_get_a_new_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = random_weights(Path("weights"))
    assert analyzed(capsys, weights, "--data", "digits", "--limit", 8)["page"].startswith("runs/analyze-WRN-16-1-")
    (run / "result.json").unlink()
    assert analyzed(capsys, run / "model.safetensors", "--limit", 8)["page"].startswith("runs/analyze-WRN-10-1-")
    assert not (run / "analysis.json").exists()


def test_requests_that_cannot_be_met_get_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three, color = random_weights(Path("three"), names=3), random_weights(Path("color"), channels=4)
    Path("file").write_text("")
    for words, said in {
        ("nowhere",): "nowhere: no model.safetensors there",
        (three,): "three: no run, so the data is not known; name it with --data",
        (three, "--data", "digits"): "digits: 10 classes (0, 1, 2, ...), but the weights know 3",
        (color, "--data", "digits"): "digits: images of 1 channels, but the weights take 4",
        (run, "--limit", "3"): "--limit 3: must be at least 4",
        (run, run): "run: given twice",
        (run, "--out", "file"): "--out file: is a file",
    }.items():
        (line,) = [line for line in refused(capsys, *words).splitlines() if line.startswith("wrn")]
        assert said in line
    assert {path.name for path in Path().iterdir()} == {"run", "three", "color", "file"}


def test_an_analysis_that_is_of_other_weights_or_damaged_is_named_and_not_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analyzed(capsys, run, "--limit", 8)
    whole = (run / "analysis.json").read_text()

    def section() -> str:
        page = write_report(run).page.read_text()
        return page.split("<h2>Blocks</h2>")[1].split("<h2>")[0]

    assert "<picture>" in section()
    for content, said in (
        (whole.replace('"params": ', '"params": 1'), "does not match its own SHA-256"),
        (whole[:99], "cannot be read as JSON"),
        ('{"networks": [{"network": "WRN-10-1"}]}', "lacks weights"),
        ("{}", "holds no networks"),
    ):
        (run / "analysis.json").write_text(content)
        assert said in section()
        assert "<picture>" not in section()
    other = random_weights(Path("other"))
    shutil.copy(analyzed(capsys, other, "--data", "digits", "--limit", 8)["files"][1], run / "analysis.json")
    assert "is of other weights than these" in section()
