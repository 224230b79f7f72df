"""The recipe `fast` is `quick` with named differences."""

from __future__ import annotations

import pytest

from wideresnet.spec.recipe import overridden
from wideresnet.spec.recipes import fast, quick
from wideresnet.training.schedules import image_scale


def test_fast_is_quick_by_muon_with_fewer_epochs_on_tiles_that_the_kernels_fill() -> None:
    recipe, twin = fast("WRN-16-2", "cifar10"), quick("WRN-16-2", "cifar10")
    changed = "recipe epochs batch_size lr muon_lr image_scales eval_every crop_padding"
    assert set(overridden(recipe, twin)) == set(changed.split())
    assert recipe.feed.crop_padding == 2
    sides = [round(32 * image_scale(recipe, epoch)) for epoch in range(recipe.schedule.epochs)]
    assert sides == [16] * 4 + [24] * 3 + [32] * 2
    assert sum((side / 32) ** 2 for side in sides) == 4.6875  # epochs on 32x32, as its description says


@pytest.mark.parametrize(("num", "batch", "lr"), [(200, 50, 0.3), (39_999, 128, 0.3), (40_000, 512, 0.6)])
def test_fast_has_large_batches_if_there_are_images_for_700_of_them(num: int, batch: int, lr: float) -> None:
    recipe = fast("WRN-16-2", "mine", "", num)
    assert (recipe.schedule.batch_size, recipe.schedule.lr, recipe.optimizer.muon_lr) == (batch, lr, 0.05)
    assert num < 40_000 or recipe.schedule.epochs * (num // batch) >= 700
