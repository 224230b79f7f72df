"""ImageNet's recipes have the values of their sources, and stand only where ImageNet's networks are meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.experiments.plan import run_key
from wideresnet.spec.feed_options import FeedOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import base_of, paper, resolve
from wideresnet.spec.recipes_imagenet import modern
from wideresnet.training.schedules import make_schedule

FB_RESNET_TORCH = {
    "epochs": 90, "batch_size": 256, "lr": 0.1, "lr_drop_factor": 0.1, "momentum": 0.9, "nesterov": True,
    "dampening": 0, "weight_decay": 1e-4, "weight_decay_on": "all", "label_smoothing": 0, "flip": True,
    "reset_momentum_at_drops": False,
    "random_resized_crop": 0.08, "color_jitter": 0.4, "pca_lighting": 0.1, "crop_padding": 0, "image_size": 224,
    "eval_size": 224, "eval_resize": 256, "drop_last": False, "mixup": 0, "auto_augment": "none", "init": "fan_out",
    "bn_scale": "one", "ema_decay": 0, "precision": "fp32",
}  # fmt: skip
TORCHVISION_V2 = {
    "epochs": 600, "batch_size": 1024, "schedule": "cosine", "lr": 0.5, "momentum": 0.9, "nesterov": False,
    "weight_decay": 2e-5, "weight_decay_on": "weights", "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1,
    "auto_augment": "trivial", "random_erasing": 0.1, "repeated_augmentation": 4, "image_size": 176, "eval_size": 224,
    "eval_resize": 232, "flip": True, "random_resized_crop": 0.08, "color_jitter": 0, "pca_lighting": 0,
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), [(paper, FB_RESNET_TORCH), (modern, TORCHVISION_V2)])
@pytest.mark.parametrize("network", ["ResNet-50", "WRN-50-2-bottleneck", "WRN-18-2", "ResNeXt-101-32x8d"])
def test_imagenets_networks_have_the_values_of_the_source(make: Any, expected: dict[str, Any], network: str) -> None:
    values = make(network, "/data/imagenet").values()
    assert {key: values[key] for key in expected} == expected


def test_the_rate_is_divided_by_ten_every_thirty_epochs() -> None:
    schedule = make_schedule(paper("ResNet-50", "/data/imagenet"), 10)
    rates = [schedule.lr(10 * epoch) for epoch in range(90)]
    assert rates == pytest.approx([0.1 * 0.1 ** (epoch // 30) for epoch in range(90)])


def test_modern_warms_up_for_five_epochs_and_averages_as_torchvision() -> None:
    recipe = modern("ResNet-50", "/data/imagenet")
    assert recipe.schedule.warmup_fraction * recipe.schedule.epochs == pytest.approx(5)
    per_32_steps = (1 - 0.99998) * 8 * 128 * 32 / 600  # train.py: adjust = world_size * batch_size * steps / epochs
    assert 1 - recipe.optimizer.ema_decay**32 == pytest.approx(per_32_steps, rel=1e-3)


def test_modern_takes_small_batches_of_small_sets() -> None:
    schedule = modern("ResNet-50", "/data/photos", "", 5_000).schedule
    assert (schedule.batch_size, schedule.lr) == (128, 0.5 / 8)
    assert modern("ResNet-50", "/data/imagenet", "", 1_281_167).schedule.batch_size == 1024


def test_the_small_sets_keep_the_papers_own_recipe_whatever_the_network() -> None:
    for data in ("cifar10", "svhn", "digits"):
        assert paper("ResNet-18", data).feed.random_resized_crop == 0
    assert paper("WRN-28-10", "/my/photos").schedule.epochs == 200


def test_a_name_with_two_readings_follows_its_family() -> None:
    assert paper("WRN-34-2", "/data").schedule.epochs == 200
    recipe = resolve("paper", "WRN-34-2", "/data", {"family": "imagenet"})
    assert (recipe.schedule.epochs, recipe.family) == (90, "imagenet")
    assert base_of("paper", "WRN-34-2", "/data", family="imagenet").schedule.epochs == 90
    assert resolve("modern", "WRN-34-2", "/data", {"family": "imagenet"}).feed.image_size == 176


def test_modern_leaves_small_images_at_their_size() -> None:
    feed = modern("WRN-28-10", "cifar10").feed
    assert (feed.image_size, feed.eval_size, feed.eval_resize) == (None, None, None)
    assert modern("WRN-28-10", "svhn").feed.flip is False


def test_a_key_of_a_run_does_not_know_new_fields_that_are_off_nor_how_images_are_read() -> None:
    recipe = paper("WRN-16-4", "cifar10")
    key = run_key(recipe, "digest")
    off = {"random_resized_crop": 0, "color_jitter": 0, "pca_lighting": 0, "random_erasing": 0, "mixup": 0, "cutmix": 0,
           "repeated_augmentation": 1, "eval_size": None, "eval_resize": None}  # fmt: skip
    assert run_key(recipe.replace(**off, feed="stream", workers=3), "digest") == key
    assert run_key(recipe.replace(mixup=0.2), "digest") != key


def test_a_recipe_of_before_loads_with_everything_new_off() -> None:
    old = {key: value for key, value in paper("WRN-16-4", "cifar10").to_json().items()
           if key not in ("random_resized_crop", "color_jitter", "pca_lighting", "random_erasing", "mixup", "cutmix",
                          "repeated_augmentation", "eval_size", "eval_resize", "feed", "workers")}  # fmt: skip
    assert Recipe.from_json(old) == paper("WRN-16-4", "cifar10")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"eval_resize": 200, "eval_size": 224},
            "eval_resize=200: smaller than the crop of 224 px; use eval_resize=224",
        ),
        ({"eval_resize": 200, "image_size": 224}, "eval_resize=200: smaller than the crop of 224 px"),
        ({"preprocessing": "zca", "random_resized_crop": 0.1}, "preprocessing='zca': whitens the whole set in advance"),
        ({"preprocessing": "zca", "pca_lighting": 0.1}, "preprocessing='zca': whitens the whole set in advance"),
        ({"mixup": -1}, "mixup=-1.0: must be at least 0"),
        ({"repeated_augmentation": 0}, "repeated_augmentation=0: must be at least 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeedOptions(**values)


def test_a_whole_file_of_before_stays_what_it_was_and_a_part_takes_the_named_recipes_values(tmp_path: Path) -> None:
    old = {**paper("WRN-16-4", "cifar10").to_json(), "network": "ResNet-50", "data": "/data"}
    (tmp_path / "whole.json").write_text(json.dumps(old))
    assert resolve(str(tmp_path / "whole.json"), "ResNet-50", "/data") == Recipe.from_json(old)
    (tmp_path / "part.json").write_text('{"recipe": "modern", "lr": 1}')
    assert resolve(str(tmp_path / "part.json"), "ResNet-50", "/data").feed.mixup == 0.2


def test_a_file_of_a_run_that_turns_something_off_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = modern("ResNet-50", "/data").replace(mixup=0, eval_resize=None)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    assert resolve(str(tmp_path / "recipe.json"), "ResNet-50", "/data") == recipe
