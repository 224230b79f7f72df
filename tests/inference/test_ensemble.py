"""Ensembles: the mean of the members' probabilities, beside each member, of the same classes alone."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_published_corruptions import make_folder, make_weights

from wideresnet.base.errors import UsageError
from wideresnet.base.metrics import expected_calibration_error
from wideresnet.commands.main import main
from wideresnet.data import Dataset, load_dataset
from wideresnet.data.corruptions import PUBLISHED
from wideresnet.data.preprocess import Preprocessing
from wideresnet.inference.corruptions import measure_corruptions
from wideresnet.inference.ensemble import average, measure_ensemble, prepare_ensemble
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.networks import create
from wideresnet.weights.hub import Weights, write_weights


@pytest.fixture
def data(make_npz: Any) -> Dataset:
    return load_dataset(make_npz(num_test=100))


def member(folder: Path, seed: int, data: Dataset, **changes: Any) -> Path:
    torch.manual_seed(seed)
    network = create("WRN-10-1", len(data.class_names)).eval()
    with torch.no_grad():
        network.fc.weight *= 20
    preprocessing = Preprocessing("mean_std", (100.0 + seed,) * 3, (60.0,) * 3)  # each has its own
    folder.mkdir()
    write_weights(folder, dataclasses.replace(Weights(network, preprocessing, data.class_names, (8, 8)), **changes))
    return folder


def test_an_ensemble_answers_by_the_mean_probability(tmp_path: Path, data: Dataset) -> None:
    paths = [member(tmp_path / str(seed), seed, data) for seed in range(3)]
    ensemble = prepare_ensemble(paths, data, device="cpu")
    result = measure_ensemble(ensemble)
    alone = [evaluate_weights(path, data, device="cpu") for path in paths]
    for found, expected in zip(result["members"], alone, strict=True):
        assert found == {key: expected[key] for key in ("weights", "network", "error_pct", "loss", "ece_pct")}
    probabilities = torch.stack([each.run(each.images).double().softmax(1) for each in ensemble.members]).mean(0)
    labels = torch.from_numpy(data.test.labels)
    own = probabilities[torch.arange(100), labels]
    assert result["loss"] == pytest.approx(float(-own.log().mean()), rel=1e-6)
    assert result["error_pct"] == 100 * float((probabilities.argmax(1) != labels).double().mean())
    ece = expected_calibration_error(probabilities.log().numpy(), data.test.labels)
    assert result["ece_pct"] == pytest.approx(ece, rel=1e-5)
    assert result["loss"] < result["mean"]["loss"]  # Jensen's inequality
    for key in ("error_pct", "loss", "ece_pct"):
        assert result["mean"][key] == pytest.approx(sum(each[key] for each in alone) / 3)
    assert result["network"] == "ensemble of 3 x WRN-10-1"
    assert json.loads(json.dumps(result)) == result


def test_certain_members_that_disagree_give_finite_likelihoods() -> None:
    logits = [torch.tensor([[2000.0, 0.0, 0.0]]), torch.tensor([[0.0, 2000.0, 0.0]])]
    assert average(logits)[0, :2].tolist() == pytest.approx([math.log(0.5)] * 2)
    assert average(logits).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("0", "1", "3", "2")}, "has '3' as class 2, .* has '2'; average networks that were trained"),
        ({"input_size": (9, 9)}, r"takes images of \(9, 9\), .* \(8, 8\); an ensemble sees the same images"),
        ({"network": create("WRN-10-1", 4, in_channels=1), "preprocessing": Preprocessing("scale")},
         "takes channels: 1, .* 3; an ensemble"),
        ({"network": create("WRN-10-1", 3), "class_names": ("0", "1", "2")}, "knows 3 classes, .* 4; average networks"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, data: Dataset, changes: dict[str, Any], message: str
) -> None:
    paths = [member(tmp_path / "a", 0, data), member(tmp_path / "b", 1, data, **changes)]
    with pytest.raises(UsageError, match=message) as caught:
        prepare_ensemble(paths, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_networks_are_no_ensemble(tmp_path: Path, data: Dataset, num: int) -> None:
    with pytest.raises(UsageError, match=f"ensemble=True: averages at least two networks, {num} is given"):
        prepare_ensemble([member(tmp_path / str(seed), seed, data) for seed in range(num)], data)


def test_an_ensemble_is_measured_on_corrupted_images_like_a_network(tmp_path: Path, data: Dataset) -> None:
    paths = [member(tmp_path / str(seed), seed, data) for seed in range(2)]
    ensemble = prepare_ensemble(paths, data, limit=20, device="cpu")
    result = measure_corruptions(ensemble, ["fog"])
    assert result["clean"]["loss"] == measure_ensemble(ensemble)["loss"]
    assert len(result["corruptions"]["fog"]) == 5


def test_the_command_shows_members_and_writes_files(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        member(Path(f"run{seed}"), seed, data)
    words = ["eval", "run0", "run1", "--data", data.source, "--device", "cpu"]
    assert main(words) == 2
    assert "2 networks: average them with --ensemble, or evaluate them one by one" in capsys.readouterr().err
    assert main(["eval", "run0", "--ensemble", "--data", data.source]) == 2
    assert "--ensemble: averages at least two networks" in capsys.readouterr().err
    assert main([*words, "--ensemble", "--page", "page.html", "--csv", "scores.csv"]) == 0
    text = capsys.readouterr().out
    for part in ("ensemble of 2 x WRN-10-1", "run0", "run1", "mean of the members", "NLL"):
        assert part in text, part
    assert "Members and ensemble" in Path("page.html").read_text()
    with Path("scores.csv").open() as file:
        assert [row["weights"] for row in csv.DictReader(file)] == ["run0", "run1", "ensemble"]
    assert main([*words, "--ensemble", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["members"]) == 2


def test_an_ensemble_on_published_corrupted_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        write_weights(Path(name), make_weights())
    folder = make_folder(Path("CIFAR-10-C"), PUBLISHED[:1])
    single = ["eval", "a", "--data", str(folder), "--device", "cpu", "--json"]
    assert main(single) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([single[0], "a", "b", *single[2:], "--ensemble"]) == 0
    assert json.loads(capsys.readouterr().out)["corruptions"] == alone["corruptions"]  # twice the same network
