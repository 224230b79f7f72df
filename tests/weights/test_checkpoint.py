"""Checkpoints come back exactly, or are known to be damaged; a kill or a full disk leaves the older ones whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from wideresnet.base.errors import WRNError
from wideresnet.weights.checkpoint import Checkpoint, list_checkpoints, newest_checkpoint, save_checkpoint


def make_checkpoint(step: int, **progress: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "network.stem.weight": torch.randn(8, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "network.norm.num_batches_tracked": torch.tensor(2**53 + 1),
        "momentum.stem.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "averaged.fc.bias": torch.tensor([float("-0.0"), 1e-45, 3.4e38]),
        "network.half": torch.randn(3, generator=generator).bfloat16(),
    }
    return Checkpoint(step, tensors, {"train_s": 0.1 + 0.2, **progress})


def assert_same(found: Checkpoint | None, wanted: Checkpoint) -> None:
    assert found is not None
    assert (found.step, found.progress) == (wanted.step, wanted.progress)
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    bias = found.tensors["averaged.fc.bias"]
    assert torch.signbit(bias[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(7, meter={"loss_sum": 1 / 3, "num_errors": 3.0}, data="abc")
    save_checkpoint(tmp_path / "new" / "checkpoint", checkpoint)
    found, damaged = newest_checkpoint(tmp_path / "new" / "checkpoint")
    assert_same(found, checkpoint)
    assert damaged == []


def test_a_checkpoint_loads_into_a_network_in_channels_last(tmp_path: Path) -> None:
    conv = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_checkpoint(tmp_path, Checkpoint(1, dict(conv.state_dict()), {}))
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    other = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other.load_state_dict(found.tensors)
    assert torch.equal(conv.weight, other.weight)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_saved_checkpoint_does_not_follow_the_network(tmp_path: Path) -> None:
    weight = torch.zeros(3)
    save_checkpoint(tmp_path, Checkpoint(1, {"w": weight}, {}))
    weight += 1
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert not found.tensors["w"].any()


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 50, 100_000, 999):
        save_checkpoint(tmp_path, make_checkpoint(step))
    kept = list_checkpoints(tmp_path)
    assert [int(path.name.split("-")[1]) for path in kept] == [100_000, 999]
    assert len(names(tmp_path)) == 2
    assert_same(newest_checkpoint(tmp_path)[0], make_checkpoint(100_000))


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_the_step(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'"step":"20"') == 1
    path.write_bytes(content.replace(b'"step":"20"', b'"step":"21"'))


DAMAGES = [truncate, empty, flip_a_bit_of_a_weight, flip_a_bit_of_the_step]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_is_used(tmp_path: Path, damage: Any) -> None:
    save_checkpoint(tmp_path, make_checkpoint(10))
    newest = save_checkpoint(tmp_path, make_checkpoint(20))
    damage(newest)
    found, damaged = newest_checkpoint(tmp_path)
    assert_same(found, make_checkpoint(10))
    (sentence,) = damaged
    assert sentence.startswith(f"checkpoint {newest.name} is damaged (")
    assert sentence.endswith("falling back to the previous one")


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, make_checkpoint(step))
    before = names(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(PermissionError):
            newest_checkpoint(tmp_path)
    assert names(tmp_path) == before
    assert_same(newest_checkpoint(tmp_path)[0], make_checkpoint(20))


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_folder_whose_name_is_not_unicode_holds_checkpoints_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    save_checkpoint(folder, make_checkpoint(10))
    assert_same(newest_checkpoint(folder)[0], make_checkpoint(10))


def test_a_run_continues_past_a_damaged_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(10))
    truncate(save_checkpoint(tmp_path, make_checkpoint(20)))
    for step in (15, 18):
        save_checkpoint(tmp_path, make_checkpoint(step))
        assert_same(newest_checkpoint(tmp_path)[0], make_checkpoint(step))


@pytest.mark.parametrize("damage", DAMAGES[:3])
def test_when_every_checkpoint_is_damaged_the_run_stops(tmp_path: Path, damage: Any) -> None:
    for step in (10, 20):
        damage(save_checkpoint(tmp_path, make_checkpoint(step)))
    with pytest.raises(WRNError, match=r"all 2 checkpoints are damaged; .*overwrite=True"):
        newest_checkpoint(tmp_path)


def test_files_of_other_names_are_neither_read_nor_removed(tmp_path: Path) -> None:
    others = ["notes.txt", "step-10.safetensors", "step-000000099-0123456789abcdef.safetensors.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make_checkpoint(step))
    assert_same(newest_checkpoint(tmp_path)[0], make_checkpoint(3))
    assert set(others) <= set(names(tmp_path))


@pytest.mark.parametrize("where", ["fsync", "write", "open"])
def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoints_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make_checkpoint(step))
    before = names(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, where, full)
        with pytest.raises(WRNError, match="no space left on the disk") as caught:
            save_checkpoint(tmp_path, make_checkpoint(3))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before
    assert_same(newest_checkpoint(tmp_path)[0], make_checkpoint(2))


def test_a_kill_while_writing_leaves_the_old_checkpoint_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))

    class Killed(BaseException):
        pass

    def kill(_: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, make_checkpoint(2))
    assert_same(newest_checkpoint(tmp_path)[0], make_checkpoint(1))
