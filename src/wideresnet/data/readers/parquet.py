"""Parquet files as on Hugging Face: `train-*.parquet` and `test-*.parquet` with an image and a label column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import Dataset, check_labels, every_fifth, split_images
from wideresnet.data.decode import Encoded, decode_all

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first one that exists is the test set

_FILE_NAME = re.compile(r"(?P<split>[a-z]+)(-.*)?\.parquet")
_SHARD = re.compile(r"-(?P<index>\d+)-of-(?P<total>\d+)")
_ROWS_PER_READ = 512


class _Shard(NamedTuple):
    """One file: its path, its image column, labels int64 (rows,), and the class names of its schema, if any."""

    path: Path
    image_column: str
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
        if missing := sorted(set(range(total)) - present):
            raise DataError(
                f"{paths[0].parent}: {paths[0].name} is one of {total} files, and number {missing[0]} is missing"
            )


def _open_shard(path: Path) -> _Shard:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image_column = _pick(path, schema, IMAGE_COLUMNS, "image")
            label_column = _pick(path, schema, LABEL_COLUMNS, "label")
            kind = schema.field(image_column).type
            if pa.types.is_struct(kind):
                kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
            if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                raise DataError(f"{path}: column {image_column} is {kind}; it must hold the content of image files")
            column = file.read(columns=[label_column]).column(label_column)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return _Shard(path, image_column, _labels(path, label_column, column), _class_names(schema, label_column))


def _pick(path: Path, schema: pa.Schema, choices: tuple[str, ...], what: str) -> str:
    for name in choices:
        if name in schema.names:
            return name
    raise DataError(f"{path}: no {what} column {' or '.join(choices)}; its columns are {', '.join(schema.names)}")


def _labels(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{path} row {row}: {name} is null; every image needs a label")
    if not pa.types.is_integer(values.type):
        numbers = values.to_numpy(zero_copy_only=False)
        if pa.types.is_floating(values.type) and np.isnan(numbers).any():
            raise DataError(f"{path} row {np.argmax(np.isnan(numbers))}: {name} is NaN; labels must be integers")
        raise DataError(f"{path}: column {name} is {values.type}; labels must be integers 0..classes-1")
    return values.to_numpy(zero_copy_only=False).astype(np.int64)


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's `datasets` writes into the schema; None if there are none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def _images(shard: _Shard) -> Iterator[Encoded]:
    row = 0
    try:
        with pq.ParquetFile(shard.path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_PER_READ, columns=[shard.image_column]):
                column = batch.column(0)
                for value in (
                    column.field("bytes").to_pylist() if pa.types.is_struct(column.type) else column.to_pylist()
                ):
                    yield Encoded(f"{shard.path.name} row {row}", value)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard.path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())}); download it again")
