from __future__ import annotations

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.experiments.plan import expand, matching, run_key
from wideresnet.spec.recipes import paper


def test_a_table_expands_to_a_cell_for_each_number() -> None:
    expansion = expand("table4", {})
    assert len(expansion.cells) == 19  # ten networks on two sets; WRN-40-8 has no figure on CIFAR-100
    first = expansion.cells[0]
    assert (first.label, first.dataset, first.published_pct) == ("WRN-40-1", "cifar10", 6.85)
    assert first.recipe == paper("WRN-40-1", "cifar10").replace(preprocessing="zca")


def test_rows_that_this_package_cannot_build_are_named() -> None:
    assert [text.split(":")[0] for text in expand("table5", {}).left_out] == ["NIN", "DSN", "FitNet", "Highway", "ELU"]


def test_dropout_is_that_of_the_data_set() -> None:
    cells = expand("table6", {}, networks=["WRN-16-4"]).cells
    dropout = {(cell.label, cell.dataset): cell.recipe.network_options.dropout for cell in cells}
    assert dropout["WRN-16-4, dropout", "cifar10"] == 0.3
    assert dropout["WRN-16-4, dropout", "svhn"] == 0.4
    assert dropout["WRN-16-4", "svhn"] == 0
    preprocessing = {cell.dataset: cell.recipe.feed.preprocessing for cell in cells}
    assert preprocessing == {"cifar10": "mean_std", "cifar100": "mean_std", "svhn": "scale"}


def test_a_scale_shortens_the_schedule_evenly() -> None:
    schedule = expand("table3", {}, scale=0.1).cells[0].recipe.schedule
    assert (schedule.epochs, schedule.lr_drop_epochs) == (20, (6, 12, 16))


def test_data_can_be_read_from_a_folder_without_changing_the_key() -> None:
    here, there = expand("table3", {}).cells[0], expand("table3", {"cifar10": "some/folder"}).cells[0]
    assert there.recipe.data == "some/folder"
    assert run_key(here.recipe, "digest") == run_key(there.recipe, "digest")


def test_the_key_changes_with_everything_that_decides_a_result() -> None:
    recipe = paper("WRN-16-1", "cifar10")
    key = run_key(recipe, "digest")
    assert key == run_key(recipe.replace(seed=3, threads=1, kernels="pytorch", eval_every=7), "digest")
    for change in ({"lr": 0.2}, {"network": "WRN-16-2"}, {"dropout": 0.1}, {"precision": "bf16"}, {"epochs": 9}):
        assert run_key(recipe.replace(**change), "digest") != key
    assert run_key(recipe, "other digest") != key


def test_keys_are_those_of_older_runs() -> None:
    """A change of these invalidates every run that anybody has made; see NUMERICS."""
    cells = {cell.label: cell for cell in expand("table6", {}, datasets=["cifar10"]).cells}
    keys = {label: run_key(cell.recipe, "digest") for label, cell in cells.items()}
    assert keys["WRN-16-4"] == "0d3f607c6298"
    assert keys["WRN-28-10, dropout"] == "d207d8662e4a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table44", {}), "did you mean table4"),
        (("figure4", {}), "its numbers are times"),
        (("table7", {}), "ImageNet"),
    ],
)
def test_what_cannot_be_expanded_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(*arguments)


def test_filters_name_what_there_is() -> None:
    with pytest.raises(UsageError, match="table3 has cifar10"):
        expand("table3", {}, datasets=["svhn"])
    with pytest.raises(UsageError, match="WRN-40-2-l1"):
        expand("table3", {}, networks=["WRN-28-10"])
    with pytest.raises(UsageError, match="scale=0"):
        expand("table3", {}, scale=0)


def test_another_width_is_marked_and_equal_networks_are_run_once() -> None:
    expansion = expand("table4", {}, datasets=["cifar10"], width=1)
    assert [cell.label for cell in expansion.cells] == ["WRN-40-1", "WRN-28-1", "WRN-22-1", "WRN-16-1"]
    assert expansion.file_name == "table4-k1"
    assert expansion.scaled_down == "widening factor 1 in all networks"
    thin = expand("table5", {}, datasets=["cifar10"], width=1).cells[0]
    assert thin.recipe.network == "ResNet-110"


def test_a_figure_can_be_drawn_on_any_data_with_its_networks() -> None:
    assert {cell.dataset for cell in expand("figure3", {}).cells} == {"svhn"}
    labels = [cell.label for cell in expand("figure3", {}, datasets=["cifar10"]).cells]
    assert labels == ["WRN-16-4", "WRN-16-4, dropout", "WRN-52-1", "WRN-52-1, dropout"]


def test_all_exhibits_that_have_what_is_wanted_are_found() -> None:
    trainable = ["table2", "table3", "table4", "table5", "table6", "table9", "figure2", "figure3"]
    assert matching(None, None) == trainable
    assert matching(["svhn"], None) == ["table6", "table9", "figure2", "figure3"]
    assert matching(None, ["WRN-40-10"]) == ["table9"]
