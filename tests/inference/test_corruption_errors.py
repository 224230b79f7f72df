"""Weights on corrupted images: the clean error is that of `wrn eval`, the others those of a slow loop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wideresnet import corruption_errors, create
from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.base.metrics import expected_calibration_error
from wideresnet.data import Dataset, ImageSet, load_dataset
from wideresnet.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from wideresnet.data.preprocess import Preprocessing
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.weights.hub import Weights, write_weights

FEW = ("fog", "gaussian_noise")
TIMES = ("seconds", "images_per_s")


@pytest.fixture
def data(make_npz: Callable[..., Path]) -> Dataset:
    """4 classes of 12 x 12 px, 150 test images: three batches."""
    return load_dataset(make_npz(num_test=150, size=12))


def weights_for(data: Dataset, size: int | None = None) -> Weights:
    """A network that has not been trained, but is not sure of one class either."""
    torch.manual_seed(0)
    images = data.train.images
    network = create("WRN-10-1", len(data.class_names), in_channels=images.shape[3]).eval()
    with torch.no_grad():
        network.fc.weight *= 20
    height, width = images.shape[1:3]
    return Weights(network, Preprocessing.fit("mean_std", images), data.class_names, (size or height, size or width))


def test_clean_is_exactly_what_eval_returns(data: Dataset) -> None:
    weights = weights_for(data)
    result, expected = corruption_errors(weights, data, corruptions=FEW), evaluate_weights(weights, data)
    assert {**result["clean"], **dict.fromkeys(TIMES)} == {**expected, **dict.fromkeys(TIMES)}
    assert 0 < expected["num_errors"] < 150


def test_each_number_is_that_of_a_slow_loop(data: Dataset) -> None:
    weights = weights_for(data)
    result = corruption_errors(weights, data, corruptions=FEW, device="cpu")
    labels = torch.from_numpy(data.test.labels)
    for name in FEW:
        for severity in SEVERITIES:
            logits = []
            for place, image in enumerate(data.test.images):
                corrupted = corrupt(image[None], name, severity, [place])
                with torch.no_grad():
                    logits.append(weights.network(weights.preprocessing(weights.preprocessing.resident(corrupted))))
            found, i = torch.cat(logits), severity - 1
            error_pct = 100 * float((found.argmax(1) != labels).float().mean())
            assert result["corruptions"][name][i] == pytest.approx(error_pct)
            assert result["loss"][name][i] == pytest.approx(float(F.cross_entropy(found.double(), labels)), rel=1e-4)
            ece_pct = expected_calibration_error(found.numpy(), data.test.labels)
            assert result["ece_pct"][name][i] == pytest.approx(ece_pct, abs=0.1)
    for mean, key in (("mean_error_pct", "corruptions"), ("mean_loss", "loss"), ("mean_ece_pct", "ece_pct")):
        assert result[mean] == pytest.approx(np.mean([result[key][name] for name in FEW]))


def test_all_ten_corruptions_by_default_as_plain_json(data: Dataset) -> None:
    result = corruption_errors(weights_for(data), data, limit=10)
    assert json.loads(json.dumps(result)) == result
    assert list(result["corruptions"]) == list(result["loss"]) == list(result["ece_pct"]) == list(CORRUPTIONS)
    assert result["severities"] == [1, 2, 3, 4, 5]
    assert all(len(row) == 5 for key in ("corruptions", "loss", "ece_pct") for row in result[key].values())
    assert any("10 of its 15 corruptions: these are not its files" in note for note in result["notes"])


def test_a_choice_of_corruptions_changes_no_number(data: Dataset) -> None:
    weights = weights_for(data)
    both = corruption_errors(weights, data, corruptions=FEW)
    for name in FEW:
        assert corruption_errors(weights, data, corruptions=name)["corruptions"] == {name: both["corruptions"][name]}
    assert corruption_errors(weights, data, corruptions=("fog", "fog"))["corruptions"].keys() == {"fog"}


def with_test_images(data: Dataset, images: np.ndarray, part: slice = slice(None)) -> Dataset:
    return dataclasses.replace(data, test=ImageSet(images, data.test.labels[part]))


def test_a_set_that_is_corrupted_in_pieces_gives_the_same_bits(make_npz: Callable[..., Path]) -> None:
    data = load_dataset(make_npz(num_test=2100, size=4))
    weights = weights_for(data)
    result = corruption_errors(weights, data, corruptions="gaussian_noise")
    for severity in (1, 5):
        whole = with_test_images(data, corrupt(data.test.images, "gaussian_noise", severity))
        expected = evaluate_weights(weights, whole)
        assert result["corruptions"]["gaussian_noise"][severity - 1] == expected["error_pct"]
        assert result["loss"]["gaussian_noise"][severity - 1] == expected["loss"]
        assert result["ece_pct"]["gaussian_noise"][severity - 1] == expected["ece_pct"]


def test_fewer_images_are_corrupted_as_they_are_among_all(data: Dataset) -> None:
    weights, half = weights_for(data), slice(0, None, 2)
    result = corruption_errors(weights, data, corruptions=FEW, limit=75)
    assert result["clean"]["num_images"] == 75
    assert "75 of 150 test images, spread evenly over the set" in result["clean"]["notes"]
    clean = with_test_images(data, data.test.images[half], half)
    assert result["clean"]["error_pct"] == evaluate_weights(weights, clean)["error_pct"]
    corrupted = with_test_images(data, corrupt(data.test.images, "fog", 5)[half], half)
    assert result["corruptions"]["fog"][4] == evaluate_weights(weights, corrupted)["error_pct"]


def test_gray_images_other_sizes_and_int8_work(make_npz: Callable[..., Path]) -> None:
    gray = load_dataset(make_npz(channels=1, size=9, num_test=20))
    assert corruption_errors(weights_for(gray), gray)["mean_error_pct"] > 0
    result = corruption_errors(weights_for(gray, size=12), gray, corruptions=FEW, int8=True)
    assert result["clean"]["precision"] == "int8"
    assert any("resized from 9 x 9 to 12 x 12 px" in note for note in result["clean"]["notes"])


def test_weights_on_disk_are_those_in_memory(data: Dataset, tmp_path: Path) -> None:
    weights = weights_for(data)
    write_weights(tmp_path, weights)
    stored, given = (corruption_errors(each, data, corruptions=FEW) for each in (tmp_path, weights))
    assert stored["clean"]["weights"] == str(tmp_path)
    assert given["clean"]["weights"] == "WRN-10-1"
    assert stored["corruptions"] == given["corruptions"]
    path = data.source
    assert corruption_errors(weights, path, corruptions=FEW)["corruptions"] == given["corruptions"]


def test_an_interrupted_run_says_how_far_it_came(data: Dataset) -> None:
    lines = []

    class Interrupting(progress.Silent):
        """Ctrl-C while the seventh corrupted set is measured."""

        def task(self, description: str, total: float | None, fields: Any) -> Any:
            del description
            assert (total, fields) == (150 * 11, ("error",))
            return nullcontext(self)

        def update(self, *, description: str = "", **_: object) -> None:
            if description.startswith("gaussian_noise 2"):
                raise KeyboardInterrupt

        def report(self, message: str) -> None:
            lines.append(message)

    progress.set_reporter(Interrupting())
    with pytest.raises(KeyboardInterrupt):
        corruption_errors(weights_for(data), data, corruptions=FEW)
    (line,) = lines
    assert line.startswith("interrupted after 6 of 10 corrupted sets, so there is no result; mean errors of ")
    assert "complete: fog" in line
    assert "gaussian_noise" not in line


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"corruptions": ("fog", "jpeg")},
            r"^corruptions='jpeg': did you mean jpeg_compression\?|^corruptions='jpeg': ",
        ),
        ({"corruptions": ()}, r"^corruptions=\(\): name at least one of gaussian_noise, "),
        ({"limit": 0}, r"^limit=0: must be at least 1$"),
        ({"data": None}, r"^WRN-10-1: weights in memory know no data; name it with data=$"),
    ],
)
def test_a_mistake_gets_one_line(data: Dataset, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        corruption_errors(weights_for(data), **{"data": data, **asked})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_errors_up_to_rounding(data: Dataset) -> None:
    weights = weights_for(data)
    here, there = (corruption_errors(weights, data, device=each, precision="fp32") for each in ("cpu", "cuda"))
    assert next(weights.network.parameters()).device.type == "cpu"
    assert there["clean"]["device"] == "cuda"
    for name in CORRUPTIONS:
        assert there["loss"][name] == pytest.approx(here["loss"][name], rel=1e-2)
        assert there["corruptions"][name] == pytest.approx(here["corruptions"][name], abs=1.5)
