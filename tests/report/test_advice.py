"""What a page advises stands on numbers of the record, and nothing is advised without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wideresnet.data.dataset import Dataset, ImageSet
from wideresnet.report.advice import advise
from wideresnet.report.figures import Curve
from wideresnet.report.runs import Predictions, Run
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder


def run_of(train_error_pct: float = 2.0, test_error_pct: float = 3.0, n: int = 10_000, **recipe: Any) -> Run:
    trained = recipe.pop("trained", recipe.get("epochs", 200))
    training = [trained], [train_error_pct], [0.1], [0, 1], [0.1, 0.1]
    curve = Curve("", "test", *training, [1], [test_error_pct], [0.1], True)
    result = {"num_test_images": n, "test_error_pct": test_error_pct}
    asked = {"network": "WRN-16-4", "data": "my photos", "auto_augment": "trivial", "init_from": "x"} | recipe
    return Run(RunFolder("runs/one"), Recipe.flat(**asked), {}, curve, result)


def predictions_of(num_wrong: int, n: int, logit: float = 9.0, num_classes: int = 4) -> Predictions:
    labels = np.arange(n) % num_classes
    predicted = labels.copy()
    predicted[:num_wrong] = (labels + 1 + np.arange(n) // num_classes % (num_classes - 1))[:num_wrong] % num_classes
    return Predictions.of(np.eye(num_classes)[predicted] * logit, labels, [f"c{i}" for i in range(num_classes)])


def dataset_of(counts: tuple[int, ...], side: int = 8, num_test: int = 4) -> Dataset:
    labels = np.arange(len(counts)).repeat(counts)
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, side, side, 3), np.uint8) for n in (len(labels), num_test))
    names = tuple(f"c{i}" for i in range(len(counts)))
    return Dataset("own", "my photos", ImageSet(train, labels), ImageSet(test, np.arange(num_test)), names, None, ())


def findings(
    run: Run,
    changes: dict[str, Any] | None = None,
    predictions: Predictions | None = None,
    dataset: Dataset | None = None,
) -> dict[str, str]:
    return {advice.finding: advice.command for advice in advise(run, changes, predictions, dataset)}


def test_nothing_is_advised_where_nothing_stands_out() -> None:
    assert findings(run_of(), {}, predictions_of(300, 10_000, logit=4.6)) == {}


def test_a_gap_between_training_and_test_error_asks_for_more_images_or_augmentation() -> None:
    found = findings(run_of(1.0, 20.0, auto_augment="none"))
    (command,) = found.values()
    assert "The error is 1.0 % on training images and 20.0 % on test images:" in found
    assert command == "wrn train WRN-16-4 --data 'my photos' --recipe strong --out runs/one-strong"
    assert list(findings(run_of(1.0, 20.0)).values()) == [""]  # it is augmented already
    assert findings(run_of(1.0, 20.0, n=10)) == {}  # which so few images do not show
    assert findings(run_of(1.0, 20.0, mixup=0.2)) == {}  # errors of blends


def test_a_training_set_that_was_not_learned_asks_for_a_wider_network() -> None:
    (command,) = findings(run_of(30.0, 25.0)).values()
    assert command.startswith("wrn train WRN-16-8 ")
    assert command.endswith("--out runs/one-wider")


def test_a_shortened_schedule_is_named_with_the_length_of_the_recipe() -> None:
    found = findings(run_of(epochs=20), {"epochs": (200, 20)})
    assert list(found) == ["The run had 20 epochs; recipe paper has 200 here."]
    assert "--epochs 200" in found["The run had 20 epochs; recipe paper has 200 here."]
    assert findings(run_of(epochs=300), {"epochs": (200, 300)}) == {}


def test_a_run_with_a_time_budget_is_named_with_the_epochs_it_had_and_asks_for_more_time() -> None:
    found = findings(run_of(epochs=45, trained=33, time_s=120.0), {"epochs": (60, 45)})
    assert list(found) == ["The run had 33 epochs; recipe paper has 60 here."]
    assert "--time 4m" in found["The run had 33 epochs; recipe paper has 60 here."]
    assert "--epochs" not in found["The run had 33 epochs; recipe paper has 60 here."]


def test_confident_mistakes_ask_for_a_check_of_the_labels_of_ones_own_data() -> None:
    dataset = dataset_of((60, 60, 60, 60))
    found = findings(run_of(), None, predictions_of(300, 10_000, logit=7), dataset)
    assert found["300 of 300 mistakes were made with a probability of 90 % or more."] == (
        "wrn check 'my photos' --with runs/one"
    )
    assert not [text for text in findings(run_of(), None, predictions_of(300, 10_000)) if "probability of 90" in text]


def test_two_classes_that_are_taken_for_each_other_are_named() -> None:
    labels = np.arange(4).repeat(100)
    predicted = labels.copy()
    predicted[:4], predicted[100:103], predicted[200] = 1, 0, 3
    predictions = Predictions.of(np.eye(4)[predicted] * 5, labels, ["cat", "dog", "owl", "yak"])
    assert "cat and dog are taken for each other in 7 of 8 mistakes." in findings(run_of(), None, predictions)


def test_small_and_unbalanced_classes_are_counted() -> None:
    found = list(findings(run_of(), None, None, dataset_of((500, 60, 20))))
    assert "1 of 3 classes has fewer than 50 training images (c2 20)." in found
    assert "The classes are unbalanced: c0 has 500 training images, c2 20." in found


def test_test_images_that_were_trained_on_are_counted() -> None:
    dataset = dataset_of((60, 60, 60, 60))
    dataset.test.images[:2] = dataset.train.images[:2]
    found = findings(run_of(), None, None, dataset)
    (text,) = [text for text in found if "pixel for pixel" in text]
    assert text.startswith("2 test images of 4 are also in the training set")
    assert found[text] == "wrn check 'my photos'"


def test_few_test_images_are_named_with_what_they_leave_open() -> None:
    (text,) = [text for text in findings(run_of(), None, predictions_of(5, 50)) if "only known" in text]
    assert text == "With 50 test images the error is only known to be between 4.3 and 21.4 %."


def test_probabilities_that_promise_too_much_ask_for_smoothing() -> None:
    found = findings(run_of(), None, predictions_of(1000, 10_000))
    (text,) = [text for text in found if "calibration" in text]
    assert "the expected calibration error is 10.0 %" in text
    assert "--label-smoothing 0.1" in found[text]
    assert not [t for t in findings(run_of(label_smoothing=0.1), None, predictions_of(1000, 10_000)) if "calib" in t]


@pytest.mark.parametrize(("side", "is_named"), [(20, True), (12, False)])
def test_files_that_are_much_larger_than_the_input_are_measured(side: int, is_named: bool, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("c0", "c1"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (side + i, side)).save(tmp_path / split / name / f"{i}.png")
    dataset = replace(dataset_of((60, 60, 60, 60)), source=str(tmp_path))
    found = findings(run_of(data=str(tmp_path)), None, None, dataset)
    wanted = f"The network sees images of 8 px; the shorter side of the files has a median of {side} px."
    assert (wanted in found) == is_named
    if is_named:
        assert "--image-size 16" in found[wanted]


def test_random_weights_and_few_images_ask_for_trained_weights() -> None:
    found = findings(run_of(init_from=None), None, None, dataset_of((60, 60, 60, 60)))
    command = found["The run started from random weights and has 240 training images."]
    assert command.startswith("wrn train WRN-16-4 --data 'my photos' --from WRN-16-4-cifar10 --recipe finetune")
