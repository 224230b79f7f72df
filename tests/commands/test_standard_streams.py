"""Missing or full standard streams: no traceback, no lost work, no lost page, the right exit code."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("pages")

MakeNpz = Callable[..., Path]
WRN = f"{shlex.quote(sys.executable)} -m wideresnet"
ALL_CLOSED = "<&- >&- 2>&-"
MISSING = ["<&-", ">&-", "2>&-", ALL_CLOSED, ">&- 2>/dev/full", "2>/dev/full"]


def shell(command: str, folder: Path) -> tuple[int, str, str]:
    """Run a command line whose redirections are its own; return the exit code of `wrn`, stdout and stderr."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def train(make_npz: MakeNpz, tmp_path: Path) -> Callable[[str, str], tuple[int, str, str]]:
    make_npz()

    def run(redirections: str, flags: str = "") -> tuple[int, str, str]:
        command = "train WRN-10-1 --data own.npz --out run --epochs 1 --batch-size 16 --crop-padding 1 --device cpu"
        return shell(f"{WRN} {command} {flags} {redirections}", tmp_path)

    return run


def check_whole(folder: Path) -> None:
    for name in ("result.json", "model.safetensors", "report.html", "curves.png"):
        assert (folder / name).is_file(), name


@pytest.mark.parametrize("redirections", [ALL_CLOSED, "2>/dev/full", "| head -c 1 >/dev/null"])
def test_training_without_a_stream_succeeds_and_leaves_everything(
    train: Callable[..., tuple[int, str, str]], tmp_path: Path, redirections: str
) -> None:
    code, _, errors = train(redirections)
    assert "Traceback" not in errors
    assert code == 0
    check_whole(tmp_path / "run")


def test_a_full_disk_behind_the_result_is_one_line_after_all_work_was_done(
    train: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, errors = train("> /dev/full")
    assert code == 1
    assert [line for line in errors.splitlines() if line.startswith("wrn")] == [
        "wrn: standard output: no space left on the disk; free some space and start the command again"
    ]
    assert "Traceback" not in errors
    check_whole(tmp_path / "run")


@pytest.mark.parametrize("redirections", [ALL_CLOSED])
def test_several_processes_train_without_streams(
    train: Callable[..., tuple[int, str, str]], tmp_path: Path, redirections: str
) -> None:
    code, _, errors = train(redirections, "--processes 2")
    assert (code, "Traceback" in errors) == (0, False)
    check_whole(tmp_path / "run")


@pytest.mark.parametrize("redirections", [ALL_CLOSED])
def test_several_seeds_train_without_streams(
    train: Callable[..., tuple[int, str, str]], tmp_path: Path, redirections: str
) -> None:
    code, _, errors = train(redirections, "--seeds 2")
    assert (code, "Traceback" in errors) == (0, False)
    for name in ("seed0", "seed1"):
        check_whole(tmp_path / "run" / name)
    assert (tmp_path / "run" / "comparison.html").is_file()


@pytest.mark.parametrize("redirections", MISSING)
@pytest.mark.parametrize("words", ["paper table4 --json", "cache", "--help"])
def test_a_result_that_nobody_wants_is_no_failure(tmp_path: Path, words: str, redirections: str) -> None:
    code, _, errors = shell(f"{WRN} {words} {redirections}", tmp_path)
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("words", ["info WRN-10-1", "paper table4 --json", "cache", "--help", "--version", ""])
def test_a_result_that_cannot_be_written_is_a_failure_in_one_line(tmp_path: Path, words: str) -> None:
    code, _, errors = shell(f"{WRN} {words} > /dev/full", tmp_path)
    assert (code, errors) == (
        1,
        "wrn: standard output: no space left on the disk; free some space and start the command again\n",
    )


@pytest.mark.parametrize("words", ["paper table4", "info list", "train --help"])
def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path, words: str) -> None:
    code, _, errors = shell(f"({WRN} {words}; exit $?) | true", tmp_path)
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("redirections", [">&-", "2>&-", ALL_CLOSED, "> /dev/full", "2> /dev/full"])
@pytest.mark.parametrize("words", ["train", "fly", "report nowhere"])
def test_a_mistake_keeps_its_exit_code(tmp_path: Path, words: str, redirections: str) -> None:
    code, _, errors = shell(f"{WRN} {words} {redirections}", tmp_path)
    assert (code, "Traceback" in errors) == (2, False)


def test_a_file_opened_later_does_not_become_a_standard_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from wideresnet.base.streams import open_missing_streams; open_missing_streams();"
        "file = open('opened', 'w'); print('result'); print('trouble', file=sys.stderr); os.system('echo child');"
        "sys.exit(file.fileno() < 3 or bool(sys.stdin.read()))"
    )
    assert shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {ALL_CLOSED}", tmp_path)[0] == 0
    assert (tmp_path / "opened").read_text() == ""


def test_a_terminal_that_hangs_up_does_not_end_a_run(tmp_path: Path, make_npz: MakeNpz) -> None:
    import pty  # not on Windows

    make_npz()
    ours, theirs = pty.openpty()
    flags = ["--epochs", "3", "--batch-size", "16", "--crop-padding", "1", "--device", "cpu", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wideresnet", "train", "WRN-10-1", "--data", "own.npz", *flags],
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    assert os.read(ours, 1)  # it has begun to speak
    os.close(ours)  # what it writes from now on fails with EIO
    assert process.wait(timeout=300) == 0
    check_whole(tmp_path / "run")
