"""The documents are true: their Python runs, their commands parse, and the fast ones work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wideresnet.commands.main import main, make_parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
LONG = ("path/to/images", "cifar10", "bench ", "my-recipe.json", "runs/my-run")
"""What a command has that is only parsed: it needs data or time that a test has not."""


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a document in a language; "" for those without one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def commands(path: Path) -> list[list[str]]:
    """Every line of `wrn` in a document's fenced blocks, as words without `wrn`."""
    lines = [line for block in blocks(path, "") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("wrn ")]


def test_every_document_has_commands() -> None:
    assert all(len(commands(path)) >= 5 for path in DOCUMENTS)


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "docs" / "scaling.md"], ids=lambda path: path.name)
def test_every_command_parses(path: Path) -> None:
    for words in commands(path):
        make_parser().parse_args(words)  # exits if it does not


@pytest.mark.usefixtures("pages")
def test_every_python_block_of_the_guide_runs(tmp_path: Path) -> None:
    source = "\n".join(blocks(ROOT / "docs" / "guide.md", "python"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "photo.png")
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", source], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


SHORT_FIT = """
import wideresnet
train = wideresnet.fit
wideresnet.fit = lambda recipe, out: train(recipe.replace(epochs=1), out)
"""
"""Before README's block: an epoch instead of all."""


def test_the_python_block_of_readme_runs(tmp_path: Path) -> None:
    """With digits for CIFAR-10."""
    (source,) = blocks(ROOT / "README.md", "python")
    long = '"WRN-28-10", "cifar10"'
    assert long in source
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "photo.jpg")
    source = SHORT_FIT + source.replace(long, '"WRN-10-1", "digits"')
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_fast_commands_of_the_guide_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("photo.png")
    ran = [words for words in commands(ROOT / "docs" / "guide.md") if not any(w in shlex.join(words) for w in LONG)]
    verbs = {"train", "eval", "predict", "export", "analyze", "report", "info", "cache", "paper", "reproduce"}
    assert {words[0] for words in ran} == verbs
    for words in ran:
        assert main(words) == 0, words
    assert Path("comparison.html").is_file()


def test_links_of_documents_lead_somewhere() -> None:
    for path in [
        *DOCUMENTS,
        ROOT / "docs" / "results.md",
        ROOT / "docs" / "speed.md",
        ROOT / "docs" / "reliability.md",
        ROOT / "docs" / "scaling.md",
    ]:
        for address in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not address.startswith("https:"):
                assert (path.parent / address).exists(), (path.name, address)
