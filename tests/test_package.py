"""The package as a whole: its public names, and files that can be read in one sitting."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import wideresnet

ROOT = Path(__file__).parent.parent
MOST_LINES = 400


def declared() -> dict[str, str]:
    """The public names that type checkers see, each with its module."""
    tree = ast.parse(Path(wideresnet.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    names = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname, f"{alias.name}: not exported to type checkers"
            names[alias.name] = str(node.module)
    return names


@pytest.mark.parametrize("name", wideresnet.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(wideresnet, name) is not None


def test_type_checkers_see_the_names_that_exist_from_the_modules_that_they_come_from() -> None:
    assert set(declared()) == set(wideresnet.__all__) - {"__version__"}
    for name, module in declared().items():
        assert getattr(wideresnet, name) is getattr(importlib.import_module(module), name), name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'crate'"):
        _ = wideresnet.crate  # type: ignore[attr-defined]


def test_importing_the_package_does_not_wait_for_pytorch() -> None:
    code = "import sys, wideresnet; sys.exit(bool({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_longer_than_400_lines() -> None:
    everything = (path for top in ("src", "tests", "tools") for path in (ROOT / top).rglob("*"))
    files = [path for path in everything if path.suffix in (".py", ".c", ".h")]
    assert len(files) > 150
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: num for name, num in lines.items() if num > MOST_LINES} == {}
