"""Files that are tables of labels: their rows, and which of their columns name images and labels."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from wideresnet.base.errors import DataError
from wideresnet.data.catalog import ReadOptions
from wideresnet.data.dataset import legible
from wideresnet.data.readers.annotations import read_text
from wideresnet.data.readers.splits import role_of
from wideresnet.data.readers.walk import Found, visible

_EXTENSIONS = (".csv", ".tsv", ".jsonl")
_LISTS = re.compile(r"(labels?|annotations?|train|test|val|valid|validation)(_?list)?\.txt", re.IGNORECASE)
IMAGE_COLUMNS = (
    "file_name", "filename", "file", "filepath", "file_path", "path", "image", "image_path", "image_name", "img",
    "image_id", "imageid", "id", "name", "image_file", "img_path",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "target", "category", "class_name", "classname", "label_name", "species", "breed",
    "diagnosis", "dx", "y",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage", "phase", "dataset")
YES_NO_SPLITS = {"is_test": "test", "is_valid": "val", "is_validation": "val", "is_val": "val", "is_train": "train"}
_NUM_TRIED = 100  # rows that show which column names the images
_NUM_LISTED = 5


class Table(NamedTuple):
    """A file of rows: where it is, the split that its name or folder says, columns, rows, and its two main columns."""

    path: Any
    role: str | None
    header: list[str]
    rows: list[list[str]]
    image: int | None = None
    label: list[int] | None = None


def find_tables(places: Sequence[Any]) -> list[Any]:
    """List the files in some folders that may be tables of labels; solutions to hand in are none."""
    files = [path for place in dict.fromkeys(places) for path in visible(place, Found()) if not path.is_dir()]
    return [
        path for path in files
        if (path.suffix.lower() in _EXTENSIONS or _LISTS.fullmatch(path.name)) and "submission" not in path.name.lower()
    ]  # fmt: skip


class Images:
    """The images in a folder, found by the ways in which tables name them. Nothing outside of it is ever looked at."""

    def __init__(self, folder: Any, images: Sequence[Any]) -> None:
        self.folder, self.all = folder, images
        self.by_path = {image.relative_to(folder).as_posix(): image for image in images}
        self.by_name: dict[str, list[str]] = {}
        for path in self.by_path:
            name = path.rpartition("/")[2]
            for key in {name, name.rpartition(".")[0] or name}:
                self.by_name.setdefault(key, []).append(path)

    def find(self, text: str, table: Table) -> Any | None:
        """Return the image that a table means; None if there is none.

        Raises:
            DataError: there are several.
        """
        wanted = text.strip().replace("\\", "/").removeprefix("./")
        beside = table.path.parent.relative_to(self.folder).as_posix().removeprefix(".")
        for path in (f"{beside}/{wanted}" if beside else wanted, wanted):
            if path in self.by_path:
                return self.by_path[path]
        paths = self.by_name.get(wanted.rpartition("/")[2], [])
        if len(paths) > 1:
            inside = [path for path in paths if beside and path.startswith(f"{beside}/")]
            of_role = [path for path in paths if table.role in map(role_of, path.split("/")[:-1])]
            ends = [path for path in paths if _ends_in(path, wanted) or _ends_in(path.rpartition(".")[0], wanted)]
            paths = next((few for few in (ends, inside, of_role) if len(few) == 1), paths)
        if len(paths) > 1:
            raise DataError(f"{table.path}: {legible(text)} is in several folders: {', '.join(paths[:_NUM_LISTED])}; "
                            "write their paths into the table")  # fmt: skip
        return self.by_path[paths[0]] if paths else None


def parse(path: Any) -> Table:
    """Read the rows of a table; a first row that is no header gets the names 1, 2..."""
    text = read_text(path)
    role = role_of(path.stem) or role_of(path.parent.name)
    if path.suffix.lower() == ".jsonl":
        return _parse_lines_of_json(path, role, text)
    first = text.partition("\n")[0]
    separators = "\t,; " if path.suffix.lower() == ".txt" else "\t,;"
    separator = max(separators, key=first.count) if any(map(first.count, separators)) else ","
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True) if row
        ]
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); save it as CSV in UTF-8") from None
    if not rows:
        return Table(path, role, [], [])
    header = [name.strip() for name in rows[0]]
    if any(re.search(r"\.[A-Za-z]{3,4}$", cell) for cell in header):  # a file: there is no header
        header = [str(place + 1) for place in range(len(header))]
    else:
        rows = rows[1:]
    for number, row in enumerate(rows):
        if len(row) < len(header):
            if separator == " ":
                raise DataError(f"{path} row {number}: {len(row)} columns, others have {len(header)}; use commas")
            rows[number] = row + [""] * (len(header) - len(row))
    return Table(path, role, header, rows)


def _parse_lines_of_json(path: Any, role: str | None, text: str) -> Table:
    objects = []
    for number, line in enumerate(filter(str.strip, text.splitlines())):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path} line {number + 1}: not JSON; write one object per line") from None
        if not isinstance(value, dict):
            raise DataError(f"{path} line {number + 1}: not a JSON object")
        objects.append(value)
    header = list(dict.fromkeys(key for value in objects for key in value))
    return Table(path, role, header, [[_cell(value.get(key)) for key in header] for value in objects])


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _ends_in(path: str, wanted: str) -> bool:
    return f"/{path}".endswith(f"/{wanted}")


def with_columns(table: Table, images: Images, options: ReadOptions) -> Table:
    """Choose the columns of images and labels."""
    lower = [name.lower() for name in table.header]
    for name, column in (("image_column", options.image_column), ("label_column", options.label_column)):
        if column is not None and column not in table.header and table.role is None:
            raise DataError(f"{table.path}: {name}={column!r}: no such column; it has {list_columns(table)}")
    tried = table.rows[:: max(1, len(table.rows) // _NUM_TRIED)][:_NUM_TRIED]

    def is_found(row: list[str], place: int) -> bool:
        try:
            return bool(row[place].strip()) and images.find(row[place], table) is not None
        except DataError:
            return True  # in several folders

    fitting = [
        place
        for place in range(len(table.header))
        if tried and 2 * sum(is_found(row, place) for row in tried) >= len(tried)
    ]
    if options.image_column in table.header:
        fitting = [table.header.index(options.image_column)]
    if len(fitting) > 1:
        known = [place for place in fitting if lower[place] in IMAGE_COLUMNS]
        if len(known) != 1:
            named = ", ".join(table.header[place] for place in fitting)
            raise DataError(f"{table.path}: several columns name images: {named}; choose one with image_column=")
        fitting = known
    if not fitting:
        return table
    image = fitting[0]
    if options.label_column in table.header:
        return table._replace(image=image, label=[table.header.index(options.label_column)])
    others = [place for place in range(len(table.header)) if place != image and lower[place] not in SPLIT_COLUMNS
              and lower[place] not in YES_NO_SPLITS]  # fmt: skip
    known = [place for place in others if lower[place] in LABEL_COLUMNS]
    if len(known) > 1 and len({tuple(row[place] for place in known) for row in table.rows}) == max(
        len({row[place] for row in table.rows}) for place in known
    ):  # the same classes by number and by name
        known = sorted(known, key=lambda place: all(row[place].strip().isdecimal() for row in table.rows))[:1]
    if len(known) == 1 or (len(others) == 1 and not known):
        return table._replace(image=image, label=known or others)
    if len(known) > 1:
        named = ", ".join(table.header[place] for place in known)
        raise DataError(f"{table.path}: several columns may be the label: {named}; choose one with label_column=")
    if len(others) > 1:
        values = {row[place].strip() for row in table.rows for place in others}
        if values <= {"0", "1", "0.0", "1.0"}:
            return table._replace(image=image, label=others)
        if table.role != "test":
            raise DataError(no_label(table._replace(image=image)))
    return table._replace(image=image)


def list_columns(table: Table) -> str:
    return ", ".join(legible(name)[:50] for name in table.header[:20]) or "none"


def no_label(table: Table) -> str:
    return f"{table.path}: no column is clearly the label; it has {list_columns(table)}; choose one with label_column="
