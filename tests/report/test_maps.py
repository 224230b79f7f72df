"""Where the network looks: what is stored of it, and how it is drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from page_runs import HOSTILE, PREDICTIONS, Page
from PIL import Image
from safetensors.numpy import load_file, save_file

from wideresnet.base.errors import DataError
from wideresnet.report.maps import NUM_EXPLAINED, ActivationMaps, choose_explained, overlay, read_maps, store_maps
from wideresnet.report.pages import write_report
from wideresnet.report.runs import Predictions
from wideresnet.report.thumbnails import THUMBNAIL_PX, encode_small
from wideresnet.spec.record import RunFolder
from wideresnet.training.page import write_page
from wideresnet.weights.hub import read_weights


def test_a_run_stores_the_maps_of_its_own_network(trained: Path) -> None:
    stored, weights = load_file(RunFolder(trained).maps), read_weights(trained)
    logits = load_file(trained / PREDICTIONS)["logits"]
    rows, bias = logits[stored["index"]], weights.network.fc.bias.detach().numpy()
    wanted = np.take_along_axis(rows - bias, stored["labels"], axis=1)
    np.testing.assert_allclose(stored["maps"].mean((2, 3)), wanted, rtol=1e-3, atol=1e-3)
    with np.load(RunFolder(trained).read_recipe().data) as data:
        assert np.array_equal(stored["images"], data["x_test"][stored["index"]])
        assert np.array_equal(stored["labels"][:, 1], data["y_test"][stored["index"]])


def test_the_page_shows_them_on_wrong_and_right_images(run: Path) -> None:
    stored = load_file(RunFolder(run).maps)
    is_wrong = stored["labels"][:, 0] != stored["labels"][:, 1]
    page = Page(write_report(run).page)
    section = page.text.split("Where the network looks")[1].split("Confusion matrix")[0]
    assert ("Wrong, the most confident first" in section, "Right, spread evenly" in section) == (
        is_wrong.any(), (~is_wrong).any(),
    )  # fmt: skip
    alts = [a["alt"] or "" for a in page.all("img")]
    assert sum(alt.startswith("what speaks for") for alt in alts) == len(is_wrong) + is_wrong.sum()
    assert any(HOSTILE in alt for alt in alts)


def test_a_page_without_maps_names_the_command_that_draws_them(run: Path) -> None:
    RunFolder(run).maps.unlink()
    page = Page(write_report(run).page)
    assert f"wrn eval {run} --page {run}-eval.html" in page.texts


def test_maps_that_fail_cost_the_maps_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (RunFolder(run).maps, RunFolder(run).report):
        path.unlink()
    monkeypatch.setattr("wideresnet.training.page.activation_maps", lambda *_: np.zeros(1)[2])
    write_page(RunFolder(run))
    assert "the page does not show where the network looks (index 2 is out of bounds" in caplog.text
    assert "Confusion matrix" in Page(RunFolder(run).report).text


def test_maps_of_other_predictions_are_not_shown(run: Path) -> None:
    stored = load_file(run / PREDICTIONS)
    save_file({"logits": -stored["logits"], "labels": stored["labels"]}, run / PREDICTIONS)
    assert "Where the network looks" not in Page(write_report(run).page).text
    RunFolder(run).maps.unlink()
    assert "Where the network looks" not in Page(write_report(run).page).text


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "type"])
def test_damaged_maps_are_an_error_that_names_the_file(run: Path, damage: str) -> None:
    path = RunFolder(run).maps
    stored = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        changes = {
            "shape": {"maps": stored["maps"][1:]},
            "nan": {"maps": stored["maps"] * np.float32("nan")},
            "type": {"images": stored["images"].astype(np.float32)},
        }
        save_file(stored | changes[damage], path)
    with pytest.raises(DataError, match=r"activation_maps\.safetensors: not a run's activation maps"):
        write_report(run)


def test_the_most_confident_mistakes_and_right_images_all_over_the_set_are_chosen() -> None:
    labels = np.zeros(100, np.int64)
    logits = np.zeros((100, 2))
    logits[:, 0] = 5
    logits[60:80] = [[0, 1 + i] for i in range(20)]
    index, both = choose_explained(Predictions.of(logits, labels, ["a", "b"]))
    assert index[:NUM_EXPLAINED].tolist() == list(range(79, 79 - NUM_EXPLAINED, -1))
    right = index[NUM_EXPLAINED:]
    assert len(right) == NUM_EXPLAINED
    assert right.min() < 10
    assert right.max() > 80
    assert both[0].tolist() == [1, 0]
    assert both[-1].tolist() == [0, 0]
    all_right, _ = choose_explained(Predictions.of(logits[:3], labels[:3], ["a", "b"]))
    assert all_right.tolist() == [0, 1, 2]


def test_large_images_are_stored_small(tmp_path: Path) -> None:
    images = np.zeros((2, 300, 600, 1), np.uint8)
    labels = np.zeros((2, 2), np.int64)
    maps = ActivationMaps.of(np.arange(2), labels, np.ones((2, 2, 4, 8), np.float32), images)
    assert maps.images.shape == (2, THUMBNAIL_PX // 2, THUMBNAIL_PX, 1)
    folder = RunFolder(tmp_path)
    predictions = Predictions.of(np.array([[1.0, 0.0]] * 2), np.zeros(2, np.int64), ["a", "b"])
    assert read_maps(folder, predictions) is None
    store_maps(folder, maps)
    read = read_maps(folder, predictions)
    assert read is not None
    assert all(np.array_equal(getattr(read, name), value) for name, value in vars(maps).items())


def test_an_overlay_is_gray_where_nothing_speaks_for_the_class_and_hot_where_most_does() -> None:
    image = np.full((8, 8, 3), 120, np.uint8)
    activation = np.full((8, 8), -3.0, np.float32)
    activation[:4, :4] = 2
    drawn = overlay(image, activation, 2.0).astype(int)
    side = len(drawn)
    assert side >= 96
    assert drawn[-1, -1].tolist() == [120, 120, 120]
    red, green, blue = drawn[side // 8, side // 8]
    assert red > 200 > 120 > green > blue
    assert overlay(image, np.zeros((8, 8), np.float32), 0.0).max() == 120


def test_small_images_keep_their_pixels_on_a_page_and_large_ones_become_small_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 40, 3), np.uint8)
    content, kind, is_exact = encode_small(pixels)
    assert (kind, is_exact) == ("image/png", True)
    with Image.open(io.BytesIO(content)) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    content, kind, is_exact = encode_small(np.zeros((500, 1000, 1), np.uint8))
    assert (kind, is_exact) == ("image/jpeg", False)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (THUMBNAIL_PX, THUMBNAIL_PX // 2)
