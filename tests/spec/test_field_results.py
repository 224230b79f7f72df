"""What others have published is well-formed, can be selected, and belongs to recipes that exist."""

from __future__ import annotations

from wideresnet.data.facts import FACTS
from wideresnet.spec.field_results import FIELD_RESULTS, field_results
from wideresnet.spec.names import parse
from wideresnet.spec.recipes import RECIPES


def test_every_row_names_a_network_a_set_and_a_recipe_of_this_package() -> None:
    for row in FIELD_RESULTS:
        assert str(parse(row.network, "cifar")) == row.network
        assert row.data in FACTS
        assert row.recipe in ("", *RECIPES)
        assert 0 < row.error_pct < 100
        assert all((row.setting, row.statistic, row.source))


def test_results_are_selected_by_network_data_and_recipe() -> None:
    assert field_results() == FIELD_RESULTS
    assert [row.error_pct for row in field_results(network="WRN-28-10", data="cifar10", recipe="sam")] == [2.7, 3.5]
    assert [row.error_pct for row in field_results(data="cifar100", recipe="strong")] == [15.67]
    assert field_results(network="WRN-16-2") == ()
