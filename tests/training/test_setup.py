"""`prepare`: what data and recipe decide together before the first step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.data import load_dataset
from wideresnet.spec.recipe import Recipe
from wideresnet.training import resolve_for_data
from wideresnet.training.setup import prepare

prepare_module = sys.modules["wideresnet.training.setup"]  # the package has the function under the same name

MakeNpz = Callable[..., Path]


def job_of(data: Path, **changes: object):
    values = {
        "network": "WRN-10-1",
        "batch_size": 16,
        "crop_padding": 1,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }
    return prepare(Recipe.from_json({"data": str(data), **values}), load_dataset(data))


def test_a_name_with_two_readings_is_decided_by_the_size_of_the_images(make_npz: MakeNpz) -> None:
    small = job_of(make_npz(size=8), network="WRN-34-1")
    assert (small.recipe.family, len(small.network.trunk())) == ("cifar", 3)
    large = job_of(make_npz(size=112, num_train=16, num_test=4), network="WRN-34-1")
    assert (large.recipe.family, len(large.network.trunk())) == ("imagenet", 4)
    asked = job_of(make_npz(size=8), network="WRN-34-1", family="imagenet", norm="group")
    assert asked.recipe.family == "imagenet"
    assert any("made for images of 224x224" in note for note in asked.notes)


def test_the_network_takes_the_data_s_channels_and_classes(make_npz: MakeNpz) -> None:
    job = job_of(make_npz(channels=1, num_classes=7))
    assert job.network.in_channels == 1
    assert job.network.num_classes == 7


def test_first_weights_are_a_function_of_the_seed_alone(make_npz: MakeNpz) -> None:
    data = make_npz()
    first = job_of(data).network.state_dict()
    torch.manual_seed(99)
    again, other = job_of(data).network.state_dict(), job_of(data, seed=1).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_statistics_are_those_of_the_images_trained_on(make_npz: MakeNpz) -> None:
    data = make_npz()
    assert job_of(data).preprocessing != job_of(data, holdout=32).preprocessing


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_fraction": 0.3}, "warmup_fraction 0.3 has no effect with schedule steps"),
        ({"schedule": "one_cycle", "lr_drop_factor": 0.5}, "lr_drop_factor 0.5 has no effect with schedule one_cycle"),
        ({"crop_padding": 0, "padding_mode": "zero"}, "padding_mode zero has no effect without a crop"),
        ({"norm": "group", "bn_momentum": 0.2}, "bn_momentum=0.2 has no effect with norm='group'"),
        ({"network": "WRN-16-1-l1", "dropout": 0.2}, "dropout=0.2 has no effect in WRN-16-1-l1"),
        ({"epochs": 70}, "no drop of lr at epoch 120: the run has 70 epochs"),
        ({"limit": 32}, "trained on 32 of 64 images"),
        ({"holdout": 16}, "16 training images are held out"),
    ],
)
def test_a_setting_without_effect_or_with_an_unexpected_one_is_told(
    make_npz: MakeNpz, changes: dict[str, object], expected: str
) -> None:
    assert any(note.startswith(expected) for note in job_of(make_npz(), **changes).notes)


def test_the_plain_recipe_has_nothing_to_tell(make_npz: MakeNpz) -> None:
    assert not [note for note in job_of(make_npz()).notes if "effect" in note or "drop" in note]


def test_flipping_digits_is_told() -> None:
    recipe, _, dataset = resolve_for_data("paper", "WRN-10-1", "digits", {"flip": True, "device": "cpu"})
    assert any("--no-flip" in note for note in prepare(recipe, dataset).notes)


def test_a_batch_of_one_whose_last_maps_are_one_position_is_refused(make_npz: MakeNpz) -> None:
    data = make_npz(num_train=33, size=8)
    with pytest.raises(UsageError, match="leaves a batch of one"):
        job_of(data, network="ResNet-18", drop_last=False)
    job_of(data, network="ResNet-18", drop_last=False, norm="group")
    job_of(data, network="ResNet-18", drop_last=True)
    job_of(data, network="WRN-10-1", drop_last=False)


def test_a_part_of_one_whose_last_maps_are_one_position_is_refused(make_npz: MakeNpz) -> None:
    data = make_npz(size=3)
    with pytest.raises(UsageError, match=r"leaves a part of one.* use another --accumulate"):
        job_of(data, crop_padding=0, accumulate=16)
    assert job_of(data, crop_padding=0, accumulate=8)


def test_what_accumulating_does_to_batch_normalisation_is_told(make_npz: MakeNpz) -> None:
    data = make_npz()
    note = job_of(data, accumulate=3).notes[0]
    assert note == (
        "accumulate 3: a batch of 16 is computed in parts of at most 6 images; batch normalisation's statistics are "
        "those of a part"
    )
    note = job_of(data, accumulate=3, norm="group").notes[0]
    assert note.endswith("6 images")


@pytest.mark.parametrize(
    ("preprocessing", "image_bytes"), [("mean_std", 3 * 10 * 10), ("zca", 4 * 3 * (10 * 10 + 8 * 8))]
)
def test_a_training_set_that_cannot_fit_is_refused_before_it_is_put_on_the_device(
    make_npz: MakeNpz, monkeypatch: pytest.MonkeyPatch, preprocessing: str, image_bytes: int
) -> None:
    data, num_bytes = make_npz(), 64 * image_bytes  # padded by one; ZCA's is in float32, and padded from a copy
    monkeypatch.setattr(prepare_module, "available_memory_bytes", lambda _device: num_bytes)
    job_of(data, preprocessing=preprocessing)
    monkeypatch.setattr(prepare_module, "available_memory_bytes", lambda _device: num_bytes - 1)
    monkeypatch.setattr(prepare_module, "Feed", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"own.npz: 64 training images of 8x8 need .* on cpu, .*; use --limit 63 or"):
        job_of(data, preprocessing=preprocessing)


def test_a_wrong_name_is_told_before_the_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["wideresnet.training.setup"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "load_for", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(UsageError, match="WRN-28-10"):
        resolve_for_data("paper", "WRN-29-10", "digits")
