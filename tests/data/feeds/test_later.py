"""Lighting, erasing and mixing of whole batches, against slow twins and torchvision's own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from wideresnet.base.errors import UsageError
from wideresnet.base.seeding import seed_of
from wideresnet.data.feeds.later import EIGENVALUES, EIGENVECTORS, Later, draw_lighting

IMAGES = torch.rand(6, 3, 12, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_lighting_is_krizhevskys_sum_of_principal_components() -> None:
    num, std = 50, 0.1
    generator = torch.Generator().manual_seed(seed_of(7, "lighting", 2))
    weights = std * torch.randn(num, 3, generator=generator).double().numpy()
    found = draw_lighting(7, 2, num, std).numpy()
    for image in range(num):  # slow and obvious: [p1 p2 p3] [a1 l1, a2 l2, a3 l3], section 4.1 of Krizhevsky et al.
        for channel in range(3):
            expected = 255 * sum(
                EIGENVECTORS[channel][component] * weights[image][component] * EIGENVALUES[component]
                for component in range(3)
            )
            assert found[image, channel] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    norm = np.linalg.norm(np.array(EIGENVECTORS[0]) * EIGENVALUES)
    assert float(draw_lighting(0, 0, 20_000, std)[:, 0].std()) == pytest.approx(255 * std * norm, rel=0.03)


def test_lighting_adds_the_same_to_all_pixels_of_an_image() -> None:
    crops = torch.full((4, 5, 6, 3), 100, dtype=torch.uint8)
    drawn = Later(lighting=0.1).drawn(0, 0, 10)
    lit = drawn.light(crops, slice(2, 6))
    assert torch.allclose(lit[:, 0, 0] - 100, draw_lighting(0, 0, 10, 0.1)[2:6], atol=1e-4)
    assert torch.equal(lit, lit[:, :1, :1].expand_as(lit))


def test_gray_images_have_no_lighting() -> None:
    with pytest.raises(UsageError, match=r"pca_lighting=0\.1: changes colors, these images have 1 channel; use"):
        Later(lighting=0.1).check(1)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_torchvisions(kind: str) -> None:
    how = Later(**{kind: 0.7}, num_classes=4)
    images, labels = how.drawn(3, 1, 100).mix(5, torch.cat([IMAGES[-1:], IMAGES]), torch.cat([LABELS[-1:], LABELS]))
    theirs = (v2.MixUp if kind == "mixup" else v2.CutMix)(alpha=0.7, num_classes=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(3, "mix", 1, 5))
        expected, soft = theirs(IMAGES, LABELS)
    torch.testing.assert_close(images, expected, rtol=0, atol=0)
    torch.testing.assert_close(labels, soft, rtol=0, atol=0)
    assert torch.allclose(labels.sum(1), torch.ones(6))
    assert not torch.equal(images, IMAGES)


def test_with_both_each_batch_has_one_of_them() -> None:
    drawn = Later(mixup=1.0, cutmix=1.0, num_classes=4).drawn(0, 0, 100)
    kinds = set()
    for batch in range(12):
        mixed, _ = drawn.mix(batch, torch.cat([IMAGES[-1:], IMAGES]), torch.cat([LABELS[-1:], LABELS]))
        kinds.add(bool((mixed == IMAGES).any()))  # cutmix leaves pixels as they are
    assert kinds == {True, False}


def test_mixing_and_erasing_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    drawn = Later(erasing=1.0, mixup=1.0, num_classes=4).drawn(0, 0, 10)
    drawn.mix(0, drawn.erase(IMAGES.clone(), slice(0, 6)), LABELS)
    assert torch.equal(torch.get_rng_state(), before)


def test_erasing_sets_one_rectangle_in_as_many_images_as_asked_for() -> None:
    drawn = Later(erasing=0.3).drawn(0, 0, 2000)
    erased = drawn.erase(torch.ones(2000, 3, 16, 16), slice(0, 2000)) == 0
    assert erased.flatten(1).any(1).float().mean() == pytest.approx(0.3, abs=0.04)
    for picture in erased[erased.flatten(1).any(1)][:50]:
        rows, columns = picture[0].any(1).sum(), picture[0].any(0).sum()
        assert picture[0].sum() == rows * columns
        assert torch.equal(picture, picture[:1].expand(3, -1, -1))
        assert 0.01 < rows * columns / 256 < 0.4


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    drawn = Later(lighting=0.1, erasing=0.5).drawn(0, 3, 40)
    crops = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)

    def changed(part: slice | torch.Tensor) -> torch.Tensor:
        return drawn.erase(drawn.light(crops[part], part).permute(0, 3, 1, 2).clone(), part)

    whole = changed(slice(0, 40))
    assert torch.equal(changed(slice(10, 20)), whole[10:20])
    assert torch.equal(changed(torch.tensor([9, 3, 30])), whole[[9, 3, 30]])
