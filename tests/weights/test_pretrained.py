"""Networks that come with the package: their names stand for weights wherever weights are taken."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from wideresnet import load
from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.info import render_pretrained, render_weights
from wideresnet.commands.main import main
from wideresnet.inference.describe import describe_pretrained, describe_weights
from wideresnet.spec.record import MODEL
from wideresnet.weights.hub import read_weights, write_weights
from wideresnet.weights.pretrained import CARD, list_pretrained, read_card, weights_name

Ship = Callable[..., Path]
MakeNpz = Callable[..., Path]
NAME = "WRN-16-4-cifar10"


def refusal(path: str | Path) -> str:
    with pytest.raises((UsageError, DataError)) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def document(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_name_stands_for_its_weights_in_any_case(ship: Ship) -> None:
    folder = ship()
    assert list_pretrained() == [NAME]
    expected = load(folder).state_dict()
    for name in (NAME, NAME.lower(), Path(NAME.upper())):
        assert weights_name(name) == NAME
        found = load(name).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_path_that_exists_wins(ship: Ship, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(num_classes=4)
    monkeypatch.chdir(tmp_path)
    own = read_weights(ship("other", num_classes=3))
    (tmp_path / NAME).mkdir()
    write_weights(tmp_path / NAME, own)
    assert load(NAME).num_classes == 3
    assert read_card(NAME) is None
    assert read_card(NAME.lower()) is not None


def test_an_unknown_name_is_refused_naming_what_is_shipped(ship: Ship) -> None:
    assert refusal("WRN-16-4-cifar").endswith("or of weights (no network is shipped with this package)")
    ship()
    ship("WRN-10-1-digits")
    message = refusal("WRN-16-4-cifar")
    assert message.startswith("WRN-16-4-cifar: no model.safetensors there")
    assert message.endswith(
        "or a shipped network: did you mean WRN-16-4-cifar10? (one of WRN-10-1-digits, WRN-16-4-cifar10)"
    )


def test_weights_in_16_bits_become_a_network_in_32_with_a_note_unless_they_are_shipped(
    ship: Ship, tmp_path: Path
) -> None:
    folder = ship()
    stored = load_file(folder / MODEL)
    assert {str(tensor.dtype) for tensor in stored.values() if tensor.ndim > 1} == {"torch.float16"}
    assert read_weights(NAME).notes == ()
    read = read_weights(folder)
    assert read.notes == (f"{folder / MODEL}: stored in float16, computed in float32",)
    state = read.network.state_dict()
    for name, tensor in stored.items():
        wanted = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        assert state[name].dtype == wanted
        assert torch.equal(state[name], tensor.to(wanted))
    write_weights(tmp_path, read)
    assert read_weights(tmp_path).notes == ()


def test_a_tensor_of_whole_numbers_is_no_weight(ship: Ship) -> None:
    folder = ship()
    read = read_weights(folder)
    read.network.fc.weight = torch.nn.Parameter(read.network.fc.weight.to(torch.int32), requires_grad=False)
    write_weights(folder, read)
    assert refusal(folder).endswith("fc.weight is int32, WRN-10-1 needs float32")


@pytest.mark.parametrize(
    "content", ["", "{}", '{"network": 3}', '{"network": "WRN-10-1", "dataset": "x", "params": 1}']
)
def test_a_damaged_card_is_refused_in_one_line(ship: Ship, content: str) -> None:
    (ship() / CARD).write_text(content)
    with pytest.raises(DataError, match=CARD) as caught:
        read_card(NAME)
    assert "\n" not in str(caught.value)


def test_eval_and_analyze_take_a_name_and_record_it(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = ship(), make_npz()
    expected = document(capsys, "eval", folder, "--data", data)
    found = document(capsys, "eval", NAME.lower(), "--data", data)
    assert found["weights"] == NAME
    assert found["error_pct"] == expected["error_pct"]
    analysis = document(capsys, "analyze", NAME, "--data", data, "--out", tmp_path / "out", "--device", "cpu")
    (network,) = analysis["networks"]
    assert network["weights"] == NAME
    assert network["weights_sha256"] == read_weights(NAME).sha256
    assert main(["analyze", NAME, NAME.lower(), "--data", str(data)]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["eval", NAME]) == 2
    assert f"{NAME}: comes without its data; name it with --data" in capsys.readouterr().err


def test_info_describes_weights_with_what_is_known_of_them(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ship()
    shipped, plain = document(capsys, "info", "--weights", NAME), describe_weights(folder)
    assert (shipped["weights"], shipped["network"], shipped["input_size"]) == (NAME, "WRN-10-1", [8, 8])
    assert shipped["class_names"] == ["kind0", "kind1", "kind2", "kind3"]
    assert (shipped["dataset"], shipped["test_error_pct"]) == ("cifar10", 5.93)
    assert shipped["card"]["params"] == shipped["params"]
    assert (plain["dataset"], plain["test_error_pct"], plain["card"]) == (None, None, None)
    assert shipped["sha256"] == plain["sha256"]
    for info, words in ((shipped, "5.93 % test error on cifar10"), (plain, "not known to have been tested")):
        console = Console(file=io.StringIO(), width=200)
        console.print(render_weights(info))
        assert isinstance(console.file, io.StringIO)
        assert words in console.file.getvalue()


def test_info_lists_what_is_shipped(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "info", "--weights", "list") == []
    folder = ship()
    (row,) = document(capsys, "info", "--weights", "list")
    assert (row["name"], row["dataset"], row["test_error_pct"]) == (NAME, "cifar10", 5.93)
    assert row["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    console = Console(file=io.StringIO(), width=200)
    console.print(render_pretrained(describe_pretrained()))
    assert isinstance(console.file, io.StringIO)
    assert NAME in console.file.getvalue()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["info"], "needs NETWORK or --weights"),
        (["info", "WRN-10-1", "--weights", NAME], "choose one"),
        (["info", "--weights", NAME, "--in-channels", "1"], "leave out --in-channels"),
        (["info", "--weights", "nowhere"], "nowhere: no model.safetensors there"),
    ],
)
def test_info_refuses_what_does_not_go_together(
    ship: Ship, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    ship()
    assert main(words) == 2
    assert complaint in capsys.readouterr().err


def test_the_package_data_holds_everything_that_is_no_python() -> None:
    """What the patterns of pyproject.toml leave out would be missing in every installation but this one."""
    root = Path(__file__).parent.parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["wideresnet"]
    package = root / "src" / "wideresnet"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files - packed if path.suffix != ".py"} == set()
    assert "pretrained/*/*" in patterns
