"""What `wrn predict` shows, and its table for spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from wideresnet.commands.predict import render, table
from wideresnet.commands.verbs import write_csv

FILE = "photos/a/very/long/folder/with/many/names/that/does/not/fit/into/a/line/of/eighty/columns/cat.png"


def answer(top: int, file: str = FILE, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    classes = [{"class": f"class{i}", "probability": 0.5 / (i + 1)} for i in range(top)]
    return {"file": file, "predictions": classes, "notes": list(notes)}


def shown(*answers: dict[str, Any]) -> list[str]:
    return render(list(answers)).splitlines()


@pytest.mark.parametrize("top", [1, 3, 7])
def test_as_many_classes_as_were_asked_for_are_shown_under_the_whole_name_of_the_file(top: int) -> None:
    name, *lines = shown(answer(top))
    assert name == FILE
    assert [f"class{i}" in "".join(lines) for i in range(7)] == [i < top for i in range(7)]
    assert max(map(len, lines)) <= 80


def test_a_bar_can_be_read_without_color() -> None:
    assert "█████░░░░░  50.0 %" in "".join(shown(answer(1)))


def test_notes_and_images_that_were_left_out_are_shown() -> None:
    lines = shown({"file": "a.png", "predictions": [], "notes": ["skipped: no image"]})
    assert lines == ["a.png", "  skipped: no image"]


def test_the_table_has_a_row_for_each_image_with_numbers_as_numbers(tmp_path: Path) -> None:
    left_out = {"file": "b.png", "predictions": [], "notes": ["skipped: no image"]}
    write_csv(tmp_path / "out.csv", *table([answer(2, "a.png", ("first", "second")), left_out]))
    header, *rows = csv.reader((tmp_path / "out.csv").read_text().splitlines(), quoting=csv.QUOTE_NONNUMERIC)
    assert header == ["file", "class 1", "probability 1", "class 2", "probability 2", "notes"]
    assert rows == [
        ["a.png", "class0", 0.5, "class1", 0.25, "first, second"],
        ["b.png", "", "", "", "", "skipped: no image"],
    ]


def test_a_table_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing/out\.csv"):
        write_csv(tmp_path / "missing" / "out.csv", ["a"], [])
    with pytest.raises(OSError, match="/dev/full"):
        write_csv(Path("/dev/full"), ["a"], [["b"]])
