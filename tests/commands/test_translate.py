"""The library's arguments become flags, and nothing else of a message changes."""

from __future__ import annotations

import pytest

from wideresnet.commands.main import main
from wideresnet.commands.translate import to_flags

NAMES = ("batch_size", "limit", "lr", "lr_drop_at", "out", "data", "resume", "overwrite", "flip", "kernels", "seeds")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size=64: too many; use batch_size=32", "--batch-size 64: too many; use --batch-size 32"),
        ("leave out resume=True to start", "leave out --resume to start"),
        ("use flip=False", "use --no-flip"),
        ("use kernels='pytorch'", "use --kernels pytorch"),
        ("lr_drop_at='middle': one of start, end", "--lr-drop-at middle: one of start, end"),
        ("limit=None: needs a value", "--limit None: needs a value"),
        ("lr=1e-05: must be", "--lr 1e-05: must be"),
        ("seeds= and overwrite=True: not both", "--seeds and --overwrite: not both"),
        ("choose another out=", "choose another --out"),
        ("choose another out=, or data=; or lr=.", "choose another --out, or --data; or --lr."),
        ("a lower lr= (or limit=)", "a lower --lr (or --limit)"),
        ("out=runs/mine: holds a run", "--out runs/mine: holds a run"),
        ("out='two words'", "--out 'two words'"),
        ("", ""),
    ],
)
def test_arguments_become_flags(message: str, expected: str) -> None:
    assert to_flags(message, NAMES) == expected


@pytest.mark.parametrize(
    "message",
    [
        "family= is no flag here, nor is LR=3",
        "/data/limit=3/x: no such folder",
        "./limit=3: no such folder",
        "../limit=3/lr=0.1: no such folder",
        "a.limit=3: no such file",
        "my-limit=3: no such file",
        "my_limit=3: no such file",
        r"C:\limit=3: no such folder",
        "recipe 'limit=3': no such recipe",
        "xlr=3, lr_=3, lr =3, lr==",
        "batch_size 64, lr 0.1",
    ],
)
def test_other_words_stay_as_they_are(message: str) -> None:
    assert to_flags(message, ("limit", "batch_size", "lr_drop_at")) == message


@pytest.mark.parametrize("path", ["limit=3", "limit=3/x", "my limit=3/lr=1", "lr=1, limit=3", r"(limit=3)*[x]\d"])
def test_what_was_typed_stays_as_it_was_typed(path: str) -> None:
    message = f"out={path}: holds {path}; use limit=5"
    assert to_flags(message, NAMES, ["--out", path, "plain"]) == f"--out {path}: holds {path}; use --limit 5"


def test_a_name_that_begins_with_another_is_read_whole() -> None:
    assert to_flags("lr_drop_at=end lr=3", ("lr", "lr_drop", "lr_drop_at")) == "--lr-drop-at end --lr 3"


def test_a_command_that_knows_no_flag_translates_nothing() -> None:
    assert to_flags("limit=3", ()) == "limit=3"


@pytest.mark.parametrize("words", [("--out", "limit=3"), ("--out=limit=3",)])
def test_a_real_command_speaks_of_flags_and_leaves_paths_alone(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", *words]) == 2
    assert capsys.readouterr().err == "wrn: --resume: limit=3 holds no run; leave out --resume to start one\n"
