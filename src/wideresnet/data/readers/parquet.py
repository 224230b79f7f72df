"""Parquet files as on Hugging Face: `train-*.parquet` and `test-*.parquet` with an image and a label column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import Dataset, as_labels, check_labels, every_fifth, legible, split_images
from wideresnet.data.decode import Encoded, decode_all
from wideresnet.data.limits import check_fits, damage_in_one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first one that exists is the test set

_FILE_NAME = re.compile(r"(?P<split>[a-z]+)(-.*)?\.parquet")
_SHARD = re.compile(r"-(?P<index>\d+)-of-(?P<total>\d+)")
_ROWS_PER_READ = 512  # at most; fewer of large images
_BYTES_PER_READ = 16 * 2**20
_LABELS_PER_READ = 2**16
_BYTES_PER_ROW = 1024  # what a row takes besides its pixels: label, order, split, message; more than enough


class _Shard(NamedTuple):
    """One file: its path, where its images are, labels int64 (rows,), and the class names of its schema, if any."""

    path: Path
    images: str
    labels: np.ndarray
    class_names: tuple[str, ...] | None


def find_parquet(folder: Path) -> Path | None:
    """Find the folder that has `train*.parquet`: the given one, or the only one of its subfolders that does.

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


def read_parquet(folder: Path, source: str, *, image_size: int | None, skip_unreadable: bool) -> Dataset:
    """Read a folder of parquet files.

    Args:
        folder: has `train*.parquet` and `test*.parquet` (or `validation*`, `valid*`, `val*`; else every fifth row of
            each class is the test set).
        source: what the user asked for.
        image_size: side, px, of images that do not all have one size of at most 128 px.
        skip_unreadable: leave out images that cannot be read, with a note.

    Raises:
        DataError: a file is damaged or missing or has unknown columns, or labels break a rule.
    """
    by_split = _files_by_split(folder)
    test_split = next((split for split in TEST_SPLITS if split in by_split), None)
    if "train" not in by_split:
        raise DataError(f"{folder}: has {', '.join(sorted(by_split))} parquet files but no train-*.parquet")
    train_files, test_files = by_split["train"], by_split[test_split] if test_split else []
    notes = []
    unread = [path.name for path in sorted(folder.glob("*.parquet")) if path not in train_files + test_files]
    if unread:
        notes.append(f"not read: {', '.join(unread)}")
    if test_split not in ("test", None):
        notes.append(f"no test-*.parquet: {test_split}-*.parquet is the test set")

    train_shards = [_open_shard(path) for path in train_files]
    shards = train_shards + [_open_shard(path) for path in test_files]
    labels = np.concatenate([shard.labels for shard in shards])
    class_names = shards[0].class_names
    for shard in shards[1:]:
        if shard.class_names != class_names:
            raise DataError(f"{shard.path}: class names differ from {shards[0].path.name}'s; all files must agree")
    if test_split:
        is_test = np.arange(len(labels)) >= sum(len(shard.labels) for shard in train_shards)
    else:
        is_test = every_fifth(labels)
        notes.append(f"no test-*.parquet: every 5th image of each class is held out, {is_test.sum()} images")

    ends = np.cumsum([len(shard.labels) for shard in shards])
    positions = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def name_row(split: str, index: int) -> str:
        row = int(positions[split][index])
        shard = int(np.searchsorted(ends, row, side="right"))
        return f"{shards[shard].path} row {row - ends[shard] + len(shards[shard].labels)}"

    class_names = check_labels(labels[~is_test], labels[is_test], class_names, str(folder), name_row)
    decoded = decode_all(
        lambda: (image for shard in shards for image in _images(shard)),
        len(labels),
        folder=folder,
        files=[shard.path for shard in shards],
        image_size=image_size,
        skip_unreadable=skip_unreadable,
    )
    labels, is_test = labels[decoded.kept], is_test[decoded.kept]
    check_labels(labels[~is_test], labels[is_test], class_names, str(folder), name_row)
    train, test = split_images(decoded.images, labels, is_test)
    return Dataset(folder.resolve().name, source, train, test, class_names, None, (*notes, *decoded.notes))


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder by split, shards in order; only splits that can be train or test."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = _FILE_NAME.fullmatch(path.name)
        if match and match["split"] in ("train", *TEST_SPLITS):
            found.setdefault(match["split"], []).append(path)
    for paths in found.values():
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


def _open_shard(path: Path) -> _Shard:
    if not path.is_file():
        raise DataError(f"{path}: not a file; remove it, or restore the file")
    with _damage_of(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        image_column = _pick(path, schema, IMAGE_COLUMNS, "image")
        label_column = _pick(path, schema, LABEL_COLUMNS, "label")
        kind, leaf = schema.field(image_column).type, image_column
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind, leaf = kind.field("bytes").type, f"{image_column}.bytes"
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(f"{path}: column {image_column} is {kind}; it must hold the content of image files")
        # not its columns' sizes: pyarrow ends the whole process if the metadata of a column is damaged
        largest = max((file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)), default=0)
        num_rows = file.metadata.num_rows
        needed = num_rows * _BYTES_PER_ROW + largest
        check_fits(needed, f"{path}: its {num_rows:,} rows", "use fewer rows, or write smaller row groups")
        return _Shard(path, leaf, _labels(path, file, label_column), _class_names(path, schema, label_column))


def _pick(path: Path, schema: pa.Schema, choices: tuple[str, ...], what: str) -> str:
    for name in choices:
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: has {schema.names.count(name)} columns {name}; remove all but one")
        if name in schema.names:
            return name
    raise DataError(f"{path}: no {what} column {' or '.join(choices)}; its columns are {', '.join(schema.names)}")


def _labels(path: Path, file: pq.ParquetFile, name: str) -> np.ndarray:
    """Read the labels, int64 (rows,), in pieces, so that they are not held several times."""
    labels = np.empty(file.metadata.num_rows, dtype=np.int64)
    row = 0
    for batch in file.iter_batches(batch_size=_LABELS_PER_READ, columns=[name]):
        values = batch.column(0)
        if values.null_count:
            missing = row + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"{path} row {missing}: {name} is null; every image needs a label")
        numbers = values.to_numpy(zero_copy_only=False)
        if not pa.types.is_integer(values.type):
            if pa.types.is_floating(values.type) and np.isnan(numbers).any():
                nan_row = row + int(np.argmax(np.isnan(numbers)))
                raise DataError(f"{path} row {nan_row}: {name} is NaN; labels must be integers")
            raise DataError(f"{path}: column {name} is {values.type}; labels must be integers 0..classes-1")
        labels[row : row + len(numbers)] = as_labels(numbers, f"{path}: {name}", first_row=row)
        row += len(numbers)
    if row != len(labels):
        raise DataError(f"{path}: has labels of {row} of {len(labels)} rows; the file is damaged, download it again")
    return labels


def _class_names(path: Path, schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's `datasets` writes into the schema; None if there are none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not names:
        return None
    if strange := [name for name in names if not isinstance(name, str)]:
        raise DataError(f"{path}: its class names hold {legible(repr(strange[0]))[:50]}; each must be a string")
    return tuple(names)


def _images(shard: _Shard) -> Iterator[Encoded]:
    """Yield the encoded images of a file, with no more than some MiB of them in memory at once."""
    row = 0
    # an image that is repeated is stored once, and read once rather than for every row
    with _damage_of(shard.path), pq.ParquetFile(shard.path, read_dictionary=[shard.images]) as file:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            bytes_per_row = about.total_byte_size // max(1, about.num_rows)
            rows = max(1, min(_ROWS_PER_READ, _BYTES_PER_READ // max(1, bytes_per_row)))
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=[shard.images]):
                column = batch.column(0)
                for value in column.field("bytes") if pa.types.is_struct(column.type) else column:
                    yield Encoded(f"{shard.path.name} row {row}", value.as_py())
                    row += 1
    if row != len(shard.labels):
        raise DataError(f"{shard.path}: has {row} images for {len(shard.labels)} labels; download it again")


def _damage_of(path: Path) -> AbstractContextManager[None]:
    return damage_in_one_line(f"{path}: cannot be read as parquet; download it again")
