from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.errors import UsageError
from wideresnet.data.augment import draw_squares, plan_epoch, resize
from wideresnet.data.feeds.resident import Feed, evaluation_batches, hold_out, share_of
from wideresnet.data.preprocess import Preprocessing
from wideresnet.data.trivial_augment import draw_operations, trivial_augment

SCALE = Preprocessing("scale")


def numbered(num: int, height: int = 4, width: int = 4, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images that are their own number in every pixel, and labels that are the same number."""
    assert num <= 256
    labels = np.arange(num)
    return np.broadcast_to(labels[:, None, None, None], (num, height, width, channels)).astype(np.uint8), labels


def make_feed(num: int = 23, **options: Any) -> Feed:
    images, labels = numbered(num)
    return Feed(images, labels, SCALE, **{"batch_size": 5, "padding": 1, "flip": True, **options})


def collect(feed: Feed, epoch: int, **options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(feed.epoch(epoch, **options))


@settings(max_examples=40, deadline=None)
@given(num=st.integers(1, 40), batch_size=st.integers(1, 40), drop_last=st.booleans(), epoch=st.integers(0, 3))
def test_an_image_comes_at_most_once_an_epoch_with_its_own_label(
    num: int, batch_size: int, drop_last: bool, epoch: int
) -> None:
    batch_size = min(batch_size, num)
    feed = make_feed(num, batch_size=batch_size, drop_last=drop_last)
    batches = collect(feed, epoch)
    labels = torch.cat([labels for _, labels in batches])
    images = torch.cat([images for images, _ in batches])
    assert len(set(labels.tolist())) == len(labels) == (num // batch_size * batch_size if drop_last else num)
    assert torch.equal((images * 255).round().long(), labels[:, None, None, None].expand_as(images))
    assert len(batches) == feed.num_batches
    assert all(len(labels) == batch_size for _, labels in batches[: num // batch_size])


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [5, 5, 5, 5]), (False, [5, 5, 5, 5, 3])])
def test_the_last_smaller_batch_is_left_out_where_asked(drop_last: bool, sizes: list[int]) -> None:
    feed = make_feed(drop_last=drop_last)
    assert [len(labels) for _, labels in collect(feed, 0)] == sizes
    assert feed.num_batches == len(sizes)


@given(num=st.integers(0, 300), num_ranks=st.integers(1, 9))
def test_shares_are_everything_once_in_order_and_differ_by_one_at_most(num: int, num_ranks: int) -> None:
    shares = [range(num)[share_of(num, rank, num_ranks)] for rank in range(num_ranks)]
    assert [item for share in shares for item in share] == list(range(num))
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_parts_of_all_ranks_are_the_batches_of_one(num_ranks: int) -> None:
    whole = make_feed(drop_last=False)
    feeds = [make_feed(drop_last=False, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for epoch in (0, 1):
        parts = zip(*(collect(feed, epoch, scale=0.5) for feed in feeds), strict=True)
        for batch, (expected, part) in enumerate(zip(collect(whole, epoch, scale=0.5), parts, strict=True)):
            images, labels = (torch.cat(tensors) for tensors in zip(*part, strict=True))
            assert torch.equal(images, expected[0])
            assert torch.equal(labels, expected[1])
            assert len(labels) == whole.images_in(batch)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_starting_within_an_epoch_gives_the_tail_of_the_epoch(start: int) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (23, 6, 5, 3), dtype=np.uint8)
    feed = Feed(
        images,
        np.arange(23),
        Preprocessing.fit("mean_std", images),
        batch_size=5,
        drop_last=False,
        padding=2,
        flip=True,
    )
    whole, tail = collect(feed, 2, scale=0.5), collect(feed, 2, start=start, scale=0.5)
    assert len(tail) == 5 - start
    for (images_a, labels_a), (images_b, labels_b) in zip(whole[start:], tail, strict=True):
        assert torch.equal(images_a, images_b)
        assert torch.equal(labels_a, labels_b)


def test_epochs_differ_in_order_and_the_same_epoch_does_not() -> None:
    feed = make_feed()
    orders = [torch.cat([labels for _, labels in collect(feed, epoch)]).tolist() for epoch in (0, 1, 0)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_what_is_fed_is_what_the_plan_says() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (10, 5, 7, 3), dtype=np.uint8)
    feed = Feed(images, np.arange(10), SCALE, batch_size=10, padding=2, padding_mode="zero", flip=True, seed=9)
    ((batch, labels),) = collect(feed, 4)
    plan = plan_epoch(9, 4, 10, padding=2, flip=True)
    assert torch.equal(labels, plan.order)
    for i in range(10):
        padded = np.pad(images[plan.order[i]], ((2, 2), (2, 2), (0, 0)))
        crop = padded[int(plan.top[i]) :, int(plan.left[i]) :][:5, :7]
        crop = crop[:, ::-1] if plan.flip[i] else crop
        np.testing.assert_array_equal((batch[i] * 255).round().permute(1, 2, 0).numpy(), crop)


def make_strong_feed(**options: Any) -> Feed:
    images = np.random.default_rng(0).integers(0, 256, (23, 12, 10, 3), dtype=np.uint8)
    preprocessing = Preprocessing.fit("mean_std", images)
    return Feed(
        images, np.arange(23), preprocessing, drop_last=False, padding=2, flip=True, seed=9,
        **{"batch_size": 5, "auto_augment": "trivial", "cutout": 4, **options},
    )  # fmt: skip


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_strong_augmentation_is_a_function_of_seed_epoch_and_image_whatever_the_ranks_and_the_start(
    num_ranks: int,
) -> None:
    whole = make_strong_feed(batch_size=23)
    for epoch in (0, 1):
        ((images, labels),) = collect(whole, epoch)
        for start in (0, 3):
            feeds = [make_strong_feed(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
            batches = zip(*(feed.epoch(epoch, start=start) for feed in feeds), strict=True)
            parts = [part for batch in batches for part in batch]
            assert torch.equal(torch.cat([labels for _, labels in parts]), labels[5 * start :])
            assert torch.equal(torch.cat([images for images, _ in parts]), images[5 * start :])


def test_strong_augmentation_follows_crop_and_flip_and_cutout_follows_preprocessing() -> None:
    feed = make_strong_feed(batch_size=23)
    plain = make_strong_feed(batch_size=23, auto_augment="none", cutout=0)
    ((images, labels),), ((cropped, same_labels),) = collect(feed, 4), collect(plain, 4)
    assert torch.equal(labels, same_labels)
    operations, squares = draw_operations(9, 4, 23), draw_squares(9, 4, 23, (12, 10))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (feed.preprocessing.mean, feed.preprocessing.std))
    for i in range(23):
        pixels = (cropped[i] * std + mean).round().to(torch.uint8).permute(1, 2, 0)
        changed = trivial_augment(pixels[None], operations[i : i + 1])[0].permute(2, 0, 1)
        expected = (changed.float() - mean) / std
        row, column = (int(center) - 2 for center in squares[:, i])
        expected[:, max(0, row) : max(0, row + 4), max(0, column) : max(0, column + 4)] = 0
        torch.testing.assert_close(images[i], expected, rtol=1e-5, atol=1e-5)
    ((scaled, _),) = collect(feed, 4, scale=0.5)  # resizing comes last
    assert torch.equal(scaled, resize(images, 0.5))


def test_augmentation_that_is_not_for_such_images_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^auto_augment='trivial': is for gray and RGB images, these have 4 channels"):
        Feed(np.zeros((4, 8, 8, 4), np.uint8), np.arange(4), SCALE, batch_size=2, auto_augment="trivial")
    with pytest.raises(UsageError, match=r"^cutout=5: larger than the images \(4x4\); use cutout=4 or less$"):
        make_feed(cutout=5)


def test_a_batch_larger_than_the_data_is_refused_and_the_largest_named() -> None:
    with pytest.raises(UsageError, match=r"^batch_size=24: larger than the 23 training images; use batch_size=23 or"):
        make_feed(batch_size=24)
    assert make_feed(batch_size=23).num_batches == 1


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["scale", "mean_std", "zca"])
def test_batches_are_float32_and_channels_last(kind: str, channels: int, scale: float) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 8, channels), dtype=np.uint8)
    feed = Feed(images, np.arange(12), Preprocessing.fit(kind, images), batch_size=4, padding=1, flip=True)
    for batch, labels in feed.epoch(0, scale=scale):
        assert batch.shape == (4, channels, round(6 * scale), round(8 * scale))
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def test_feeding_changes_neither_the_callers_arrays_nor_the_resident_set() -> None:
    images, labels = numbered(20)
    before = images.copy()
    feed = Feed(images, labels, Preprocessing("mean_std", (3.0,) * 3, (2.0,) * 3), batch_size=5)
    resident = feed.padded.clone()
    for batch, _ in feed.epoch(0):
        batch.add_(1)
    assert torch.equal(feed.padded, resident)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 500])
def test_evaluation_sees_every_image_once_in_order(batch_size: int) -> None:
    images, labels = numbered(11)
    batches = list(evaluation_batches(images, SCALE, batch_size=batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert (torch.cat(batches)[:, 0, 0, 0] * 255).round().tolist() == labels.tolist()


def test_evaluation_sees_what_training_sees_without_augmentation() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    for kind in ("mean_std", "zca", "scale"):
        preprocessing = Preprocessing.fit(kind, images)
        ((batch, labels),) = Feed(images, np.arange(9), preprocessing, batch_size=9).epoch(0)
        seen = torch.cat(list(evaluation_batches(images, preprocessing, batch_size=4)))
        torch.testing.assert_close(batch, seen[labels], rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(num=st.integers(1, 200), share=st.floats(0, 0.999), seed=st.integers(0, 5))
def test_held_out_images_are_disjoint_complete_and_sorted(num: int, share: float, seed: int) -> None:
    num_held = int(num * share)
    kept, held = hold_out(num, num_held, seed)
    assert (len(kept), len(held)) == (num - num_held, num_held)
    assert sorted([*kept, *held]) == list(range(num))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()


def test_the_seed_alone_decides_what_is_held_out() -> None:
    first, again, other = (hold_out(1000, 100, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 40


@pytest.mark.parametrize("num_held", [10, 11])
def test_holding_out_everything_is_refused(num_held: int) -> None:
    with pytest.raises(UsageError, match=f"^holdout={num_held}: none of the 10 .*; use holdout=9 or less$"):
        hold_out(10, num_held, 0)
