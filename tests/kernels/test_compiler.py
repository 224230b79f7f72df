"""The compiler: its failures are explained in one line, and nobody waits for it forever."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fake_compilers import MakeCompiler, is_alive, num_calls, wait_for

from wideresnet.kernels import compiler
from wideresnet.kernels.compiler import Unavailable
from wideresnet.kernels.library import Loader

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"PATH": ""}, "no C compiler here (gcc, cc or clang)"),
        ({"CC": "/nonexistent/gcc -m64"}, "no C compiler here (CC is '/nonexistent/gcc')"),
        ({"CC": "gcc '-m64"}, """no C compiler here (CC is "gcc '-m64": no closing quotation)"""),
        ({"CC": "true"}, f"the C compiler made no library (CC is '{shutil.which('true')}')"),
        ({"CC": "echo -n"}, f"the C compiler made no library (CC is '{shutil.which('echo')} -n')"),
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


def test_a_compiler_that_waits_forever_is_killed(make_compiler: MakeCompiler, kernels: Path, tmp_path: Path) -> None:
    make_compiler(f"echo $$ > {tmp_path / 'pid'}; sleep 600")
    with pytest.raises(Unavailable, match=r"^the C compiler did not finish within 1 s$"):
        Loader(limit_s=1).library()
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())))
    assert list(kernels.iterdir()) == []


def test_a_compiler_that_says_much_or_leaves_a_server_behind_is_not_waited_for(
    loader: Loader, make_compiler: MakeCompiler, tmp_path: Path
) -> None:
    make_compiler(f"head -c 200000 /dev/zero >&2; sh -c 'echo $$ > {tmp_path / 'pid'}; exec sleep 600' & ")
    assert loader.library().wrn_panel() == 7
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_compiler_is_found_by_a_relative_path(
    loader: Loader, make_compiler: MakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_compiler()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "./compiler")
    assert loader.library().wrn_panel() == 7


def test_a_useless_result_of_the_compiler_is_reported_in_one_line(loader: Loader, make_compiler: MakeCompiler) -> None:
    make_compiler('case "$*" in *-shared*) echo text > done.so; exit;; esac')
    with pytest.raises(Unavailable, match=r"^the kernels cannot be used \(.*\)$"):
        loader.library()


@pytest.mark.parametrize("wider", [(), ("-mavx2", "-mfma"), ("-mavx512f",)])
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_the_sources_compile_without_a_warning_for_any_width_of_vectors(name: str, wider: tuple[str, ...]) -> None:
    if not (path := shutil.which(name)):
        pytest.skip(f"no {name} here")
    if wider and os.uname().machine != "x86_64":
        pytest.skip("options of x86")
    flags = [flag for flag in compiler.FLAGS if flag != "-march=native"]
    sources = [os.fspath(compiler.FOLDER / name) for name in compiler.SOURCES]
    command = [path, *flags, *wider, "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only", *sources]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
