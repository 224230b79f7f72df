"""Parquet files as on Hugging Face: `train-*.parquet` and `test-*.parquet` with an image and a label column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wideresnet.base.errors import DataError
from wideresnet.data.catalog import Catalog, ReadOptions, hold_out
from wideresnet.data.dataset import check_labels
from wideresnet.data.decode import Encoded
from wideresnet.data.images import Source, UnreadableError
from wideresnet.data.labels import number_labels
from wideresnet.data.limits import check_fits, damage_in_one_line
from wideresnet.data.readers.parquet_columns import class_names_of, pick_image, pick_label, read_labels
from wideresnet.data.readers.splits import role_of

_START = re.compile(r"[A-Za-z]+")
_SHARD = re.compile(r"-(?P<index>\d+)-of-(?P<total>\d+)")
_ROWS_PER_READ = 512  # at most; fewer of large images
_BYTES_PER_READ = 16 * 2**20
_BYTES_PER_ROW = 1024  # what a row takes besides its pixels: label, order, split, message; more than enough


class _Shard(NamedTuple):
    """One file: its path, column of images and leaf of their content, labels (rows,), names in its schema, notes."""

    path: Path
    images: str
    leaf: str
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def find_parquet(folder: Path) -> Path | None:
    """Find the folder that has parquet files: the given one, or the only one of its subfolders that does.

    Raises:
        DataError: several subfolders have such files.
    """
    if _files_by_split(folder):
        return folder
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _files_by_split(path)]
    if len(inner) > 1:
        named = ", ".join(path.name for path in inner)
        raise DataError(f"{folder}: parquet files in several subfolders ({named}); use one of them")
    return inner[0] if inner else None


def read_parquet(folder: Path, top: Path, source: str, options: ReadOptions) -> Catalog:
    """Read a folder of parquet files.

    Args:
        folder: has `train*.parquet` and `test*.parquet` (or `validation*`, `valid*`, `val*`; else every fifth row of
            each class is the test set), or such names for folders with parquet files.
        top: what the user gave: paths in a column of images lead into it.
        source: what the user asked for.
        options: the columns to take.

    Raises:
        DataError: a file is damaged or missing or has unknown columns, or labels break a rule.
    """
    by_split = _files_by_split(folder)
    roles = {split: role_of(split) for split in by_split}
    train_split = next((split for split, role in roles.items() if role == "train"), None)
    notes = []
    if train_split is None and not any(roles.values()):
        train_split = next(iter(by_split))
        notes.append(f"no split in the names of files: all {len(by_split[train_split])} are read")
    if train_split is None:
        raise DataError(f"{folder}: has {', '.join(sorted(by_split))} parquet files but no train-*.parquet")
    tests = [split for role in ("test", "val") for split in by_split if roles[split] == role]
    train_shards = [_open_shard(path, options) for path in by_split[train_split]]
    test_split, test_shards = None, []
    for split in tests:
        shards = [_open_shard(path, options) for path in by_split[split]]
        if all(shard.labels.dtype.kind == "i" and (shard.labels == -1).all() for shard in shards):
            notes.append(f"all labels of {split} are -1, so its images are unlabeled and no test images")
            continue
        test_split, test_shards = split, shards
        break
    used = [train_split, test_split]
    if unread := sorted(path.name for split, paths in by_split.items() if split not in used for path in paths):
        notes.append(f"not read: {', '.join(unread)}")
    if test_split is not None and roles[test_split] == "val":
        notes.append(f"no test-*.parquet: {test_split}-*.parquet is the test set")
    shards = train_shards + test_shards
    for shard in shards[1:]:
        if shard.class_names != shards[0].class_names:
            raise DataError(f"{shard.path}: class names differ from {shards[0].path.name}'s; all files must agree")
    notes += dict.fromkeys(note for shard in shards for note in shard.notes)
    return _catalog(folder, top, source, train_shards, test_shards, notes)


def _catalog(
    folder: Path, top: Path, source: str, train_shards: list[_Shard], test_shards: list[_Shard], notes: list[str]
) -> Catalog:
    shards = train_shards + test_shards
    labels = _joined(shards)
    if test_shards:
        is_test = np.arange(len(labels)) >= sum(len(shard.labels) for shard in train_shards)
    else:
        is_test, more = hold_out(np.unique(labels, return_inverse=True)[1], "no test-*.parquet", str(folder))
        notes += more
    ends = np.cumsum([len(shard.labels) for shard in shards])
    positions = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def name_row(split: str, index: int) -> str:
        row = int(positions[split][index])
        shard = int(np.searchsorted(ends, row, side="right"))
        return f"{shards[shard].path} row {row - ends[shard] + len(shards[shard].labels)}"

    names = shards[0].class_names
    if names is None or labels.dtype.kind == "U":
        numbered = number_labels(labels[~is_test], labels[is_test], str(folder))
        labels = np.empty(len(is_test), dtype=np.int64)
        labels[~is_test], labels[is_test] = numbered.train, numbered.test
        names, notes = numbered.names, [*notes, *numbered.notes]
    names = check_labels(labels[~is_test], labels[is_test], names, str(folder), name_row)
    layout = "parquet files" + ("" if test_shards else ", test images held out")
    return Catalog(
        folder.resolve().name, source, layout, names, labels, is_test,
        lambda: (image for shard in shards for image in _images(shard, top)),
        folder, [shard.path for shard in shards], tuple(notes),
    )  # fmt: skip


def _joined(shards: list[_Shard]) -> np.ndarray:
    """The labels of all files; as names, if some are names."""
    kinds = {shard.labels.dtype.kind for shard in shards}
    if len(kinds) > 1:
        raise DataError(f"{shards[0].path.parent}: labels are names in some files and numbers in others; use one kind")
    return np.concatenate([shard.labels for shard in shards])


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder by what comes first in their names, or by the folder of a split that holds them.

    Shards are in order. If no name tells a split, all files are "all".
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        start = _START.match(path.name)
        found.setdefault(start[0] if start and path.name != start[0] else "", []).append(path)
    if not found:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and role_of(path.name)):
            if files := sorted(inner.glob("*.parquet")):
                found[inner.name] = files
    roles = [role for split in found if (role := role_of(split))]
    if len(roles) != len(set(roles)) and roles.count("val") < 2:
        raise DataError(f"{folder}: several kinds of parquet files look like the same split: {', '.join(found)}")
    if found and not roles:
        found = {"all": [path for paths in found.values() for path in paths]}
    for split, paths in found.items():
        if roles and role_of(split):
            _check_shards(paths)
    return found


def _check_shards(paths: list[Path]) -> None:
    """Refuse a set with a missing shard, which would silently train on a part of the data."""
    matches = [match for path in paths if (match := _SHARD.search(path.name))]
    for total in {int(match["total"]) for match in matches}:
        present = {int(match["index"]) for match in matches if int(match["total"]) == total}
        missing = next(index for index in range(len(present) + 1) if index not in present)
        if missing < total:
            raise DataError(
                f"{paths[0].parent}: {paths[0].name} is one of {total} files, and number {missing} is missing"
            )


def _open_shard(path: Path, options: ReadOptions) -> _Shard:
    if not path.is_file():
        raise DataError(f"{path}: not a file; remove it, or restore the file")
    with _damage_of(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        column = pick_image(path, schema, options.image_column)
        label_column = pick_label(path, schema, column, options.label_column)
        # not its columns' sizes: pyarrow ends the whole process if the metadata of a column is damaged
        largest = max((file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)), default=0)
        num_rows = file.metadata.num_rows
        needed = num_rows * _BYTES_PER_ROW + largest
        check_fits(needed, f"{path}: its {num_rows:,} rows", "use fewer rows, or write smaller row groups")
        labels, notes = read_labels(path, file, label_column)
        kind = schema.field(column).type
        leaf = f"{column}.bytes" if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else column
        return _Shard(path, column, leaf, labels, class_names_of(path, schema, label_column), notes)


def _images(shard: _Shard, top: Path) -> Iterator[Encoded]:
    """Yield the encoded images of a file, with no more than some MiB of them in memory at once."""
    row = 0
    # an image that is repeated is stored once, and read once rather than for every row
    with _damage_of(shard.path), pq.ParquetFile(shard.path, read_dictionary=[shard.leaf]) as file:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            bytes_per_row = about.total_byte_size // max(1, about.num_rows)
            rows = max(1, min(_ROWS_PER_READ, _BYTES_PER_READ // max(1, bytes_per_row)))
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=[shard.images]):
                for value in batch.column(0):
                    yield Encoded(f"{shard.path.name} row {row}", _content(value.as_py(), shard.path.parent, top))
                    row += 1
    if row != len(shard.labels):
        raise DataError(f"{shard.path}: has {row} images for {len(shard.labels)} labels; download it again")


def _content(value: Any, beside: Path, top: Path) -> Source | None:
    """The content of an image, or where it is: only in the folder of the data set, whatever a path says."""
    path = value
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return value["bytes"]
        path = value.get("path")
    if not isinstance(path, str):
        return value if isinstance(value, bytes) else None
    inside = top.resolve()
    places = [(place / path.replace("\\", "/")).resolve() for place in (beside, top)]
    allowed = [place for place in places if place.is_relative_to(inside)]
    return next((place for place in allowed if place.is_file()), allowed[0] if allowed else _Outside(path))


class _Outside:
    """An image that a parquet file says is somewhere else on this machine."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read_bytes(self) -> bytes:
        raise UnreadableError(f"{self.path[:200]!a} is not in the folder of the data set; copy it there")


def _damage_of(path: Path) -> AbstractContextManager[None]:
    return damage_in_one_line(f"{path}: cannot be read as parquet; download it again")
