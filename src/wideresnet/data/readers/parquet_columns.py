"""Which columns of a parquet file hold images and labels, and the labels themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wideresnet.base.errors import DataError
from wideresnet.data.dataset import MAX_NAME_LENGTH, as_labels, legible

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
_OTHER_LABELS = ("labels", "target", "targets", "class", "category", "class_label", "label_name", "y", "species")
_LABELS_PER_READ = 2**16


def pick_image(path: Path, schema: pa.Schema, wanted: str | None) -> str:
    """Choose the column of images: the given one, img or image, or the only one that can hold image files.

    Raises:
        DataError: there is none, or several.
    """
    like = [field.name for field in schema if _is_image_like(field.type)]
    column = _pick(path, schema, like, IMAGE_COLUMNS, wanted, "image")
    kind = schema.field(column).type
    if column not in like and not (_is_text(kind) and (wanted or column in IMAGE_COLUMNS)):
        what = "lists of numbers" if pa.types.is_nested(kind) and not pa.types.is_struct(kind) else str(kind)
        raise DataError(
            f"{path}: column {column} is {what}; it must hold the content of image files, or their paths in this folder"
        )
    return column


def pick_label(path: Path, schema: pa.Schema, image_column: str, wanted: str | None) -> str:
    """Choose the column of labels: the given one, label or fine_label, or the only one that can hold labels.

    Raises:
        DataError: there is none, or several.
    """
    like = [field.name for field in schema if field.name != image_column and _is_label_like(field.type)]
    known = [name for name in like if name.lower() in (*_OTHER_LABELS, "coarse_label")]
    return _pick(path, schema, known if len(known) == 1 else like, LABEL_COLUMNS, wanted, "label")


def _pick(path: Path, schema: pa.Schema, like: list[str], known: tuple[str, ...], wanted: str | None, what: str) -> str:
    for name in (wanted,) if wanted is not None else known:
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: has {schema.names.count(name)} columns {name}; remove all but one")
        if name in schema.names:
            return str(name)
    columns = ", ".join(legible(name) for name in schema.names)
    if wanted is not None:
        raise DataError(f"{path}: {what}_column={wanted!r}: no such column; its columns are {columns}")
    if len(like) == 1:
        return like[0]
    if not like:
        named = [name for name in schema.names if name in ("pixel_values", "pixels") and what == "image"]
        if named:
            return named[0]
        raise DataError(f"{path}: no {what} column {' or '.join(known)}; its columns are {columns}")
    choices = ", ".join(legible(name) for name in like)
    raise DataError(f"{path}: several columns may be the {what}: {choices}; choose one with {what}_column=")


def _is_image_like(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(
            _is_image_like(field.type) if field.name == "bytes" else field.name == "path" and _is_text(field.type)
            for field in kind
        )
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_label_like(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_label_like(kind.value_type)
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_labels(path: Path, file: pq.ParquetFile, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels in pieces, so that they are not held several times.

    Returns:
        int64 or text, (rows,), and notes.

    Raises:
        DataError: a label is missing, or not a whole number or a name.
    """
    parts: list[np.ndarray] = []
    notes: dict[str, None] = {}
    row = 0
    for batch in file.iter_batches(batch_size=_LABELS_PER_READ, columns=[name]):
        values: Any = batch.column(0)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            missing = row + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"{path} row {missing}: {name} is null; every image needs a label")
        parts.append(_whole_or_text(path, name, values, row, notes))
        row += len(values)
    if row != file.metadata.num_rows:
        raise DataError(
            f"{path}: has labels of {row} of {file.metadata.num_rows} rows; the file is damaged, download it again"
        )
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64), tuple(notes)


def _whole_or_text(path: Path, name: str, values: Any, row: int, notes: dict[str, None]) -> np.ndarray:
    kind = values.type
    if _is_text(kind):
        texts = values.to_pylist()
        if (long := max(map(len, texts), default=0)) > MAX_NAME_LENGTH:
            raise DataError(f"{path}: column {name} has a text of {long:,} characters, too long for a class name")
        return np.array(texts, dtype=str)
    if pa.types.is_boolean(kind):
        notes[f"column {name} holds true and false: these are the names of the classes"] = None
        return np.array(["true" if value else "false" for value in values.to_pylist()], dtype=str)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise DataError(
            f"{path}: column {name} is multi-label, a list per image; a classifier needs one class per image"
        )
    numbers = values.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        if np.isnan(numbers).any():
            raise DataError(
                f"{path} row {row + int(np.argmax(np.isnan(numbers)))}: {name} is NaN; labels must be integers"
            )
        if (odd := (numbers != np.rint(numbers)) | (np.abs(numbers) > 2**53)).any():
            first = int(np.argmax(odd))
            raise DataError(f"{path} row {row + first}: {name} is {numbers[first]:g}; labels must be integers or names")
        notes[f"column {name} holds whole numbers as {kind}: read as integers"] = None
        numbers = numbers.astype(np.int64)
    elif not pa.types.is_integer(kind):
        raise DataError(f"{path}: column {name} is {kind}; labels must be integers 0..classes-1, or names")
    return as_labels(numbers, f"{path}: {name}", first_row=row)


def class_names_of(path: Path, schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face's `datasets` writes into the schema; None if there are none."""
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
