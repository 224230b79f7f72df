"""What a detector is trained on is a pure function of (seed, epoch, place), whoever decodes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_scenes import change, write_scenes

from wideresnet.base.errors import DataError, UsageError
from wideresnet.detection.coco import read_split
from wideresnet.detection.feed import DetectionFeed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("feed") / "scenes", num_train=10)


def make(root: Path, **values: Any) -> DetectionFeed:
    settings: dict[str, Any] = {
        "batch_size": 2, "min_size": 48, "max_size": 80, "flip": True, "scale_jitter": 0.3, "aspect_groups": 3,
        "seed": 0, "device": "cpu", "workers": 0,
        **values,
    }  # fmt: skip
    return DetectionFeed(read_split(root, "train"), **settings)


def taken(feed: DetectionFeed, epoch: int, start: int = 0) -> list[Any]:
    with feed.running():
        return list(feed.epoch(epoch, start=start))


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted)
    for (images, targets), (others, other_targets) in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))
        for one, other in zip(targets, other_targets, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("boxes", "labels"))


def test_workers_and_a_start_within_the_epoch_change_nothing(root: Path) -> None:
    whole = taken(make(root), 1)
    assert_equal(taken(make(root, workers=2), 1), whole)
    assert_equal(taken(make(root), 1, start=2), whole[2:])
    assert not torch.equal(taken(make(root, seed=1), 1)[0][0][0], whole[0][0][0])


def test_the_shares_of_several_processes_are_the_batch(root: Path) -> None:
    whole = taken(make(root, batch_size=4), 0)
    shares = [taken(make(root, batch_size=4, rank=rank, num_ranks=2), 0) for rank in (0, 1)]
    joined = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*shares, strict=True)]
    assert_equal(joined, whole)


def test_an_epoch_has_each_image_once_and_batches_of_one_aspect_ratio(root: Path) -> None:
    feed = make(root, batch_size=5, aspect_groups=3)
    shapes = np.array([image.width > image.height for image in feed.set.images])
    for epoch in range(3):
        order = feed.order(epoch)
        assert sorted(order.reshape(-1)) == list(range(10))
        assert all(len(set(shapes[batch])) == 1 for batch in order)
    assert not np.array_equal(feed.order(0), feed.order(1))
    mixed = [make(root, batch_size=5, aspect_groups=0, seed=seed).order(0) for seed in range(8)]
    assert any(len(set(shapes[batch])) == 2 for order in mixed for batch in order)


def test_images_that_do_not_come_out_even_are_left_over(root: Path) -> None:
    order = make(root, batch_size=4).order(0)
    assert order.shape == (2, 4)
    assert len(set(order.reshape(-1).tolist())) == 8
    with pytest.raises(UsageError, match="batch_size=11: larger than the 10 training images"):
        make(root, batch_size=11)


def test_boxes_stay_on_their_objects_when_images_are_scaled_and_mirrored(root: Path) -> None:
    mirrored = 0
    for epoch in range(4):
        for images, targets in taken(make(root), epoch):
            for image, target in zip(images, targets, strict=True):
                for (left, top, right, bottom), label in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                ):
                    x, y = int((left + right) / 2), int((top + bottom) / 2)
                    if label == 2:  # blue is drawn over red
                        pixel = image[:, y, x]
                        assert pixel[2] - pixel[0] > 0.3, (epoch, pixel)
    plain, flipped = taken(make(root, flip=False, scale_jitter=0.0), 0), taken(make(root, scale_jitter=0.0), 0)
    for (images, _), (others, _) in zip(plain, flipped, strict=True):
        for image, other in zip(images, others, strict=True):
            mirrored += torch.equal(image.flip(2), other)
            assert torch.equal(image, other) or torch.equal(image.flip(2), other)
    assert 0 < mirrored < 10


def test_the_shorter_side_is_drawn_within_the_jitter(root: Path) -> None:
    sides = [min(image.shape[1:]) for epoch in range(4) for images, _ in taken(make(root), epoch) for image in images]
    assert min(sides) >= 33
    assert max(sides) <= 48
    assert len(set(sides)) > 5
    plain = [min(image.shape[1:]) for images, _ in taken(make(root, scale_jitter=0.0), 0) for image in images]
    assert set(plain) == {48}


def test_an_unreadable_image_stops_the_epoch_or_is_replaced_by_the_next(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", num_train=4)
    (root / "train" / "000000000002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000000000002.png: cannot be read .*skip_unreadable=True"):
        taken(make(root), 0)
    feed = make(root, skip_unreadable=True)
    assert sum(len(images) for images, _ in taken(feed, 0)) == 4
    assert [Path(name).name for name in feed.unreadable] == ["000000000002.png"]


def test_images_without_objects_are_not_trained_on(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", num_train=4)
    change(root, lambda d: d.update(annotations=[a for a in d["annotations"] if a["image_id"] != 2]))
    assert make(root).num_images == 3
