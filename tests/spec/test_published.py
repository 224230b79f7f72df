from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from wideresnet.networks import Network, create
from wideresnet.spec import published as paper
from wideresnet.spec.names import FAMILIES, list_networks, parse

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "parameters.json").read_text(encoding="utf-8"))
NUM_CLASSES = {"cifar": 10, "imagenet": 1000}
EVERY_NETWORK = [(family, name) for family in FAMILIES for name in list_networks(family)]
BUILT_ROWS = [row for row in paper.RESULTS if row.family is not None]


@cache
def build(family: str, name: str) -> Network:
    with torch.device("meta"):
        return create(name, NUM_CLASSES[family], family=family)


def count(family: str, name: str) -> int:
    return sum(p.numel() for p in build(family, name).parameters())


@pytest.mark.parametrize(("family", "name"), EVERY_NETWORK)
def test_every_network_has_its_golden_number_of_parameters(family: str, name: str) -> None:
    assert count(family, name) == GOLDEN[family][name]


def test_the_golden_numbers_are_those_of_the_listed_networks() -> None:
    assert [(family, name) for family in GOLDEN for name in GOLDEN[family]] == EVERY_NETWORK


@pytest.mark.parametrize("row", BUILT_ROWS, ids=lambda row: f"table{row.table}-{row.network}-{row.dropout}")
def test_published_networks_have_the_published_number_of_parameters(row: paper.Result) -> None:
    assert row.family is not None
    assert row.network in list_networks(row.family)
    params = GOLDEN[row.family][row.network]
    assert row.params_exact in (None, params)
    if row.params_printed:
        assert (f"{params / 1e6:.1f}M" == row.params_printed) == (row.params_note == "")


@pytest.mark.parametrize(("name", "params"), paper.EXACT_PARAMS.items())
def test_more_exact_counts_hold(name: str, params: int) -> None:
    assert GOLDEN["cifar"][name] == params


def test_wrn_28_10_with_100_classes_has_the_stated_number_of_parameters() -> None:
    with torch.device("meta"):
        network = create("WRN-28-10", 100)
    assert sum(p.numel() for p in network.parameters()) == 36_536_884


def test_preactresnet_1001_is_10_2_million_only_without_normalization() -> None:
    convs = [m for m in build("cifar", "PreActResNet-1001").modules() if isinstance(m, torch.nn.Conv2d)]
    assert f"{sum(conv.weight.numel() for conv in convs) / 1e6:.2f}M" == "10.18M"
    assert f"{GOLDEN['cifar']['PreActResNet-1001'] / 1e6:.1f}M" == "10.3M"


def test_resnet_1202_has_the_size_that_its_authors_state() -> None:
    assert f"{GOLDEN['cifar']['ResNet-1202'] / 1e6:.1f}M" == "19.4M"  # He et al. 2016a, Table 6


def test_every_table_is_there_with_all_its_rows() -> None:
    rows = {table: len(paper.results(table)) for table in range(2, 10)}
    assert rows == {2: 6, 3: 4, 4: 10, 5: 15, 6: 8, 7: 7, 8: 5, 9: 3}
    assert sum(rows.values()) == len(paper.results())


def test_results_of_a_network_are_those_of_its_family_only() -> None:
    assert [row.table for row in paper.results(network="wrn-28-10")] == [4, 5, 6, 6]
    assert [row.top1_pct for row in paper.results(network="WRN-34-2", family="imagenet")] == [23.39]
    assert paper.results(network="WRN-34-2", family="cifar") == ()


def test_rows_name_networks_canonically_and_give_errors_in_percent() -> None:
    for row in paper.RESULTS:
        errors = (row.cifar10_pct, row.cifar100_pct, row.svhn_pct, row.top1_pct, row.top5_pct)
        given = [error for error in errors if error is not None]
        assert given
        assert all(1 < error < 40 for error in given)
        if row.family is not None:
            assert str(parse(row.network, row.family)) == row.network
