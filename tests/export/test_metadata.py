"""The metadata reads back as it was written; damaged metadata is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_exports import NAMES, SIZE, make_weights

from wideresnet.base.errors import DataError
from wideresnet.export.metadata import describe, read_texts, to_texts

FREE = ("batch", "height", "width")


def texts(**changes: Any) -> dict[str, str]:
    """Metadata as a file has it, with changes; of the input's, if it has the name."""
    metadata = describe(make_weights(), "onnx", "fp32", FREE)
    for name, value in changes.items():
        place = metadata["input"] if name in metadata["input"] else metadata
        place[name] = value
    return to_texts(metadata)


def test_what_is_written_is_read() -> None:
    found = read_texts({**texts(), "more": "of others"}, "it")
    assert (found.class_names, found.channels, found.input_size, found.precision) == (NAMES, 3, SIZE, "fp32")
    assert str(found.name) == "WRN-10-1"


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": []},
        {"class_names": "cat"},
        {"class_names": [1, 2]},
        {"class_names": ["x" * 1001, "y"]},
        {"height": 0},
        {"width": 8001},
        {"height": "8"},
        {"height": True},
        {"channels": 0},
        {"layout": "NCHW"},
        {"precision": "fp64"},
        {"network": "WideNet-28-10"},
        {"network": "WRN-9999994-10"},
        {"family": "mnist"},
    ],
    ids=str,
)
def test_damaged_metadata_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="it: its metadata is damaged"):
        read_texts(texts(**changes), "it")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_metadata_that_is_no_json_is_refused(text: str) -> None:
    for key in ("input", "class_names"):
        with pytest.raises(DataError, match="metadata is damaged"):
            read_texts({**texts(), key: text}, "it")


def test_control_characters_in_class_names_do_not_act() -> None:
    (name, _) = read_texts(texts(class_names=["\x1b[2J", "dog"]), "it").class_names
    assert name.isprintable()


def test_the_layout_is_that_of_the_formats_users() -> None:
    layouts = {name: describe(make_weights(), name, "fp32", FREE)["input"]["layout"] for name in ("onnx", "torch")}
    assert layouts == {"onnx": "NHWC", "torch": "NCHW"}
    assert json.dumps(describe(make_weights(), "torch", "fp32", FREE))
