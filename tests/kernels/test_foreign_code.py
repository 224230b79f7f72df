"""Code that others could have written is never loaded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_compilers import GCC, MakeCompiler, num_calls, python

from wideresnet.kernels import abi, library
from wideresnet.kernels.library import Loader

pytestmark = pytest.mark.usefixtures("kernels")


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


def test_a_folder_that_others_can_exchange_is_neither_used_nor_written_to(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path
) -> None:
    calls = make_compiler()
    loader.library()
    (planted,) = kernels.iterdir()
    kernels.parent.chmod(0o770)
    assert Loader().library().wrn_panel() == 7
    assert num_calls(calls) == 4
    assert list(kernels.iterdir()) == [planted]


def test_a_library_that_others_exchange_at_the_last_moment_is_not_loaded(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, tmp_path: Path
) -> None:
    calls = make_compiler()
    loader.library()
    (path,) = kernels.iterdir()
    trace = tmp_path / "foreign code has run"
    source, foreign = tmp_path / "foreign.c", tmp_path / "foreign.so"
    functions = "".join(f"long {name}(void) {{ return 8; }}\n" for name in abi.FUNCTIONS)
    hook = f'__attribute__((constructor)) static void run(void) {{ creat("{trace}", 0600); }}'
    source.write_text(f"#include <fcntl.h>\n{hook}\n{functions}")
    subprocess.run([str(GCC), "-shared", "-fPIC", str(source), "-o", str(foreign)], check=True)
    process = python(f"""
import ctypes, os, shutil
load = ctypes.CDLL
def exchange_and_load(name, mode=ctypes.DEFAULT_MODE):
    os.rename({str(kernels)!r}, {str(tmp_path / "moved")!r})  # all checks are done
    os.mkdir({str(kernels)!r})
    shutil.copy({str(foreign)!r}, {str(path)!r})
    return load(name, mode)
ctypes.CDLL = exchange_and_load
print(library.library().wrn_panel())
""")
    assert process.communicate(timeout=60)[0].strip() == "7"
    assert path.read_bytes() == foreign.read_bytes()
    assert not trace.exists()
    assert num_calls(calls) == 2


@pytest.mark.parametrize("planted", ["link", "pipe", "folder"])
def test_what_is_no_file_of_this_user_is_not_opened(
    loader: Loader, make_compiler: MakeCompiler, kernels: Path, tmp_path: Path, planted: str
) -> None:
    calls = make_compiler()
    loader.library()
    (path,) = kernels.iterdir()
    path.rename(tmp_path / path.name)
    if planted == "link":
        path.symlink_to(tmp_path / path.name)
    elif planted == "pipe":
        os.mkfifo(path, 0o700)
    else:
        path = kernels / f"{path.name.split('-')[0]}-0.so"
        path.mkdir(0o700)
    assert Loader().library().wrn_panel() == 7
    assert num_calls(calls) == 4


def test_without_names_of_descriptors_a_private_copy_is_loaded(
    loader: Loader, make_compiler: MakeCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path
) -> None:
    make_compiler()
    monkeypatch.setattr(library, "DESCRIPTORS", tmp_path / "no proc here")
    assert loader.library().wrn_panel() == 7
    assert Loader().library().wrn_panel() == 7
    assert list(temporary.iterdir()) == []


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
