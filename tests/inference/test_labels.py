"""Labels that networks doubt: found whether a network is sure of itself or not, and few false alarms."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wideresnet import check_data, fit, recipe_for
from wideresnet.base.errors import UsageError
from wideresnet.inference.labels import other_classes

NUM_CLASSES = 5


def predictions(sizes: list[int], sureness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities of a network that is right about 97 % of the images, and their true classes.

    Args:
        sizes: images of each class.
        sureness: factor of the logits; 1 is as sure as it is right.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(NUM_CLASSES), sizes)
    logits = random.normal(0, 1, (len(truth), NUM_CLASSES))
    logits[np.arange(len(truth)), truth] += 4.2
    shares = np.exp(sureness * logits)
    return shares / shares.sum(axis=1, keepdims=True), truth


def flipped(truth: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is wrong, and which are."""
    random = np.random.default_rng(1)
    wrong = random.random(len(truth)) < share
    return np.where(wrong, (truth + random.integers(1, NUM_CLASSES, len(truth))) % NUM_CLASSES, truth), wrong


@pytest.mark.parametrize(
    "sizes", [[400] * 5, [1000, 500, 250, 125, 125], [40] * 5], ids=["balanced", "unbalanced", "few"]
)
@pytest.mark.parametrize("sureness", [0.3, 1.0, 4.0], ids=["smoothed", "calibrated", "sharp"])
def test_wrong_labels_are_found_and_named_right_however_sure_the_network_is(sizes: list[int], sureness: float) -> None:
    probabilities, truth = predictions(sizes, sureness)
    labels, wrong = flipped(truth, 0.05)
    found, lead = other_classes(probabilities, labels)
    assert (found[wrong] == truth[wrong]).mean() > 0.75
    assert wrong[found >= 0].mean() > 0.9
    assert (lead[found >= 0] > 0).all()
    alarms, _ = other_classes(probabilities, truth)
    assert (alarms >= 0).mean() < 0.005


def test_a_fixed_threshold_would_find_nothing_after_label_smoothing() -> None:
    probabilities, truth = predictions([400] * 5, 0.3)
    labels, wrong = flipped(truth, 0.05)
    assert probabilities.max() < 0.9
    assert (other_classes(probabilities, labels)[0][wrong] >= 0).mean() > 0.75


def test_a_class_of_few_images_has_the_threshold_of_all() -> None:
    labels = np.array([0] * 20 + [1])
    probabilities = np.tile([0.9, 0.1], (21, 1))
    probabilities[0] = [0.4, 0.6]  # more than the one image of class 1 gets, less than images usually get
    probabilities[3] = [0.1, 0.9]
    found, _ = other_classes(probabilities, labels)
    assert found.tolist() == [-1, -1, -1, 1] + [-1] * 16 + [0]


def test_a_class_that_the_data_does_not_have_can_be_what_an_image_shows() -> None:
    probabilities = np.tile([0.8, 0.2, 0.0], (10, 1))
    probabilities[4] = [0.0, 0.1, 0.9]
    found, lead = other_classes(probabilities, np.zeros(10, dtype=int))
    assert found.tolist() == [-1] * 4 + [2] + [-1] * 5
    assert lead[4] == pytest.approx(0.9)


@pytest.fixture
def halves(tmp_path: Path) -> Callable[..., Path]:
    """Write two classes of images that anyone can tell apart, some with wrong labels; train on a part of them."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 90, (100, 8, 8, 3), dtype=np.uint8), np.arange(100) % 2
    images[labels == 1, :, 4:] += 120
    labels[[4, 9]] = 1 - labels[[4, 9]]
    names = np.array(["dark", "bright"])
    np.savez(tmp_path / "a.npz", x_train=images[:80], y_train=labels[:80], x_test=images[80:], y_test=labels[80:],
             class_names=names)  # fmt: skip

    def train(seed: int, **changes: Any) -> Path:
        recipe = recipe_for("quick", "WRN-10-1", str(tmp_path / "a.npz"))
        values = {"epochs": 5, "batch_size": 20, "crop_padding": 1, "flip": False, "device": "cpu", **changes}
        fit(recipe.replace(seed=seed, **values), tmp_path / f"run{seed}")
        return tmp_path / f"run{seed}"

    return train


def note_of(document: dict[str, Any]) -> str:
    return next((note for note in document["notes"] if "by heart" in note), "")


def test_runs_judge_what_they_held_out_and_say_what_they_learned_from(
    halves: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRN_AUTOTUNE", "off")
    data = tmp_path / "a.npz"
    runs = [halves(seed, holdout=40) for seed in (0, 1, 2)]
    one, several = (check_data(data, given, device="cpu")[0] for given in (runs[0], runs))
    assert re.search(r"agrees with \d+ labels of the 40 images that it learned from", note_of(one))
    left = int(re.findall(r"of the (\d+) images", note_of(several))[0])
    assert 0 < left < 25  # an eighth of 80 is in all three halves
    new = [image for image in several["suspicious"] if not image["is_learned"]]
    assert several["suspicious"][: len(new)] == new
    found = {image["file"] for image in several["suspicious"]}
    assert {"train row 4", "train row 9"} <= found
    assert len(found) <= 4
    assert check_data(data, None)[0]["suspicious"] == []


def test_a_record_of_other_data_says_nothing_about_what_was_held_out(
    halves: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRN_AUTOTUNE", "off")
    run = halves(0, holdout=40, epochs=1)
    with np.load(tmp_path / "a.npz") as arrays:
        values = dict(arrays)
    np.savez(tmp_path / "b.npz", **values)
    assert "of the 80 images" in note_of(check_data(tmp_path / "b.npz", run, device="cpu")[0])
    values["x_train"], values["y_train"] = values["x_train"][:70], values["y_train"][:70]
    np.savez(tmp_path / "a.npz", **values)  # images were removed since
    assert "of the 70 images" in note_of(check_data(tmp_path / "a.npz", run, device="cpu")[0])


def test_runs_of_other_classes_are_not_mixed(
    halves: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRN_AUTOTUNE", "off")
    run = halves(0, epochs=1)
    with np.load(tmp_path / "a.npz") as arrays:
        values = dict(arrays)
    values["class_names"] = np.array(["night", "day"])
    np.savez(tmp_path / "a.npz", **values)
    other = halves(1, epochs=1)
    with pytest.raises(UsageError, match="give runs of the same classes"):
        check_data(tmp_path / "a.npz", [run, other], device="cpu")
