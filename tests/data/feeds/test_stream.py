"""A stream gives the batches of a resident set, whatever the workers, the start and the processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_like import make_folders
from wideresnet.base.errors import DataError, WRNError
from wideresnet.data import load_dataset
from wideresnet.data.feeds.later import Later
from wideresnet.data.feeds.lazy import stream_of
from wideresnet.data.feeds.resident import Batch, Feed
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.preprocess import Preprocessing

SIMPLE: dict[str, Any] = {
    "batch_size": 8,
    "padding": 2,
    "flip": True,
    "auto_augment": "trivial",
    "cutout": 4,
    "seed": 5,
}
RICH: dict[str, Any] = {
    "batch_size": 8, "flip": True, "auto_augment": "trivial", "seed": 5, "drop_last": False, "repeats": 3,
    "random_resized_crop": 0.2, "color_jitter": 0.4,
    "later": Later(lighting=0.1, erasing=0.5, mixup=0.2, cutmix=1.0, num_classes=4),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("tiny") / "set", num_classes=4, train=5, test=2, high=160)


def make(folder: Path, how: dict[str, Any], *, skip_unreadable: bool = False, **more: Any) -> StreamFeed:
    data = load_dataset(folder, image_size=32, feed="stream", skip_unreadable=skip_unreadable)
    return StreamFeed(
        stream_of(data.train.images), data.train.labels, Preprocessing("mean_std", (120.0,) * 3, (60.0,) * 3),
        **{**how, **more},
    )  # fmt: skip


def batches(feed: Feed, epoch: int = 1, start: int = 0) -> list[Batch]:
    with feed.running():
        return list(feed.epoch(epoch, start=start))


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b) > 0
    for (images, labels), (others, other_labels) in zip(a, b, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_decoded_images_are_those_of_the_resident_reader(folder: Path) -> None:
    stream, resident = (load_dataset(folder, image_size=32, feed=feed) for feed in ("stream", "resident"))
    for ours, theirs in ((stream.train, resident.train), (stream.test, resident.test)):
        assert ours.images.shape == theirs.images.shape
        np.testing.assert_array_equal(np.asarray(ours.images), theirs.images)
        np.testing.assert_array_equal(ours.images[3], theirs.images[3])
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert stream.class_names == resident.class_names


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_those_of_the_resident_feed_with_any_number_of_workers(folder: Path, workers: int) -> None:
    data = load_dataset(folder, image_size=32, feed="resident")
    preprocessing = Preprocessing("mean_std", (120.0,) * 3, (60.0,) * 3)
    resident = Feed(data.train.images, data.train.labels, preprocessing, **SIMPLE)
    assert_equal(batches(make(folder, SIMPLE, workers=workers)), batches(resident))


def test_the_whole_augmentation_is_the_same_with_any_number_of_workers(folder: Path) -> None:
    expected = batches(make(folder, RICH, workers=0))
    assert expected[0][1].shape == (8, 4)
    for workers in (1, 3):
        assert_equal(batches(make(folder, RICH, workers=workers)), expected)
    assert not torch.equal(batches(make(folder, RICH, workers=0), epoch=2)[0][0], expected[0][0])


def test_an_epoch_continues_from_any_batch_and_workers_go_on_to_the_next_epoch(folder: Path) -> None:
    feed = make(folder, RICH, workers=1)
    with feed.running():
        whole = [list(feed.epoch(epoch)) for epoch in range(2)]
        results = feed.results
        assert_equal(list(feed.epoch(2))[:1], batches(make(folder, RICH), epoch=2)[:1])
        assert feed.results is results  # not started anew
    assert_equal(batches(make(folder, RICH), epoch=1, start=2), whole[1][2:])
    assert_equal(batches(make(folder, RICH), epoch=0, start=1), whole[0][1:])


def test_the_shares_of_all_processes_are_the_batch_mixed_images_too(folder: Path) -> None:
    expected = batches(make(folder, RICH))
    shares = [batches(make(folder, RICH, rank=rank, num_ranks=3)) for rank in range(3)]
    joined = [tuple(torch.cat(parts) for parts in zip(*share, strict=True)) for share in zip(*shares, strict=True)]
    assert_equal(joined, expected)  # type: ignore[arg-type]


def test_repeated_images_follow_each_other_and_are_augmented_differently(folder: Path) -> None:
    feed = make(folder, {**RICH, "later": Later()}, workers=0)
    plan, _ = feed.plan(0, "cpu")
    assert plan.order[:9].tolist() == [i for i in plan.order[[0, 3, 6]].tolist() for _ in range(3)]
    assert len(set(plan.order.tolist())) == 7  # of 20 images
    images, labels = batches(feed, epoch=0)[0]
    assert labels[0] == labels[1]
    assert not torch.equal(images[0], images[1])


def test_an_array_can_be_streamed_too(folder: Path) -> None:
    data = load_dataset(folder, image_size=32, feed="resident")
    preprocessing = Preprocessing("scale")
    stream = StreamFeed(stream_of(data.train.images), data.train.labels, preprocessing, workers=1, **SIMPLE)
    assert_equal(batches(stream), batches(Feed(data.train.images, data.train.labels, preprocessing, **SIMPLE)))


def test_the_first_images_are_decoded_without_workers(folder: Path) -> None:
    feed = make(folder, RICH, workers=1)
    images, labels = feed.first(3, scale=0.5)
    assert images.shape == (3, 3, 16, 16)
    assert labels.shape == (3, 4)
    assert feed.results is None


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """One training image ends in its pixels, so that its header is fine."""
    folder = make_folders(tmp_path / "set", num_classes=3, train=4, test=2, high=100)
    path = folder / "train/class01/2.jpg"
    path.write_bytes(path.read_bytes()[:700])
    return folder


def test_an_image_that_ends_early_stops_the_epoch_with_its_name(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"train/class01/2\.jpg cannot be read \(damaged: .*use skip_unreadable=True"):
        batches(make(damaged, {**SIMPLE, "batch_size": 12}, workers=1))


@pytest.mark.parametrize("how", [SIMPLE, {**RICH, "repeats": 1, "later": Later()}])
def test_left_out_it_is_named_and_the_next_image_takes_its_place(
    damaged: Path, caplog: pytest.LogCaptureFixture, how: dict[str, Any]
) -> None:
    how = {**how, "batch_size": 12}
    feed = make(damaged, how, workers=1, skip_unreadable=True)
    found = batches(feed)
    assert list(feed.unreadable) == ["train/class01/2.jpg"]
    assert [r.message.startswith("train/class01/2.jpg cannot be read (damaged") for r in caplog.records] == [True]
    assert_equal(batches(make(damaged, how, workers=0, skip_unreadable=True)), found)
    plan, _ = feed.plan(1, "cpu")
    labels = feed.labels.clone()
    assert torch.equal(found[0][1], labels[torch.where(plan.order == 6, 7, plan.order)])


def test_a_killed_worker_is_told_in_one_line(folder: Path) -> None:
    feed = make(folder, SIMPLE, workers=1)
    message = r"^DataLoader worker .* ended, probably for lack of memory; use fewer workers= and continue the run$"

    def train() -> None:
        with feed.running():
            for epoch in range(1000):
                list(feed.epoch(epoch))
                if epoch == 0:
                    os.kill(workers_of(feed)[0].pid, signal.SIGKILL)

    with pytest.raises(WRNError, match=message):
        train()
    assert feed.results is None


def test_workers_leave_ctrl_c_to_their_parent_and_end_with_the_block(folder: Path) -> None:
    feed = make(folder, SIMPLE, workers=2)
    with feed.running():
        steps = feed.epoch(0)
        next(steps)
        workers = workers_of(feed)
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        assert len(list(steps)) == 1
        assert all(worker.is_alive() for worker in workers)
    deadline = time.monotonic() + 20
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_alive() for worker in workers)


def workers_of(feed: StreamFeed) -> list[Any]:
    assert feed.results is not None
    return feed.results._results._workers  # type: ignore[union-attr]  # PyTorch has no public name for them
