from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from wideresnet.base.errors import UsageError
from wideresnet.commands.info import render, render_several
from wideresnet.commands.main import main
from wideresnet.networks.describe import describe
from wideresnet.spec.catalog import CATALOG
from wideresnet.spec.counts import COUNTS
from wideresnet.spec.names import list_networks


def rendered(info: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(info))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_description_is_json_and_its_stages_add_up() -> None:
    info = describe("wrn-28-10")
    assert json.loads(json.dumps(info)) == info
    assert info["network"] == "WRN-28-10"
    assert info["params"] == 36_479_194 == sum(stage["params"] for stage in info["stages"])
    assert info["macs"] == sum(stage["macs"] for stage in info["stages"])
    assert [stage["shape"] for stage in info["stages"]] == [
        [16, 32, 32],
        [160, 32, 32],
        [320, 16, 16],
        [640, 8, 8],
        [640],
        [10],
    ]


def test_an_imagenet_network_is_described_as_published() -> None:
    info = describe("WRN-50-2-bottleneck")
    assert (info["num_classes"], info["input_size"]) == (1000, [224, 224])
    assert info["params"] == 68_883_240
    assert describe("WRN-34-2", family="imagenet")["family"] == "imagenet"


def test_classes_size_channels_batch_and_options_are_taken_into_account() -> None:
    base = describe("WRN-10-1")
    info = describe("WRN-10-1", num_classes=7, input_size=(20, 48), in_channels=1, batch_size=2, dropout=0.3)
    assert info["stages"][0]["shape"] == [16, 20, 48]
    assert info["stages"][-1]["shape"] == [7]
    assert info["params"] == base["params"] - 2 * 16 * 9 - 3 * 65
    assert info["options"]["dropout"] == 0.3
    assert info["activation_bytes"] < base["activation_bytes"] / 40
    with pytest.raises(UsageError, match="dropout=2"):
        describe("WRN-10-1", dropout=2)


def test_the_terminal_shows_cost_stages_depth_and_published_errors() -> None:
    text = rendered(describe("WRN-40-2", batch_size=64))
    for part in ("2,243,546", "328 MMAC", "a training batch of 64", "conv4", "128x8x8", "6N + 4, N = 6"):
        assert part in text
    assert "Table 3: CIFAR-10 5.43" in text
    assert "Table 4: CIFAR-10 5.33, CIFAR-100 26.04 (zca)" in text


def test_a_network_that_the_paper_does_not_report_has_no_published_line() -> None:
    info = describe("WRN-10-1")
    assert info["published"] == []
    assert "published" not in rendered(info)


def compared(*infos: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(render_several(list(infos)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_networks_are_compared_in_cost_and_in_the_papers_error() -> None:
    lines = compared(describe("WRN-28-10"), describe("WRN-16-8"), describe("WRN-10-1"))
    assert lines[1].split() == ["WRN-28-10", "36,479,194", "5.24", "G", "2.2", "GiB", "4.00", "19.25", "-", "-"]
    assert lines[2].split()[-4:] == ["4.27", "20.43", "1.81", "-"]
    assert lines[3].split()[-4:] == ["-"] * 4
    assert max(map(len, lines)) <= 80


def test_the_list_has_every_network_in_80_columns_and_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["info", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in list_networks():
        assert any(line.split()[:1] == [name] for line in lines)
    assert main(["info", "list", "--family", "imagenet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [info["network"] for info in document] == list(list_networks("imagenet"))
    assert all(info["params"] and info["macs"] and info["family"] == "imagenet" for info in document)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=[pytest.mark.slow] if counts[1] > 1e9 else [])
        for family, networks in COUNTS.items()
        for name, counts in networks.items()
    ],
)
def test_the_list_has_the_counts_of_the_networks_themselves(family: str, name: str) -> None:
    info = describe(name, family=family)
    assert (info["params"], info["macs"]) == COUNTS[family][name]


def test_every_network_of_the_catalog_is_in_the_list() -> None:
    assert {family: tuple(networks) for family, networks in COUNTS.items()} == CATALOG


def test_a_list_for_other_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "list", "--num-classes", "7"]) == 2
    assert "--num-classes 7: the list is for the paper's data; name the networks instead" in capsys.readouterr().err
