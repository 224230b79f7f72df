"""`prepare`: what data and recipe decide together before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.data import load_dataset
from wideresnet.data.feeds.resident import Feed
from wideresnet.distributed.world import World
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Job, prepare, resolve_for_data, setup
from wideresnet.training.setup import TrainingData, build_feed

MakeNpz = Callable[..., Path]


def job_of(data: Path, **changes: object) -> Job:
    values = {"network": "WRN-10-1", "batch_size": 16, "crop_padding": 1, "device": "cpu", "precision": "fp32"}
    job, _ = prepare(Recipe.flat(**{"data": str(data), **values, **changes}), load_dataset(data))
    return job


def test_a_name_with_two_readings_is_decided_by_the_size_of_the_images(make_npz: MakeNpz) -> None:
    small = job_of(make_npz(size=8), network="WRN-34-1")
    assert (small.recipe.family, len(small.network.trunk())) == ("cifar", 3)
    large = job_of(make_npz(size=112, num_train=16, num_test=4), network="WRN-34-1")
    assert (large.recipe.family, len(large.network.trunk())) == ("imagenet", 4)
    asked = job_of(make_npz(size=8), network="WRN-34-1", family="imagenet", norm="group")
    assert asked.recipe.family == "imagenet"
    assert any("made for images of 224x224" in note for note in asked.notes)


def test_the_network_takes_channels_and_classes_of_the_data(make_npz: MakeNpz) -> None:
    job = job_of(make_npz(channels=1, num_classes=7))
    assert job.network.in_channels == 1
    assert job.network.num_classes == 7


def test_initial_weights_are_a_function_of_the_seed_alone(make_npz: MakeNpz) -> None:
    data = make_npz()
    first = job_of(data).network.state_dict()
    torch.manual_seed(99)
    again, other = job_of(data).network.state_dict(), job_of(data, seed=1).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_statistics_are_those_of_the_images_trained_on(make_npz: MakeNpz) -> None:
    data = make_npz()
    assert job_of(data).data.preprocessing != job_of(data, holdout=32).data.preprocessing


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_fraction": 0.3}, "warmup_fraction 0.3 has no effect with schedule steps"),
        ({"schedule": "one_cycle", "lr_drop_factor": 0.5}, "lr_drop_factor 0.5 has no effect with schedule one_cycle"),
        (
            {"schedule": "one_cycle", "lr_drop_epochs": (2, 3), "lr_drop_factor": 0.5, "lr_drop_at": "end"},
            "lr_drop_epochs 2,3, lr_drop_factor 0.5 and lr_drop_at end have no effect with schedule one_cycle",
        ),
        ({"schedule": "cosine", "lr_drop_factor": 0.5}, "lr_drop_factor 0.5 has no effect with schedule cosine"),
        ({"auto_augment": "trivial"}, "auto_augment trivial shifts images by up to 32 pixels, which leaves nothing of"),
        ({"crop_padding": 0, "padding_mode": "zero"}, "padding_mode zero has no effect without a crop"),
        ({"norm": "group", "bn_momentum": 0.2}, "bn_momentum 0.2 has no effect with norm group"),
        ({"network": "WRN-16-1-l1", "dropout": 0.2}, "dropout 0.2 has no effect in WRN-16-1-l1"),
        ({"batch_rule": "linear"}, "batch_rule linear has no effect in a single process"),
        ({"deterministic": True}, "deterministic on has no effect on a CPU"),
        ({"weight_decay": 0, "weight_decay_on": "weights"}, "weight_decay_on weights has no effect without weight"),
        ({"epochs": 70}, "no drop of lr at epochs 120, 160: the run has 70 epochs"),
        ({"epochs": 1, "lr_drop_epochs": (1, 2)}, "no drop of lr at epoch 2: the run has 1 epoch"),
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
    job, _ = prepare(recipe, dataset)
    assert any("flip=False" in note for note in job.notes)


def test_a_batch_of_one_whose_last_maps_are_one_position_is_refused(make_npz: MakeNpz) -> None:
    data = make_npz(num_train=33, size=8)
    with pytest.raises(UsageError, match="leaves a batch of one"):
        job_of(data, network="ResNet-18", drop_last=False)
    job_of(data, network="ResNet-18", drop_last=False, norm="group")
    job_of(data, network="ResNet-18", drop_last=True)
    job_of(data, network="WRN-10-1", drop_last=False)


def test_a_part_of_one_whose_last_maps_are_one_position_is_refused(make_npz: MakeNpz) -> None:
    data = make_npz(size=3)
    with pytest.raises(UsageError, match=r"leaves a part of one.* use another accumulate="):
        job_of(data, crop_padding=0, accumulate=16)
    assert job_of(data, crop_padding=0, accumulate=8)


def test_what_accumulating_does_to_batch_normalization_is_told(make_npz: MakeNpz) -> None:
    data = make_npz()
    notes = [job_of(data, accumulate=3, norm=norm).notes[0] for norm in ("batch", "group")]
    assert all(
        note.startswith("accumulate 3: a batch of 16 is computed in parts of at most 6 images") for note in notes
    )
    assert ["batch normalization uses the statistics of each part" in note for note in notes] == [True, False]


@pytest.mark.parametrize(
    ("preprocessing", "image_bytes"), [("mean_std", 3 * 10 * 10), ("zca", 4 * 3 * (10 * 10 + 8 * 8))]
)
def test_a_training_set_that_cannot_fit_is_refused_before_it_is_put_on_the_device(
    make_npz: MakeNpz, monkeypatch: pytest.MonkeyPatch, preprocessing: str, image_bytes: int
) -> None:
    data, num_bytes = make_npz(), 64 * image_bytes  # padded by one; ZCA's is in float32, and padded from a copy
    monkeypatch.setattr(setup, "available_memory_bytes", lambda _device: num_bytes)
    job_of(data, preprocessing=preprocessing)
    monkeypatch.setattr(setup, "available_memory_bytes", lambda _device: num_bytes - 1)
    monkeypatch.setattr(Feed, "hold", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"own\.npz: 64 training images of 8x8 need .* on cpu, .*; use limit=63 or"):
        job_of(data, preprocessing=preprocessing)


def pictures(data: TrainingData) -> tuple[set[bytes], set[bytes]]:
    """The images that are trained on, and those that are validated on."""
    batches = [images for images, _ in data.feed.epoch(0)]
    trained = (255 * torch.cat(batches)).round().to(torch.uint8).permute(0, 2, 3, 1)
    return {image.tobytes() for image in trained.numpy()}, {image.tobytes() for image in data.validation.images}


@pytest.mark.parametrize("limit", [None, 40])
def test_held_out_images_are_drawn_by_the_seed_and_never_trained_on(make_npz: MakeNpz, limit: int | None) -> None:
    dataset = load_dataset(make_npz())
    everything = {image.tobytes() for image in dataset.train.images}
    assert len(everything) == 64

    def split(seed: int) -> tuple[set[bytes], set[bytes]]:
        recipe = Recipe.flat(
            seed=seed, holdout=16, limit=limit, batch_size=8, preprocessing="scale", flip=False, crop_padding=0
        )
        return pictures(build_feed(recipe, dataset, "cpu", World.single()))

    trained, held = split(0)
    assert (len(trained), len(held)) == ((limit or 64) - 16, 16)
    assert not trained & held
    assert trained | held <= everything
    assert split(0) == (trained, held)
    assert split(1)[1] != held


def test_the_digest_tells_other_training_images_from_the_same(make_npz: MakeNpz) -> None:
    dataset = load_dataset(make_npz())

    def digest(**changes: Any) -> str:
        return build_feed(Recipe.flat(batch_size=8, **changes), dataset, "cpu", World.single()).digest

    assert digest() == digest(lr=0.3, crop_padding=0)
    assert len({digest(), digest(holdout=16), digest(holdout=16, seed=1), digest(limit=40)}) == 4
