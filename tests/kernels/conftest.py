"""Compilers that do what a test wants, with folders of their own. The kernels' functions then do nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fake_compilers import GCC, MakeCompiler

from wideresnet.kernels import abi
from wideresnet.kernels.library import Loader


@pytest.fixture
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


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the system, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder
