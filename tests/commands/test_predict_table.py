"""The table of `wrn predict`."""

from __future__ import annotations

import pytest
from rich.console import Console

from wideresnet.commands.predict import render


@pytest.mark.parametrize("top", [1, 3, 7])
def test_the_table_shows_as_many_classes_as_were_asked_for_and_the_whole_name_of_the_file(top: int) -> None:
    file = "photos/a/very/long/folder/with/many/names/that/does/not/fit/into/a/column/cat.png"
    classes = [{"class": f"class{i}", "probability": 0.5 / (i + 1)} for i in range(top)]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render([{"file": file, "predictions": classes, "notes": []}]))
    heading, *lines = capture.get().splitlines()
    assert [f"class{i}" in "".join(lines) for i in range(7)] == [i < top for i in range(7)]
    assert "".join(line[: heading.index("class")].strip() for line in lines) == file
