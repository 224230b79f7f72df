"""tools/pretrained.py: a finished run becomes a network of the package, and its card says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pretrained as tool
from model_card import readme
from wideresnet.commands.main import main as wrn
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import MODEL, RunFolder
from wideresnet.training import fit
from wideresnet.weights.hub import load
from wideresnet.weights.pretrained import CARD, list_pretrained, read_card

pytestmark = pytest.mark.usefixtures("ship")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `own.npz` and runs on it: of seed 0 and seed 1, and one that starts from seed 1's."""
    home = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", 64), ("test", 40)):
        labels = np.arange(num) % 4
        noise = random.integers(0, 80, (num, 8, 8, 3))
        arrays |= {f"x_{split}": (noise + labels[:, None, None, None] * 40).astype(np.uint8), f"y_{split}": labels}
    np.savez(home / "own.npz", **arrays)
    common: dict[str, Any] = {"epochs": 4, "batch_size": 16, "crop_padding": 1, "precision": "fp32"}
    recipe = Recipe.flat(network="WRN-10-1", data=str(home / "own.npz"), **common)
    fit(recipe, home / "seed0", command=f"wrn train WRN-10-1 --data {home / 'own.npz'}")
    fit(recipe.replace(seed=1), home / "seed1")
    fit(recipe.replace(init_from=str(home / "seed1"), epochs=1), home / "tuned")
    return home


def added(home: Path, *runs: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    folder = tool.add([home / run for run in runs], str(home / "own.npz"), **options)
    return folder, json.loads((folder / CARD).read_text())


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert tool.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return captured.err


def test_a_run_becomes_a_network_of_the_package_in_16_bits(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, card = added(home, "seed0")
    assert list_pretrained() == ["WRN-10-1-own"] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {"config.json", MODEL, CARD, "README.md", "reliability.svg"}
    exact, stored = load(home / "seed0").state_dict(), load_file(folder / MODEL)
    for name, tensor in load("wrn-10-1-own").state_dict().items():
        assert torch.equal(tensor, exact[name].half().float() if tensor.ndim > 1 else exact[name]), name
        assert (stored[name].dtype == torch.float16) == (tensor.ndim > 1), name
    assert tool.check() == []
    known = read_card("WRN-10-1-own")
    assert known is not None
    assert known.test_error_pct == card["test_error_pct"]
    assert wrn(["eval", "WRN-10-1-own", "--data", str(home / "own.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error_pct"] == card["test_error_pct"]


def test_the_card_holds_what_is_measured_of_the_weights_in_32_16_and_8_bits(home: Path) -> None:
    folder, card = added(home, "seed0")
    ways = {"fp32": (home / "seed0", False), "fp16": (folder, False), "int8": (folder, True)}
    assert card["errors"].keys() == ways.keys()
    for way, (path, int8) in ways.items():
        found, expected = card["errors"][way], evaluate_weights(path, home / "own.npz", device="cpu", int8=int8)
        assert (found["error_pct"], found["num_errors"]) == (expected["error_pct"], expected["num_errors"])
        assert found["nll"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["ece_pct"] == pytest.approx(expected["ece_pct"], abs=1e-3)
    assert card["test_error_pct"] == card["errors"]["fp16"]["error_pct"]
    result = RunFolder(home / "seed0").read_result()
    assert (card["params"], card["epochs"], card["num_test_images"]) == (result["params"], 4, 40)
    assert (folder / "README.md").read_text() == readme(card)


def test_every_run_is_listed_and_seed_0_is_shipped_whatever_its_error(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, card = added(home, "seed0", "seed1", "tuned")
    assert [(run["seed"], run["epochs"]) for run in card["runs"]] == [(0, 4), (1, 4), (0, 1)]
    for run, name in zip(card["runs"], ("seed0", "seed1", "tuned"), strict=True):
        result = RunFolder(home / name).read_result()
        assert (run["test_error_pct"], run["seconds"]) == (result["test_error_pct"], result["seconds"])
        assert f"| {run['recipe_text']} | {run['seed']} | {run['epochs']} |" in (folder / "README.md").read_text()
    assert card["seed"] == 0
    message = refusal(capsys, "add", home / "seed1", home / "seed0", "--data", home / "own.npz")
    assert "seed1: has seed 1; give the run of seed 0 first" in message


def test_no_path_of_the_machine_gets_into_a_card(home: Path) -> None:
    folder, card = added(home, "tuned", "seed1", name="tuned")
    for file in folder.iterdir():
        assert str(home).encode() not in file.read_bytes()
    assert (card["recipe"]["data"], card["recipe"]["init_from"]) == ("own", "seed1")
    assert card["recipe"]["init_sha256"] == RunFolder(home / "tuned").read_recipe().init_sha256
    assert "--data FOLDER" in card["command"]
    assert "--from seed1" in card["command"]
    card["recipe_text"] = f"paper, from {home}"
    (folder / CARD).write_text(json.dumps(card))
    (folder / "README.md").write_text(readme(card))
    assert [line.endswith("is a path of somebody's machine") for line in tool.check()] == [True]


def test_the_command_of_a_card_trains_by_the_same_recipe(home: Path) -> None:
    _, card = added(home, "seed0")
    words = card["command"].split()
    assert words[:4] == ["wrn", "train", "WRN-10-1", "--data"]
    assert "--epochs 4 --batch-size 16 --crop-padding 1" in " ".join(words[5:])


def test_the_check_finds_what_is_not_as_the_card_says(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, card = added(home, "seed0")
    page, model = (folder / "README.md").read_text(), (folder / MODEL).read_bytes()
    (folder / "README.md").write_text(page.replace("test error", "error"))
    (folder / MODEL).write_bytes(model[:-1] + b"x")
    assert tool.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"WRN-10-1-own/{MODEL}: does not match its SHA-256 in {CARD}",
        f"WRN-10-1-own/README.md: is not what {CARD} says; run python tools/pretrained.py",
    ]
    (folder / MODEL).write_bytes(model)
    assert tool.main([]) == 0
    assert (folder / "README.md").read_text() == page
    (folder / CARD).write_text(json.dumps({**card, "name": "other"}))
    assert f"WRN-10-1-own/{CARD}: is of other" in tool.check()


def test_all_networks_together_stay_small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = added(home, "seed0")
    size = sum(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(tool, "LIMIT_BYTES", size + 1000)
    assert tool.check() == []
    added(home, "seed0")  # takes the place of the first one
    with pytest.raises(tool.UsageError, match="more than"):
        added(home, "seed0", name="second")
    assert list_pretrained() == ["WRN-10-1-own"]
    monkeypatch.setattr(tool, "LIMIT_BYTES", size - 1)
    assert [line.partition(",")[2] for line in tool.check()] == [f" more than {tool.human_bytes(size - 1)}"]


def test_results_on_corrupted_images_are_shown_and_survive_as_long_as_the_weights_do(home: Path) -> None:
    folder, card = added(home, "seed0")
    assert "Corrupted" not in readme(card)
    tool.corrupt("WRN-10-1-own", str(home / "own.npz"), limit=8)
    corruptions = json.loads((folder / CARD).read_text())["corruptions"]
    assert corruptions["num_images"] == 8
    assert len(corruptions["fog"]) == 5
    _, again = added(home, "seed0", "seed1")
    assert again["corruptions"] == corruptions
    shown = " | ".join(f"{error:.2f} %" for error in corruptions["fog"])
    assert f"| fog | {shown} |" in (folder / "README.md").read_text()
    assert f"all corruptions and severities: {corruptions['mean']:.2f} %" in readme(again)
    _, other = added(home, "tuned", name="WRN-10-1-own")
    assert "corruptions" not in other


def test_mistakes_get_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = home / "own.npz"
    assert "no finished run" in refusal(capsys, "add", tmp_path, "--data", own)
    assert "--name a/b: must be letters" in refusal(capsys, "add", home / "seed0", "--data", own, "--name", "a/b")
    arrays = dict(np.load(own))
    np.savez(tmp_path / "own.npz", **{**arrays, "y_test": (arrays["y_test"] + 1) % 4})
    message = refusal(capsys, "add", home / "seed0", "--data", tmp_path / "own.npz")
    assert "give the data that it was tested on" in message
    fit(Recipe.flat(network="WRN-10-2", data=str(own), epochs=1, batch_size=16, crop_padding=1), tmp_path / "wide")
    message = refusal(capsys, "add", home / "seed0", tmp_path / "wide", "--data", own)
    assert "wide: is WRN-10-2-own, and" in message
    assert list_pretrained() == []
