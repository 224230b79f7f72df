"""The tables in README and docs are what the committed records say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wideresnet.spec.analysis import read_analyses
from wideresnet.spec.detection import DetectionRecipe
from wideresnet.spec.recipe import Recipe

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "tool",
    [
        *("results", "reliability", "pretrained", "detection"),
        *(pytest.param(tool, marks=pytest.mark.slow) for tool in ("scaling", "the_paper")),
    ],
)
def test_the_tables_are_made_from_the_committed_records(tool: str) -> None:
    done = subprocess.run([sys.executable, f"tools/{tool}.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_committed_analyses_tell_no_folder_of_a_machine() -> None:
    paths = list((ROOT / "results" / "analysis").glob("*.json"))
    assert paths
    for path in paths:
        (analysis,) = read_analyses(path)
        assert len(Path(analysis.weights).parts) == 1, path
        assert not any("/" in note for note in analysis.notes), path


def test_every_committed_detection_recipe_can_be_run_again() -> None:
    recipes = list((ROOT / "results" / "detection").glob("*/recipe.json"))
    assert recipes
    for path in recipes:
        stored = json.loads(path.read_text())
        assert DetectionRecipe.from_json(stored).to_json() == stored, path


def test_every_committed_recipe_can_be_run_again() -> None:
    recipes = [path for where in ("*", "finetune/*") for path in (ROOT / "results").glob(f"{where}/recipe.json")]
    assert recipes
    for path in recipes:
        recipe = Recipe.from_file(path)
        stored = json.loads(path.read_text())
        assert recipe.to_json() == {**Recipe().to_json(), **stored}, path  # a field since then has its default
