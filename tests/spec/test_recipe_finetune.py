"""The recipe `finetune`: its numbers by the size of the set, and what it does for ImageNet's networks."""

from __future__ import annotations

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.spec.recipes import base_of, finetune, resolve


@pytest.mark.parametrize(
    ("num_train", "batch_size", "epochs"),
    [(8, 2, 100), (610, 64, 100), (5_000, 64, 13), (6_400, 64, 10), (50_000, 64, 10)],
)
def test_small_sets_get_more_epochs(num_train: int, batch_size: int, epochs: int) -> None:
    schedule = finetune("WRN-16-4", "mine", "", num_train).schedule
    assert (schedule.batch_size, schedule.epochs, schedule.lr, schedule.kind) == (batch_size, epochs, 0.01, "cosine")


def test_its_augmentation_is_light_and_that_of_the_set() -> None:
    small, large = finetune("WRN-16-4", "mine", "", 1000), finetune("ResNet-50", "mine", "", 1000)
    assert (small.feed.flip, small.feed.crop_padding, small.feed.auto_augment) == (True, 4, "none")
    assert (large.feed.random_resized_crop, large.feed.image_size, large.feed.eval_resize) == (0.25, 224, 256)
    assert finetune("WRN-16-4", "digits").feed.flip is False
    assert finetune("WRN-34-2", "mine", "", 1000).feed.image_size is None  # a name with two readings
    assert base_of("finetune", "WRN-34-2", "mine", num_train=1000, family="imagenet").feed.image_size == 224
    assert resolve("finetune", "WRN-16-4", "mine", {"freeze": "none"}, num_train=1000) == small
    with pytest.raises(UsageError, match="recipe finetune depends on the number of training images"):
        finetune("WRN-16-4", "mine")
