from __future__ import annotations

import json

import pytest

from wideresnet.commands.main import main
from wideresnet.spec.exhibits import EXHIBITS


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["paper", *words]) == 0
    return capsys.readouterr().out


def test_without_an_exhibit_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[0] for line in shown(capsys).splitlines()] == [each.name for each in EXHIBITS]
    assert [each["name"] for each in json.loads(shown(capsys, "--json"))] == [each.name for each in EXHIBITS]


def test_a_table_is_shown_with_its_numbers_its_protocol_and_its_oddities(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = " ".join(shown(capsys, "table4").split())
    for words in ("Table 4: depth and width", "number of runs not stated", "WRN-28-10", "36,479,194", "4.17", "20.50",
                  "WRN-40-2 has 5.43 in Table 3 and 5.33 in Table 4", "hysts", "200 epochs"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("exhibit", [each.name for each in EXHIBITS])
def test_every_exhibit_fits_in_80_columns_and_has_a_document(exhibit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, shown(capsys, exhibit).splitlines())) <= 80
    document = json.loads(shown(capsys, exhibit, "--json"))
    assert document["name"] == exhibit
    assert document["rows"]


def test_names_may_be_spelled_as_people_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "Table 4") == shown(capsys, "table4")


def test_an_unknown_exhibit_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "table44"]) == 2
    assert "did you mean table4?" in capsys.readouterr().err
