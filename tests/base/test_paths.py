"""Folders for this user alone: created so, told from others, absolute whatever the environment is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from wideresnet.base import paths

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of files")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the system, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folders_are_for_their_user_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = paths.private_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(old)
    assert [mode(path) for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert paths.private_folder(folder) == folder


def test_a_folder_that_exists_keeps_its_mode_and_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    assert mode(paths.private_folder(tmp_path / "shared")) == 0o770
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileExistsError):
            paths.private_folder(path)


@pytest.mark.parametrize(("given", "private"), [(0o600, True), (0o644, True), (0o620, False), (0o602, False)])
def test_what_others_can_write_to_is_not_private(tmp_path: Path, given: int, private: bool) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(given)
    assert paths.is_private(path) == private
    with path.open("rb") as file:
        assert paths.is_private(file.fileno()) == private
    assert not paths.is_private(tmp_path / "missing")


def test_what_belongs_to_another_user_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths.private_folder(tmp_path / "folder")
    assert paths.is_private(folder)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert not paths.is_private(folder)


def test_a_private_folder_in_one_where_others_can_rename_it_is_no_private_chain(tmp_path: Path) -> None:
    above = tmp_path / "above"
    folder = paths.private_folder(above / "folder")
    assert paths.is_private_chain(folder)
    for given, private in ((0o770, False), (0o707, False), (0o1777, True), (0o755, True)):
        above.chmod(given)
        assert paths.is_private_chain(folder) == private
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    link = tmp_path / "open" / "link"
    link.symlink_to(folder)
    assert paths.is_private(link)
    assert not paths.is_private_chain(link)


def test_the_data_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WRN_DATA", "here")
    assert paths.data_root() == tmp_path / "here"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("given", [{}, {"WRN_DATA": "~/data"}, {"WRN_DATA": "~nobody-of-this-name/data"}], ids=str)
def test_a_user_without_a_home_gets_a_private_temporary_folder_and_no_folder_of_a_tilde(given: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        here.chmod(0o777)
        code = (
            "import os; from wideresnet.base import paths; "
            "os.setuid(12345); "  # a number without an entry in the list of users
            "print(paths.data_root(), paths.is_private_chain(paths.data_root()))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code],
            cwd=here,
            env={"PYTHONPATH": str(Path(paths.__file__).parents[2]), **given},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert list(here.iterdir()) == []
    root = Path(out[0])
    assert root.is_absolute()
    assert "~" not in out[0]
    assert out[1] == "True"
    root.rmdir()


def test_processes_share_one_private_temporary_folder(temporary: Path) -> None:
    folder = paths.private_temporary_folder()
    assert folder == paths.private_temporary_folder() == temporary / f"wideresnet-{os.getuid()}"
    assert mode(folder) == 0o700


def test_the_temporary_folder_of_a_killed_process_is_removed_a_day_later(temporary: Path) -> None:
    (temporary / f"wideresnet-{os.getuid()}").touch()  # taken, so that each process has a folder of its own
    code = "import os; from wideresnet.base import paths; print(paths.private_temporary_folder()); os._exit(9)"
    environment = {"PYTHONPATH": str(Path(paths.__file__).parents[2]), "TMPDIR": str(temporary)}
    left = []
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        left.append(Path(out.stdout.strip()))
        assert left[-1].is_dir()
        os.utime(left[0], (time.time() - 90_000, time.time() - 90_000))
    assert not left[0].exists()


@pytest.mark.parametrize("planted", ["open folder", "file", "link"])
def test_a_temporary_folder_that_others_have_planted_is_not_used(temporary: Path, planted: str) -> None:
    place = temporary / f"wideresnet-{os.getuid()}"
    if planted == "file":
        place.touch()
    elif planted == "link":
        paths.private_folder(temporary / "other")
        place.symlink_to(temporary / "other")
    else:
        place.mkdir()
        place.chmod(0o777)
    folder = paths.private_temporary_folder()
    assert folder not in (place, place.resolve())
    assert mode(folder) == 0o700
    assert folder == paths.private_temporary_folder()
