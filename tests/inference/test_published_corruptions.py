"""CIFAR-10-C's own files: each number is that of a slow loop over them, and damaged or foreign files are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.metrics import expected_calibration_error
from wideresnet.commands.main import main
from wideresnet.data import FACTS
from wideresnet.data.corruptions import CORRUPTIONS, EXTRA, PUBLISHED
from wideresnet.data.preprocess import Preprocessing
from wideresnet.data.readers.corrupted import holds_corrupted, read_corrupted
from wideresnet.inference.published_corruptions import published_corruption_errors
from wideresnet.networks import create
from wideresnet.weights.hub import Weights, write_weights

NUM, SIDE = 30, 8
NAMES = FACTS["cifar10"].class_names


def make_folder(folder: Path, names: tuple[str, ...] = (*PUBLISHED, *EXTRA), classes: int = 10) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    labels = np.arange(NUM) % classes
    labels[0] = classes - 1
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for name in names:
        np.save(folder / f"{name}.npy", random.integers(0, 256, (5 * NUM, SIDE, SIDE, 3), dtype=np.uint8))
    return folder


def make_weights(names: tuple[str, ...] = NAMES) -> Weights:
    torch.manual_seed(0)
    network = create("WRN-10-1", len(names)).eval()
    with torch.no_grad():
        network.fc.weight *= 20
    return Weights(network, Preprocessing("mean_std", (120.0,) * 3, (60.0,) * 3), names, (SIDE, SIDE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("published") / "CIFAR-10-C")


def test_each_number_is_that_of_a_slow_loop_and_the_four_extra_ones_count_in_no_mean(folder: Path) -> None:
    weights = make_weights()
    result = published_corruption_errors(weights, folder, device="cpu")
    labels = torch.from_numpy(np.load(folder / "labels.npy").astype(np.int64))
    assert sorted(result["corruptions"]) == sorted(PUBLISHED)
    assert list(result["extra"]["corruptions"]) == list(EXTRA)
    assert len(PUBLISHED) == 15
    assert set(CORRUPTIONS) < set(PUBLISHED)
    for name in ("frost", "spatter"):
        table = result if name == "frost" else result["extra"]
        images = np.load(folder / f"{name}.npy")
        for severity in range(5):
            part = slice(severity * NUM, (severity + 1) * NUM)
            with torch.no_grad():
                logits = weights.network(weights.preprocessing(torch.from_numpy(images[part])))
            errors = (logits.argmax(1) != labels[part]).double().mean()
            assert table["corruptions"][name][severity] == pytest.approx(100 * float(errors))
            nll = torch.nn.functional.cross_entropy(logits, labels[part])
            assert table["loss"][name][severity] == pytest.approx(float(nll), rel=1e-5)
            ece = expected_calibration_error(logits.numpy(), labels[part].numpy())
            assert table["ece_pct"][name][severity] == pytest.approx(ece, rel=1e-4)
    assert result["mean_error_pct"] == pytest.approx(np.mean(list(result["corruptions"].values())))
    assert result["missing"] == result["notes"] == []
    assert json.loads(json.dumps(result)) == result


def test_a_limit_takes_the_same_images_at_each_severity(folder: Path) -> None:
    weights = make_weights()
    result = published_corruption_errors(weights, folder, limit=10, device="cpu")
    assert result["about"]["num_images"] == 10
    chosen = np.arange(0, NUM, 3)
    labels = np.load(folder / "labels.npy")[chosen].astype(np.int64)
    with torch.no_grad():
        images = np.load(folder / "fog.npy")[2 * NUM : 3 * NUM][chosen]
        logits = weights.network(weights.preprocessing(torch.from_numpy(images)))
    assert result["corruptions"]["fog"][2] == pytest.approx(100 * (logits.argmax(1).numpy() != labels).mean())


def test_classes_in_another_order_are_matched_by_their_names(folder: Path) -> None:
    weights = make_weights()
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    other = make_weights(tuple(NAMES[place] for place in order))
    other.network.load_state_dict(weights.network.state_dict())
    with torch.no_grad():
        other.network.fc.weight.copy_(weights.network.fc.weight[order])
        other.network.fc.bias.copy_(weights.network.fc.bias[order])
    found, expected = (published_corruption_errors(each, folder, device="cpu") for each in (other, weights))
    assert found["corruptions"] == expected["corruptions"]


def test_a_missing_corruption_is_named_and_the_mean_is_not_called_published(tmp_path: Path) -> None:
    names = tuple(name for name in PUBLISHED if name not in ("frost", "snow"))
    result = published_corruption_errors(make_weights(), make_folder(tmp_path / "part", names), device="cpu")
    assert (sorted(result["missing"]), result["extra"]) == (["frost", "snow"], None)
    assert result["notes"] == [
        "2 of the 15 corruptions that count are missing (snow, frost): the mean is over the others, and not the "
        "published one"
    ]
    with pytest.raises(UsageError, match="none of the 15 corruptions that count is there"):
        published_corruption_errors(make_weights(), make_folder(tmp_path / "extra", EXTRA), device="cpu")


def test_networks_of_other_classes_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    hundred = make_weights(FACTS["cifar100"].class_names)
    with pytest.raises(UsageError) as caught:
        published_corruption_errors(hundred, folder)
    assert "10 classes (airplane, automobile, bird, ...), but the weights know 100 (apple," in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="class 0 is 'airplane', but in the weights it is 'ant'"):
        published_corruption_errors(make_weights(("ant", *NAMES[1:])), folder)
    many = make_folder(tmp_path / "C100", ("fog",), classes=NUM)
    assert read_corrupted(many).dataset.class_names[:2] == ("0", "1")  # neither 10 nor 100 classes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog", np.zeros((5 * NUM, SIDE, SIDE), np.uint8), r"fog.npy: uint8 \(150, 8, 8\); must be uint8"),
        ("fog", np.zeros((5 * NUM, SIDE, SIDE, 3)), "fog.npy: float64"),
        ("fog", np.zeros((4 * NUM, SIDE, SIDE, 3), np.uint8), "30 images at each of 5 severities, as labels.npy says"),
        ("fog", np.array([{"a": 1}], dtype=object), "fog.npy: not a complete .npy file of numbers"),
        ("labels", np.zeros(7, np.int64), "must be a whole number per image, for 5 severities"),
        ("labels", np.zeros(5 * NUM), "labels.npy: float64"),
        ("labels", np.arange(5 * NUM), "differs between severities"),
        ("labels", np.full(5 * NUM, 10**6), "labels from 1000000 to 1000000"),
        ("labels", np.full(5 * NUM, -1), "labels from -1 to -1"),
    ],
)  # fmt: skip
def test_files_of_other_things_are_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    folder = make_folder(tmp_path / "bad", ("brightness", "fog"))
    np.save(folder / f"{name}.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=message) as caught:
        read_corrupted(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 50, 0.7])
def test_truncated_files_are_refused(tmp_path: Path, kept: float) -> None:
    folder = make_folder(tmp_path / "cut", ("fog",))
    content = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(DataError, match=r"fog.npy: not a complete .npy file"):
        read_corrupted(folder)


def test_a_folder_without_labels_is_none_of_these(tmp_path: Path) -> None:
    np.save(tmp_path / "fog.npy", np.zeros(3))
    assert not holds_corrupted(tmp_path)


def test_the_command_shows_writes_and_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    write_weights(Path("weights"), make_weights())
    words = ["eval", "weights", "--data", str(folder), "--device", "cpu"]
    assert main([*words, "--page", "page.html", "--csv", "errors.csv"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("mean corruption error", "30 images per corruption", "corruptions that do not count", "NLL", "ECE"):
        assert part in text, part
    assert "clean" not in text
    page = Path("page.html").read_text()
    assert "elastic transform" in page
    assert "Corruptions that do not count" in page
    with Path("errors.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 19 * 5
    assert main([*words, "--corruptions"]) == 2
    assert "--corruptions: " in (err := capsys.readouterr().err)
    assert "holds corrupted images already" in err
    assert main([*words, "--int8"]) == 2
    assert "has none; leave it out" in capsys.readouterr().err
