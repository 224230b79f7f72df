"""Imports go in one direction; the contracts stand in pyproject.toml."""

from __future__ import annotations

from importlinter.cli import lint_imports


def test_imports_go_in_one_direction_and_the_plain_layer_knows_no_torch(capsys) -> None:
    code = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert code == 0, capsys.readouterr().out
