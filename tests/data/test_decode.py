"""Decoding many images: progress is reported, and nobody has to show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from wideresnet.base.progress import set_reporter
from wideresnet.data import load_dataset
from wideresnet.data.preprocess import PIECE, Preprocessing

SPLITS = {"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 3}}


def reported(work: Callable[[], object]) -> list[tuple[str, int]]:
    """Descriptions and totals of the tasks that a piece of work opens."""
    shown = MagicMock()
    before = set_reporter(shown)
    try:
        work()
    finally:
        set_reporter(before)
    return [(call.args[0], call.args[1]) for call in shown.task.call_args_list]


def test_reading_a_folder_reports_sizes_and_images_and_a_second_time_nothing(
    class_folders: Callable[..., Path],
) -> None:
    folder = class_folders(SPLITS)
    assert reported(lambda: load_dataset(folder)) == [("reading image sizes", 10), ("decoding images", 10)]
    assert reported(lambda: load_dataset(folder)) == []


def test_resizing_and_whitening_report_their_progress() -> None:
    assert reported(lambda: load_dataset("digits", image_size=4)) == [
        ("resizing images", 1437),
        ("resizing images", 360),
    ]
    images = np.random.default_rng(0).integers(0, 256, (PIECE + 1, 2, 2, 1), dtype=np.uint8)
    assert reported(lambda: Preprocessing.fit("zca", images)) == [("computing the covariance for ZCA", 2)]


def test_without_a_reporter_nothing_is_shown(
    class_folders: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    load_dataset(class_folders(SPLITS), image_size=16)
    assert capfd.readouterr() == ("", "")
