"""The compiled library: built once, cached, shared by the processes of a user."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from fake_compilers import MakeCompiler, is_alive, num_calls, python, wait_for

from wideresnet.kernels import compiler
from wideresnet.kernels.library import Loader

pytestmark = pytest.mark.usefixtures("kernels")


def test_the_library_is_compiled_once_and_then_found(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path
) -> None:
    calls = make_compiler()
    assert loader.library().wrn_panel() == 7
    assert num_calls(calls) == 2  # compiled, linked
    (path,) = kernels.iterdir()
    assert kernels.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o077 == 0
    again = Loader()
    again.start_build()
    assert again.build is None
    assert again.library().wrn_panel() == 7
    assert num_calls(calls) == 2


def test_another_compiler_or_processor_has_its_own_library(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = make_compiler()
    loader.library()
    monkeypatch.setenv("CC", f"{os.environ['CC']} -DOTHER")
    Loader().library()
    assert "-DOTHER" in calls.read_text().splitlines()[-1]
    Loader(processor="another").library()
    assert len({path.name.split("-")[0] for path in kernels.iterdir()}) == 3


def test_without_a_cache_folder_processes_share_a_private_temporary_one(
    make_compiler: MakeCompiler, kernels: Path, temporary: Path
) -> None:
    calls = make_compiler()
    kernels.parent.write_text("a file where the folder should be")
    for _ in range(3):
        process = python("print(library.library().wrn_panel())")
        assert process.communicate(timeout=60)[0].strip() == "7"
    assert num_calls(calls) == 2  # compiled, linked
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.suffix for path in (folder / "kernels").iterdir()] == [".so"]


def test_a_build_that_was_killed_in_the_temporary_folder_is_removed_by_a_later_one(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, temporary: Path
) -> None:
    kernels.parent.write_text("a file where the folder should be")
    calls = make_compiler("sleep 5")
    process = python("library.library()")
    wait_for(lambda: num_calls(calls))
    process.kill()
    process.communicate()
    (left,) = temporary.glob("*/kernels/.build-*")
    old = time.time() - compiler.LEFTOVER_S - 60
    os.utime(left, (old, old))
    make_compiler()
    loader.library()
    assert [path.suffix for path in temporary.glob("*/kernels/*")] == [".so"]


def test_a_build_runs_in_the_background_until_the_library_is_asked_for(
    loader: Loader, make_compiler: MakeCompiler, tmp_path: Path
) -> None:
    calls = make_compiler(f"while [ ! -e {tmp_path / 'go'} ]; do sleep 0.01; done")
    loader.start_build()
    loader.start_build()
    assert loader.build is not None
    assert loader.build.process.poll() is None
    (tmp_path / "go").touch()
    assert loader.library().wrn_panel() == 7
    assert num_calls(calls) == 2


@pytest.mark.parametrize("damage", ["cut short", "empty", "other bytes"])
def test_a_damaged_library_is_compiled_again(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, damage: str
) -> None:
    calls = make_compiler()
    loader.library()
    (path,) = kernels.iterdir()
    content = path.read_bytes()
    path.unlink()  # this process has it mapped
    changed = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut short": content[: len(content) // 2], "empty": b"", "other bytes": changed}[damage])
    path.chmod(0o700)
    assert Loader().library().wrn_panel() == 7
    assert num_calls(calls) == 4
    assert [file.read_bytes() for file in kernels.iterdir()] == [content]


def test_a_library_that_cannot_be_loaded_is_compiled_again(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path
) -> None:
    calls = make_compiler()
    loader.library()
    (path,) = kernels.iterdir()
    content = b"what its name says, but for another machine"
    strange = kernels / f"{path.name.split('-')[0]}-{hashlib.sha256(content).hexdigest()[:32]}.so"
    strange.write_bytes(content)
    strange.chmod(0o700)
    path.unlink()
    assert Loader().library().wrn_panel() == 7
    assert num_calls(calls) == 4
    assert list(kernels.iterdir()) == [path]


def test_processes_that_build_at_once_all_have_the_library(make_compiler: MakeCompiler, kernels: Path) -> None:
    calls = make_compiler("sleep 0.2")
    processes = [python("print(library.library().wrn_panel())") for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["7"] * 4
    assert num_calls(calls) >= 2
    assert [path.suffix for path in kernels.iterdir()] == [".so"]


def test_the_remains_of_a_killed_build_are_removed_by_a_later_one(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path
) -> None:
    calls = make_compiler("sleep 5")
    process = python("library.library()")
    wait_for(lambda: num_calls(calls))
    process.kill()
    process.communicate()
    (left,) = kernels.iterdir()
    assert left.name.startswith(".build-")
    young = kernels / ".build-young"
    young.mkdir()
    old = time.time() - compiler.LEFTOVER_S - 60
    os.utime(left, (old, old))
    make_compiler()
    loader.library()
    assert sorted(path.suffix or path.name for path in kernels.iterdir()) == [".build-young", ".so"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["Ctrl-C", "exit"])
def test_a_process_that_ends_ends_its_compiler_and_leaves_nothing(
    make_compiler: MakeCompiler, kernels: Path, tmp_path: Path, how: str
) -> None:
    calls = make_compiler(f"echo $$ > {tmp_path / 'pid'}; sleep 60")
    process = python("library.library()" if how == "Ctrl-C" else "library.start_build(); import sys; sys.stdin.read()")
    wait_for(lambda: num_calls(calls) and (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert ("KeyboardInterrupt" in errors) == (how == "Ctrl-C")
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())))
    assert list(kernels.iterdir()) == []


def test_a_finished_build_that_nobody_asked_for_is_kept(make_compiler: MakeCompiler, kernels: Path) -> None:
    make_compiler()
    process = python("loader = library.Loader(); loader.start_build(); loader.build.process.wait()")
    assert process.communicate(timeout=60) == ("", "")
    assert [path.suffix for path in kernels.iterdir()] == [".so"]
