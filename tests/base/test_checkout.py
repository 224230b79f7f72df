"""A record names the commit of a checkout, and nothing for an installed package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wideresnet.base.checkout import commit


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *names, "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "wideresnet"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    git(tmp_path, "tag", "v1")
    return package


def test_a_checkout_is_named_by_its_commit_and_whether_it_was_changed(package: Path, tmp_path: Path) -> None:
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(package) == head
    (tmp_path / "notes.txt").write_text("not part of it")
    assert commit(package) == head
    (package / "a.py").write_text("2")
    assert commit(package) == f"{head}-dirty"


@pytest.mark.usefixtures("package")
def test_an_environment_within_another_projects_checkout_is_not_that_project(tmp_path: Path) -> None:
    installed = tmp_path / "venv" / "site-packages" / "wideresnet"
    installed.mkdir(parents=True)
    assert commit(installed) is None


def test_without_git_there_is_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(package) is None
