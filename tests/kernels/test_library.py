"""The compiled library: built once, cached, never taken from others, and its absence explained in one line."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wideresnet.kernels import abi, library
from wideresnet.kernels.library import Loader, Unavailable

GCC = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
MakeCompiler = Callable[..., Path]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The kernels' folder, empty."""
    if GCC is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("WRN_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "kernels"


@pytest.fixture
def loader() -> Loader:
    """What a new process has."""
    return Loader()


@pytest.fixture
def make_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCompiler:
    """A fake compiler: runs a line of shell, then links a library of the same functions, which do nothing."""
    source, calls = tmp_path / "stub.c", tmp_path / "calls"
    source.write_text("".join(f"long {name}(void) {{ return 7; }}\n" for name in abi.FUNCTIONS))

    def make(line: str = ":") -> Path:
        compiler = tmp_path / "compiler"
        compiler.write_text(
            f'#!/bin/sh\necho "$@" >> {calls}\n{line}\n'
            f'case "$*" in *-shared*) exec {GCC} -shared -fPIC {source} -o done.so;; esac\n'
        )
        compiler.chmod(0o700)
        monkeypatch.setenv("CC", str(compiler))
        calls.write_text("")
        return calls

    return make


def num_calls(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def python(code: str) -> subprocess.Popen[str]:
    """Another process, with the same compiler and folder."""
    root = Path(library.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", f"from wideresnet.kernels import library\n{code}"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"PATH": ""}, "no C compiler here (gcc, cc or clang)"),
        ({"CC": "/nonexistent/gcc -m64"}, "no C compiler here (CC is '/nonexistent/gcc')"),
    ],
)
def test_no_compiler_is_explained_in_one_line(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], reason: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    loader.start_build()  # which leaves the explanation to `library`
    with pytest.raises(Unavailable, match=f"^{re.escape(reason)}$"):
        loader.library()
    assert loader.why_unavailable() == reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r"printf 'In file:\na.c:1: error: no such thing\nmore\n' >&2; exit 1", "a.c:1: error: no such thing"),
        ("echo Segmentation fault >&2; exit 1", "Segmentation fault"),
        ("exit 3", "exit status 3"),
    ],
)
def test_a_compiler_that_fails_is_reported_in_one_line_and_run_once(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, line: str, reason: str
) -> None:
    calls = make_compiler(line)
    for _ in range(2):
        with pytest.raises(Unavailable, match=rf"^the C compiler failed \({re.escape(reason)}\)$"):
            loader.library()
    assert num_calls(calls) == 1
    assert list(kernels.iterdir()) == []


def test_a_useless_result_of_the_compiler_is_reported_in_one_line(loader: Loader, make_compiler: MakeCompiler) -> None:
    make_compiler('case "$*" in *-shared*) echo text > done.so; exit;; esac')
    with pytest.raises(Unavailable, match=r"^the kernels cannot be used \(.*\)$"):
        loader.library()


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


@pytest.mark.parametrize("mode", [0o770, 0o707], ids=oct)
def test_a_folder_that_others_can_write_to_is_neither_used_nor_written_to(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, mode: int
) -> None:
    calls = make_compiler()
    loader.library()
    (planted,) = kernels.iterdir()
    kernels.chmod(mode)
    assert Loader().library().wrn_panel() == 7
    assert num_calls(calls) == 4
    assert list(kernels.iterdir()) == [planted]


def test_a_library_that_others_can_write_to_is_not_used(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path
) -> None:
    calls = make_compiler()
    loader.library()
    (planted,) = kernels.iterdir()
    planted.chmod(0o720)
    Loader().library()
    assert num_calls(calls) == 4
    assert next(kernels.iterdir()).stat().st_mode & 0o077 == 0


def test_without_a_cache_folder_the_library_lives_as_long_as_the_process(
    make_compiler: MakeCompiler, kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_compiler()
    kernels.parent.write_text("a file where the folder should be")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    process = python("library.library(); import tempfile, os; print(os.listdir(tempfile.gettempdir()))")
    out, _ = process.communicate(timeout=60)
    assert "wideresnet-kernels-" in out
    assert list((tmp_path / "temporary").iterdir()) == []


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
    old = time.time() - library.LEFTOVER_S - 60
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


@pytest.mark.parametrize("wider", [(), ("-mavx2", "-mfma"), ("-mavx512f",)])
def test_the_sources_compile_without_a_warning_for_any_width_of_vectors(wider: tuple[str, ...]) -> None:
    assert GCC is not None
    if wider and os.uname().machine != "x86_64":
        pytest.skip("options of x86")
    flags = [flag for flag in library.FLAGS if flag != "-march=native"]
    sources = [os.fspath(library.FOLDER / name) for name in library.SOURCES]
    command = [GCC, *flags, *wider, "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only", *sources]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
