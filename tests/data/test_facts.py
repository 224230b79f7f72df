from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from wideresnet.data import FACTS, load_dataset
from wideresnet.data.facts import recognize


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_whole(name: str) -> None:
    known = FACTS[name]
    assert known.name == name
    assert len(known.class_names) == len(set(known.class_names)) == (100 if name == "cifar100" else 10)
    assert len(known.mean) == len(known.std) == len(known.true_mean) == len(known.true_std) == known.channels
    assert all(0 < value < 255 for value in known.mean + known.std)


def test_classes_of_cifar_are_in_label_order() -> None:
    assert FACTS["cifar10"].class_names.index("cat") == 3
    assert FACTS["cifar100"].class_names == tuple(sorted(FACTS["cifar100"].class_names))


def test_digits_may_not_be_mirrored() -> None:
    assert {name for name, facts in FACTS.items() if facts.mirror} == {"cifar10", "cifar100"}


def test_digits_are_those_of_scikit_learn() -> None:
    bunch: Any = load_digits()
    dataset = load_dataset("digits")
    is_test = np.arange(1797) % 5 == 0
    for part, chosen in ((dataset.train, ~is_test), (dataset.test, is_test)):
        assert np.array_equal(part.images[..., 0], np.rint(bunch.images[chosen] * (255 / 16)))
        assert np.array_equal(part.labels, bunch.target[chosen])


def test_digits_that_scikit_learn_has_elsewhere_are_read_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = load_dataset("digits")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert np.array_equal(load_dataset("digits").train.images, usual.train.images)


def test_the_statistics_of_digits_are_those_of_its_pixels() -> None:
    images = load_dataset("digits").train.images.astype(np.float64)
    assert FACTS["digits"].mean == (round(images.mean(), 3),)
    assert FACTS["digits"].std == (round(images.std(), 3),)


def test_cifar_is_recognized_only_with_its_counts_classes_and_means() -> None:
    small = replace(FACTS["cifar10"], num_train=50, num_test=10)  # as the real one, but quick to average

    def images(num_images: int = 50, level: float = 0.0) -> np.ndarray:
        return np.broadcast_to(np.array(small.true_mean) + level, (num_images, 32, 32, 3))

    assert recognize(images(level=0.1), 10, 10, [small]) is small
    assert recognize(images(level=0.5), 10, 10, [small]) is None
    assert recognize(images(), 9, 10, [small]) is None
    assert recognize(images(), 10, 100, [small]) is None
    assert recognize(images(49), 10, 10, [small]) is None
    assert recognize(images()[:, :31], 10, 10, [small]) is None
