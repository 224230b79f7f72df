"""The documents are true: every fenced block runs, as it is or with substitutes for what is large or slow."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wideresnet import fit, recipe_for
from wideresnet.commands.main import main, make_parser
from wideresnet.networks.blocks import PreActBlock, Style
from wideresnet.spec.names import parse
from wideresnet.weights.pretrained import shipped_name

ROOT = Path(__file__).parent.parent
README, GUIDE, PAPER = ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "the-paper.md"
DOCUMENTS = [README, GUIDE, PAPER, ROOT / "docs" / "scaling.md", ROOT / "docs" / "reliability.md"]
DOCUMENTS += [ROOT / "docs" / "detection.md", ROOT / "docs" / "your-own-images.md"]
MADE = [ROOT / "docs" / "results.md", ROOT / "docs" / "speed.md"]
"""Pages without a block that a person wrote."""

LANGUAGES = {"", "python", "json", "text"}
"""Of fenced blocks: commands, Python, a recipe, and what is only shown."""

RAY = "needs a cluster; tests/experiments runs such a command if Ray is installed"
EXPORT = "needs the extra export; tests/export does the same where it is installed"
ENGINES = "needs inference engines; tests/bench does the same where they are installed"
HALVES = "five runs, and a pattern that a shell expands; tests/inference gives several runs that held out parts"
CANNOT_RUN = {
    "make demo": "sets up an environment from the package index",
    "make test": "is what runs this test",
    "pip install 'wideresnet[ray]'": "needs the package index",
    "wrn reproduce table4 --data path/to/cifar10 path/to/cifar100 --on ray": RAY,
    "wrn reproduce table4 --on ray": RAY,
    "wrn export runs/my-run": EXPORT,
    "wrn predict runs/my-run/model.onnx": EXPORT,
    "wrn export runs/toys": EXPORT,
    "wrn predict runs/toys/model.onnx": EXPORT,
    "wrn eval runs/my-run/model.onnx": EXPORT,
    "wrn bench infer runs/my-run --against onnxruntime": ENGINES,
    "wrn bench infer WRN-16-4-cifar10 --data cifar10 --against openvino-bf16": ENGINES,
    "wrn train WRN-16-4 --data photos --from WRN-16-4-cifar10 --recipe finetune --image-size 32 --epochs 20": HALVES,
    "wrn check photos --with 'runs/halves/": HALVES,
    "python tools/toy_photos.py photos new": "draws 200 images; tests/tools draws fewer",
    "rm photos/key/IMG_1007.jpg": "removes two of them",
    "wrn detect": "needs COCO or boxes of one's own; tests/detection runs each of its verbs",
    "wrn bench figure4": "takes a minute for 1,001 layers; tests/bench measures small networks by the same command",
}
"""Beginnings of commands that no test runs, and why."""

SMALL = "WRN-10-1"
"""In place of any network."""

DATA = {
    "cifar10": "stand-in.npz", "path/to/images": "path/to/images", "photos": "path/to/images", "new": "folder",
}  # fmt: skip
"""Data of the documents -> what the test has made instead: 32 px and 10 classes, and folders as the guide has them."""


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a document in a language; "" for those without one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def lines(path: Path) -> list[str]:
    """Every line of a document's blocks of commands, without comments."""
    found = [line for block in blocks(path, "") for line in block.splitlines()]
    return [shlex.join(words) for words in (shlex.split(line, comments=True) for line in found) if words]


def commands(path: Path) -> list[list[str]]:
    """Every command of `wrn`, as words without `wrn`."""
    return [shlex.split(line)[1:] for line in lines(path) if line.startswith("wrn ")]


def substitute(words: list[str]) -> list[str]:
    """Replace what is large or slow in a command; return the same words if nothing is."""
    verb = words[0]
    if verb == "reproduce" and "--collect" not in words:  # the same plan; tests/experiments trains a small one
        return [*without_data(words), "--collect"]
    if verb == "bench":
        small = [SMALL if word.startswith("WRN") else word for word in words]
        return [*small, "--batch-size", "2", "--repeats", "3", "--seconds", "0", "--out", "runs/bench"]
    if verb == "check" and "--with" in words:  # the classes of the run that stands in for any
        return [DATA["cifar10"] if word == "path/to/images" else DATA.get(word, word) for word in words]
    large = [word for word in words if word in DATA]
    changed = [DATA.get(word, word) for word in words]
    if verb == "train" and large:
        changed[1] = changed[1] if "--from" in words else SMALL  # whose weights are of that network
        changed = ["--no-compile" if word == "--compile" else word for word in changed]
        if "--time" in changed:
            del changed[(place := changed.index("--time")) : place + 2]
        changed += ["--epochs", "1", "--batch-size", "16"]
    return changed


def without_data(words: list[str]) -> list[str]:
    """Leave out --data with its paths."""
    if "--data" not in words:
        return words
    start = words.index("--data")
    rest = [place for place in range(start + 1, len(words)) if words[place].startswith("--")]
    return words[:start] + (words[rest[0] :] if rest else [])


def is_run_as_it_is(words: list[str]) -> bool:
    """Tell whether a command needs no substitute, neither for itself nor for a run that it reads."""
    return substitute(words) == words and not any(word.startswith("runs/my-") for word in words)


def cannot_run(line: str) -> bool:
    return line.startswith(tuple(CANNOT_RUN))


def runnable() -> list[str]:
    """Every command of all documents, once, but those that no test runs."""
    return list(dict.fromkeys(line for path in DOCUMENTS for line in lines(path) if not cannot_run(line)))


def make_inputs() -> None:
    """Make what the documents take for granted in the current folder."""
    random, labels = np.random.default_rng(0), np.arange(40) % 10
    pixels = random.integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(DATA["cifar10"], x_train=pixels[:30], y_train=labels[:30], x_test=pixels[30:], y_test=labels[30:])
    photos = [
        *("photo.jpg", "photo.png", "folder/first.png"),
        *(
            f"path/to/images/{split}/{label}/{n}.png"
            for split in ("train", "test")
            for label in "ab"
            for n in range(16)
        ),
    ]
    for name, image in zip(photos, np.resize(pixels, (len(photos), 32, 32, 3)), strict=True):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(name)
    for block in blocks(GUIDE, "json"):
        Path("my-recipe.json").write_text(block)


def make_runs(words: list[str]) -> None:
    """Make the runs that a command reads: runs/name, unless it writes it."""
    out = words[words.index("--out") + 1] if "--out" in words else None
    for folder in (Path(word) for word in words if word.startswith("runs/") and word != out):
        if not folder.exists():
            if not Path("run").exists():
                fit(recipe_for("paper", SMALL, DATA["cifar10"], epochs=1, batch_size=16), "run")
            shutil.copytree("run", folder)


def test_every_document_has_blocks_of_known_kinds() -> None:
    for path in DOCUMENTS:
        found = set(re.findall(r"^```(\w*)\n.*?^```", path.read_text(), re.DOTALL | re.MULTILINE))
        assert found <= LANGUAGES, path.name
    assert all(len(commands(path)) >= 5 for path in DOCUMENTS[:3])
    assert not any("```" in path.read_text() for path in MADE)


def test_every_command_is_run_or_has_a_reason() -> None:
    every = {line for path in DOCUMENTS for line in lines(path)}
    assert {line for line in every if not line.startswith("wrn ")} <= {line for line in every if cannot_run(line)}
    assert all(any(line.startswith(start) for line in every) for start in CANNOT_RUN)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_parses(path: Path) -> None:
    for words in commands(path):
        make_parser().parse_args(words)  # exits if it does not
        for word in words:
            if word.startswith(("WRN-", "PreAct")):
                assert shipped_name(word) or parse(word, "imagenet" if words[0] == "detect" else None)


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("path", [GUIDE, PAPER], ids=lambda path: path.name)
def test_every_python_block_runs(path: Path, tmp_path: Path) -> None:
    """In order, in one process."""
    source = "\n".join(blocks(path, "python"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "photo.png")
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", source], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert path != GUIDE or (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_the_block_of_the_page_about_the_paper_computes_what_the_packages_block_does() -> None:
    (source,) = (block for block in blocks(PAPER, "python") if "class Block" in block)
    names: dict[str, type[torch.nn.Module]] = {}
    exec(source, names)
    torch.manual_seed(0)
    shown, own = names["Block"](8, dropout=0.3), PreActBlock(8, (8, 8), (3, 3), Style(dropout=0.3))
    own.load_state_dict({f"{key[:4]}s.{int(key[4]) - 1}{key[5:]}": value for key, value in shown.state_dict().items()})
    images = torch.randn(4, 8, 6, 6)
    for is_training in (False, True):
        results = []
        for block in (shown.train(is_training), own.train(is_training)):
            torch.manual_seed(1)
            results.append(block(images))
        assert torch.equal(*results)


SHORT_FIT = """
import wideresnet
train = wideresnet.fit
wideresnet.fit = lambda recipe, out: train(recipe.replace(epochs=1), out)
"""
"""Before README's block: an epoch instead of all."""


def test_the_python_block_of_readme_runs(tmp_path: Path) -> None:
    """With digits for CIFAR-10."""
    (source,) = blocks(README, "python")
    long = '"WRN-28-10", "cifar10"'
    assert long in source
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "photo.jpg")
    source = SHORT_FIT + source.replace(long, '"WRN-10-1", "digits"')
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_fast_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_inputs()
    ran = [words for words in (shlex.split(line)[1:] for line in runnable()) if is_run_as_it_is(words)]
    verbs = {"check", "train", "eval", "predict", "export", "analyze", "report", "info", "cache", "paper", "reproduce"}
    assert {words[0] for words in ran} == verbs
    for words in ran:
        assert main(words) == 0, words
    assert Path("comparison.html").is_file()


@pytest.mark.slow
def test_the_long_commands_work_with_small_networks_and_little_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_inputs()
    for words in (shlex.split(line)[1:] for line in runnable()):
        if not is_run_as_it_is(words):
            make_runs(words)
            assert main(substitute(words)) == 0, words


def test_links_of_documents_lead_somewhere() -> None:
    for path in [*DOCUMENTS, *MADE]:
        for address in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not address.startswith("https:"):
                assert (path.parent / address).exists(), (path.name, address)
