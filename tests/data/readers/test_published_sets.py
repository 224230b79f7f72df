from __future__ import annotations

import pickle
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
import torchvision.datasets.utils

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.progress import set_reporter
from wideresnet.data import FACTS, load_dataset
from wideresnet.data.facts import SVHN_WITH_EXTRA


class _FakeCIFAR:
    """Stands in for torchvision's reader and remembers how it was called."""

    base_folder = "of the published archive"
    calls: list[tuple[str, str, bool, bool]]

    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.calls.append((root, self.base_folder, train, download))
        num_images = 6 if train else 4
        self.data = np.zeros((num_images, 3, 32, 32), dtype=np.uint8).transpose(0, 2, 3, 1)
        self.targets = list(range(num_images))


_SVHN_SIZES = {"train": 3, "extra": 5, "test": 2}


class _FakeSVHN:
    calls: list[tuple[str, str, bool]]

    def __init__(self, root: str, split: str, download: bool) -> None:
        self.calls.append((root, split, download))
        self.data = np.zeros((_SVHN_SIZES[split], 3, 32, 32), dtype=np.uint8)
        self.data[:, 0] = 1
        self.labels = np.arange(_SVHN_SIZES[split])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    def install(name: str) -> list[Any]:
        calls: list[Any] = []
        base = _FakeSVHN if name == "SVHN" else _FakeCIFAR
        monkeypatch.setattr(torchvision.datasets, name, type(name, (base,), {"calls": calls}))
        return calls

    return install


def test_digits_are_embedded_with_a_fixed_split() -> None:
    dataset = load_dataset("digits")
    assert (dataset.name, dataset.facts, dataset.notes) == ("digits", FACTS["digits"], ())
    assert dataset.train.images.shape == (1437, 8, 8, 1)
    assert dataset.test.images.shape == (360, 8, 8, 1)
    assert dataset.train.images.max() == 255
    assert dataset.test.labels[:5].tolist() == [
        0,
        5,
        0,
        5,
        0,
    ]  # rows 0, 5, 10, 15, 20 of scikit-learn's table


@pytest.mark.parametrize(
    ("data", "reader", "folder"),
    [("cifar10", "CIFAR10", "cifar-10-batches-py"), ("CIFAR-100", "CIFAR100", "cifar-100-python")],
)
def test_cifar_is_downloaded_by_torchvision_into_the_data_root(
    fake: Callable[[str], list[Any]], data_root: Path, data: str, reader: str, folder: str
) -> None:
    calls = fake(reader)
    dataset = load_dataset(data)
    assert calls == [(str(data_root), folder, True, True), (str(data_root), folder, False, True)]
    assert dataset.facts is FACTS[reader.lower()]
    assert (dataset.name, dataset.source) == (reader.lower(), data)
    assert dataset.train.images.shape == (6, 32, 32, 3)
    assert dataset.train.images.flags.c_contiguous
    assert dataset.class_names == FACTS[reader.lower()].class_names


@pytest.mark.parametrize("extra", [False, True])
def test_svhn_trains_on_extra_only_when_asked(fake: Callable[[str], list[Any]], data_root: Path, extra: bool) -> None:
    calls = fake("SVHN")
    dataset = load_dataset("svhn", extra_data=extra)
    splits = ["train", "extra", "test"] if extra else ["train", "test"]
    assert calls == [(str(data_root), split, True) for split in splits]
    assert dataset.train.images.shape == (8 if extra else 3, 32, 32, 3)
    assert (dataset.train.images[..., 0] == 1).all()
    assert (dataset.train.images[..., 1:] == 0).all()
    assert dataset.train.labels.tolist() == ([0, 1, 2, 0, 1, 2, 3, 4] if extra else [0, 1, 2])
    assert dataset.facts is (SVHN_WITH_EXTRA if extra else FACTS["svhn"])


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_extra_with_another_set_is_a_usage_error(data: str) -> None:
    with pytest.raises(UsageError, match="only svhn has extra images"):
        load_dataset(data, extra_data=True)


@pytest.mark.parametrize(
    ("folder", "reader", "marks"),
    [
        ("cifar-10-batches-py", "CIFAR10", ["data_batch_1"]),
        ("cifar-100-python", "CIFAR100", ["train", "meta"]),
    ],
)
@pytest.mark.parametrize("place", ["root", "folder itself", "renamed"])
def test_torchvisions_cifar_folder_is_read_without_a_download(
    fake: Callable[[str], list[Any]], tmp_path: Path, folder: str, reader: str, marks: list[str], place: str
) -> None:
    calls = fake(reader)
    inner = tmp_path / ("mine" if place == "renamed" else folder)
    inner.mkdir()
    for mark in marks:
        (inner / mark).touch()
    dataset = load_dataset(tmp_path if place == "root" else inner)
    assert dataset.name == reader.lower()
    assert calls == [(str(tmp_path), inner.name, is_train, False) for is_train in (True, False)]


def test_torchvisions_svhn_folder_is_read_without_a_download(fake: Callable[[str], list[Any]], tmp_path: Path) -> None:
    calls = fake("SVHN")
    (tmp_path / "train_32x32.mat").touch()
    assert len(load_dataset(tmp_path, extra_data=True).train) == 8
    assert calls == [(str(tmp_path), split, False) for split in ("train", "extra", "test")]


class _Trap:
    """Unpickling this calls pytest.fail."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a file was unpickled before its checksum was compared",)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]),
        ("cifar-100-python", ["train", "test", "meta"]),
    ],
)
def test_a_tampered_file_is_refused_before_it_is_unpickled(tmp_path: Path, folder: str, names: list[str]) -> None:
    (tmp_path / folder).mkdir()
    for name in names:
        (tmp_path / folder / name).write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(DataError, match="do not have the published checksums"):
        load_dataset(tmp_path)


def test_a_tampered_svhn_file_is_refused(tmp_path: Path) -> None:
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (tmp_path / name).write_bytes(b"tampered")
    with pytest.raises(DataError, match="do not have the published checksums"):
        load_dataset(tmp_path)


def test_a_folder_of_several_published_sets_is_refused(tmp_path: Path) -> None:
    for file in ("cifar-10-batches-py/data_batch_1", "cifar-100-python/train", "cifar-100-python/meta"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(DataError, match=r"several data sets \(cifar10, cifar100\)"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_a_failed_download_names_the_root_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, data_root: Path, name: str
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match=f"{name}: could not be downloaded into {data_root}") as caught:
        load_dataset(name)
    assert "Name or service not known" in str(caught.value)
    assert "WRN_DATA" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_root_that_cannot_be_made_is_named(data_root: Path) -> None:
    data_root.write_text("a file")
    with pytest.raises(DataError, match=f"could not be downloaded into {data_root}"):
        load_dataset("svhn")


def test_what_torchvision_prints_is_logged_and_its_bar_becomes_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Talkative(_FakeCIFAR):
        def __init__(self, root: str, train: bool, download: bool) -> None:
            print("Files already downloaded and verified")
            with torchvision.datasets.utils.tqdm(total=7, unit="B", unit_scale=True) as bar:
                bar.update(3)
                bar.update(4)
            super().__init__(root, train, download)

    monkeypatch.setattr(Talkative, "calls", [], raising=False)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Talkative)
    shown = MagicMock()
    before = set_reporter(shown)
    own_bar = torchvision.datasets.utils.tqdm
    try:
        with caplog.at_level("INFO", logger="wideresnet"):
            load_dataset("cifar10")
    finally:
        set_reporter(before)
    assert capsys.readouterr() == ("", "")
    assert "Files already downloaded and verified" in caplog.text
    shown.task.assert_called_with("downloading CIFAR-10", 7, ())
    updates = shown.task.return_value.__enter__.return_value.update.call_args_list
    assert updates == [call(advance=3), call(advance=4)] * 2
    assert torchvision.datasets.utils.tqdm is own_bar
