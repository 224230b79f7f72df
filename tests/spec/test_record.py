"""The run folder: what may be replaced, records that survive a kill, files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.spec.files import append, remove_parts, write_atomic, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.spec.result import REQUIRED, metrics_line


def started_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    write_json(folder.recipe, Recipe.flat(lr=0.3).to_json())
    return folder


def record(epoch: int, **values: object) -> bytes:
    return metrics_line({"epoch": epoch, "step": 4 * epoch, **values})


RESULT = {name: "text" if kind is str else 1 for name, kind in REQUIRED.items()}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "first")
    assert not folder.is_used()
    folder.create()
    assert folder.path.is_dir()
    assert not folder.is_used()
    assert not folder.is_run()


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    RunFolder(tmp_path).check_free()
    RunFolder(tmp_path).create()
    assert tmp_path.is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not a run folder"):
        RunFolder(tmp_path).create(overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_folders_place_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a run folder"):
        RunFolder(path).create(overwrite=overwrite)
    assert path.read_text() == "mine"


def test_a_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    folder.append_metrics(record(1))
    with pytest.raises(UsageError, match=r"holds a run already; .*resume=True, .*overwrite=True"):
        folder.create()
    assert files(folder.path) == ["metrics.jsonl", "recipe.json"]
    folder.create(overwrite=True)
    assert files(folder.replaced) == ["metrics.jsonl", "recipe.json"]  # until the new run can be resumed
    folder.forget_replaced()
    assert files(folder.path) == []


def test_replacing_a_run_never_removes_what_is_not_the_runs(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    (folder.path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex' too"):
        folder.create(overwrite=True)
    assert files(folder.path) == ["recipe.json", "thesis.tex"]


def test_replacing_a_run_removes_all_that_a_run_leaves(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    folder.checkpoint.mkdir()
    (folder.checkpoint / "step").write_text("x")
    for path in folder.own:
        if not path.exists():
            path.write_text("x")
    folder.create(overwrite=True)
    assert files(folder.path) == [".replaced"]
    folder.restore_replaced()
    assert all(path.exists() for path in folder.own)
    folder.create(overwrite=True)
    folder.forget_replaced()
    assert files(folder.path) == []


def test_what_a_kill_left_half_written_does_not_make_a_folder_used(tmp_path: Path) -> None:
    (tmp_path / ".recipe.json.123.part").write_text("{")
    assert not RunFolder(tmp_path).is_used()
    RunFolder(tmp_path).create()
    assert files(tmp_path) == []


def test_only_half_written_files_are_removed(tmp_path: Path) -> None:
    for name in (".model.safetensors.1.part", ".hidden", "mine.part", "recipe.json"):
        (tmp_path / name).write_text("x")
    remove_parts(tmp_path)
    assert files(tmp_path) == [".hidden", "mine.part", "recipe.json"]


@pytest.mark.parametrize("num_moved", range(6))
def test_a_kill_while_a_run_is_set_aside_or_put_back_loses_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_moved: int
) -> None:
    folder = started_run(tmp_path / "run")
    for path in (folder.env, folder.metrics, folder.result):
        path.write_text(path.name)
    before, moves, rename = files(folder.path), 0, Path.rename

    def rename_until_killed(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves > num_moved:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_until_killed)
        with contextlib.suppress(KeyboardInterrupt):
            folder.create(overwrite=True)
    with monkeypatch.context() as patch:
        moves = 0
        patch.setattr(Path, "rename", rename_until_killed)
        with contextlib.suppress(KeyboardInterrupt):
            folder.settle_replaced()
    assert folder.is_begun()
    folder.settle_replaced()
    assert files(folder.path) == before


def test_a_new_run_that_can_be_resumed_is_not_given_up_for_what_is_left_of_an_old_one(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    folder.create(overwrite=True)
    write_json(folder.recipe, Recipe.flat(lr=0.7).to_json())
    folder.checkpoint.mkdir()
    (folder.checkpoint / "step-1").touch()
    (folder.replaced / "recipe.json").unlink()  # as far as a kill let `forget_replaced` come
    folder.create(overwrite=True)
    folder.restore_replaced()
    assert folder.read_recipe() == Recipe.flat(lr=0.7)
    assert (folder.checkpoint / "step-1").exists()


def test_the_recipe_of_a_run_is_read_back(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    assert folder.is_run()
    assert folder.read_recipe() == Recipe.flat(lr=0.3)


def test_a_result_is_read_back(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    for result in (RESULT, {**RESULT, "test_error_pct": 3.89, "seed": 7}):
        folder.write_result(result, {"recipe.json": "0" * 64})
        assert folder.read_result() == result


@pytest.mark.parametrize("content", ["", '{"test_error_pct": 3.', "[3.89]", "null", "[" * 100_000, "\udcff"])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    folder = started_run(tmp_path / "run")
    folder.result.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"result\.json"):
        folder.read_result()


@pytest.mark.parametrize("value", [None, [], {}, True, "1", float("nan"), float("inf"), 1e308, 10**400, -(10**50)])
@pytest.mark.parametrize("name", [*REQUIRED, "seed", "train_s", "recipe"])
def test_a_result_of_wrong_types_is_refused_by_the_field(tmp_path: Path, name: str, value: object) -> None:
    folder = started_run(tmp_path / "run")
    folder.result.write_text(json.dumps({**RESULT, name: value}))
    if isinstance(value, str) and REQUIRED.get(name, str if name == "recipe" else int) is str:
        folder.read_result()
        return
    with pytest.raises(DataError, match=rf"result\.json: ({name} must be|cannot be read as JSON)") as caught:
        folder.read_result()
    assert len(str(caught.value)) < 300


def test_records_come_back_in_order_and_exact(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    assert folder.read_metrics() == []
    records = [{"epoch": 1, "step": 1, "train_loss": 0.1 + 0.2}, {"epoch": 2, "step": 2, "train_loss": 1 / 3}]
    for values in records:
        folder.append_metrics(metrics_line(values))
    assert folder.read_metrics() == records


def test_records_can_be_cut_back_to_a_checkpoint_and_continue(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    for epoch in (1, 2, 3):
        folder.append_metrics(record(epoch))
    folder.write_metrics(record(1))
    folder.append_metrics(record(2, lr=0.5))
    assert folder.read_metrics() == [{"epoch": 1, "step": 4}, {"epoch": 2, "step": 8, "lr": 0.5}]


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    folder.append_metrics(record(1))
    folder.append_metrics(record(2)[:-7])
    assert folder.read_metrics() == [{"epoch": 1, "step": 4}]


DAMAGED_LINES = [
    b'{"st', b"[1]", b"null", b"{}", b"", b"\xff\xfe", b"[" * 100_000, b'{"epoch": 2}', b'{"epoch": 3, "step": 12}',
    b'{"epoch": 2, "step": "8"}', b'{"epoch": true, "step": 8}', b'{"epoch": Infinity, "step": 8}',
    b'{"epoch": 1e999, "step": 8}', b'{"epoch": 2, "step": 9}', b'{"epoch": 2, "step": 8, "lr": 1e308}',
    b'{"epoch": 2, "step": 8, "lr": NaN}', b'{"epoch": 2, "step": 8, "train_loss": [1]}',
]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_a_damaged_line_in_the_middle_is_named_with_the_way_out(tmp_path: Path, line: bytes) -> None:
    folder = started_run(tmp_path / "run")
    folder.write_metrics(record(1) + line + b"\n" + record(3))
    with pytest.raises(
        DataError, match=r"metrics\.jsonl line 2: not the record of epoch 2.*: continue the run"
    ) as caught:
        folder.read_metrics()
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_missing_line_is_noticed(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    folder.write_metrics(record(2) + record(3))
    with pytest.raises(DataError, match="line 1: not the record of epoch 1"):
        folder.read_metrics()
    folder.write_metrics(record(1) + record(3))
    with pytest.raises(DataError, match="line 2: not the record of epoch 2"):
        folder.read_metrics()


def test_a_full_disk_while_a_record_is_added_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started_run(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WRNError, match=r"metrics\.jsonl: no space left on the disk"):
        folder.append_metrics(record(1))


def test_no_file_holds_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    folder = started_run(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        record(1, train_loss=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        write_json(folder.result, {"test_loss": float("inf")})
    assert files(folder.path) == ["recipe.json"]


def test_json_is_readable_by_people_and_machines(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1, 2]}
    assert text.endswith("\n")
    assert len(text.splitlines()) > 1


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_whole_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WRNError, match=r"file: no space left .* 2,000 bytes; .*resume=True$"):
        write_atomic(path, b"x" * 2000)
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_a_failure_that_is_not_about_space_keeps_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for write in (write_atomic, append):
        with pytest.raises(OSError, match=r"Input/output error: .*file'$"):  # which fsync itself does not name
            write(tmp_path / "file", b"x")
        (tmp_path / "file").unlink(missing_ok=True)
    assert files(tmp_path) == []


def test_nothing_is_in_the_files_place_before_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    seen: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.exists()))
    write_atomic(path, b"x")
    assert seen == [False, True]  # the file, then its name in the folder
    assert path.exists()
