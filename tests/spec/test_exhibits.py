from __future__ import annotations

import pytest

from wideresnet.spec import published
from wideresnet.spec.exhibits import EXHIBITS, INCONSISTENCIES, PROTOCOLS, REPRODUCTIONS, describe_exhibit
from wideresnet.spec.names import parse

NAMES = [each.name for each in EXHIBITS]


def test_every_table_and_figure_with_numbers_is_an_exhibit() -> None:
    assert [*(f"table{n}" for n in range(2, 10)), "figure2", "figure3", "figure4"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_exhibit_is_described_with_its_rows_and_protocol(name: str) -> None:
    document = describe_exhibit(name)
    assert document["rows"]
    assert document["protocol"]["said"]
    assert all("network" in row for row in document["rows"])


def test_tables_have_all_published_rows() -> None:
    counts = {table: len(describe_exhibit(f"table{table}")["rows"]) for table in range(2, 10)}
    assert sum(counts.values()) == len(published.RESULTS)


def test_figures_show_thin_and_wide_networks_with_the_errors_of_their_legends() -> None:
    rows = {row["network"]: row for row in describe_exhibit("figure2")["rows"]}
    assert (rows["PreActResNet-164"]["cifar10_pct"], rows["WRN-28-10"]["cifar10_pct"]) == (5.46, 4.00)
    assert (rows["PreActResNet-164"]["cifar100_pct"], rows["WRN-28-10"]["cifar100_pct"]) == (24.33, 19.25)
    errors = {(row["network"], row.get("dropout", 0)): row["svhn_pct"] for row in describe_exhibit("figure3")["rows"]}
    assert errors[("WRN-16-4", 0)] == 1.85
    assert errors[("WRN-16-4", 0.3)] == 1.64


def test_figure_4_has_times_and_no_errors() -> None:
    rows = describe_exhibit("figure4")["rows"]
    assert [row["milliseconds_per_step"] for row in rows] == list(published.FIGURE4_MS.values())


def test_protocols_and_inconsistencies_belong_to_exhibits() -> None:
    assert {each.protocol for each in EXHIBITS} <= {protocol.name for protocol in PROTOCOLS}
    assert {name for each in INCONSISTENCIES for name in each.exhibits} <= set(NAMES)


def test_reproductions_name_networks_canonically_and_give_a_range() -> None:
    for each in REPRODUCTIONS:
        assert str(parse(each.network, "cifar")) == each.network
        low, high = each.error_pct
        assert 1 < low <= high < 40
