"""Ways to damage a file: its bytes, its JSON, its zip, its header. Every choice comes from one seeded `Random`."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from random import Random
from typing import Any

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, -1e308, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "nan", "1e999", "\ud800", "a\x00b", "\x1b[2J", "a\nb",
    "\u202e", "é" * 3, "../../etc/passwd", "/dev/zero", "<script>", "%s%n", "a" * 100_000, [], {}, [None], {"": None},
    [1, "a", None, [1.5]], [0] * 100_000, ["a"] * 10_000, {"a": {"b": []}},
)  # fmt: skip


def damage_bytes(random: Random, content: bytes, other: bytes = b"") -> bytes:
    """Damage content in one to four places.

    Args:
        random: decides.
        content: what to damage.
        other: another valid file, to take pieces from.
    """
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        random.choice((_flip, _flip, _cut, _overwrite, _number, _splice, _repeat, _insert))(random, data, other)
    return bytes(data)


def _place(random: Random, data: bytearray) -> int:
    """A position: anywhere, or near the beginning or end, where headers are."""
    where = random.choice(("any", "any", "start", "end"))
    reach = len(data) if where == "any" else min(64, len(data))
    offset = random.randrange(reach + 1) if reach else 0
    return len(data) - offset if where == "end" else offset


def _flip(random: Random, data: bytearray, _other: bytes) -> None:
    for _ in range(random.choice((1, 1, 2, 8))):
        if data:
            data[min(_place(random, data), len(data) - 1)] ^= 1 << random.randrange(8)


def _cut(random: Random, data: bytearray, _other: bytes) -> None:
    start = _place(random, data)
    end = random.choice((len(data), start + random.randrange(1, 100), start + 1))
    del data[start:end]


def _overwrite(random: Random, data: bytearray, _other: bytes) -> None:
    start, length = _place(random, data), random.choice((1, 2, 4, 8, 64, 1000))
    length = min(length, len(data) - start)
    data[start : start + length] = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))


def _number(random: Random, data: bytearray, _other: bytes) -> None:
    """Put an extreme integer over one, two, four or eight bytes."""
    size, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
    start = min(_place(random, data), max(0, len(data) - size))
    value = random.choice((*EXTREMES, random.getrandbits(8 * size))) % 2 ** (8 * size)
    data[start : start + size] = value.to_bytes(size, order)


def _splice(random: Random, data: bytearray, other: bytes) -> None:
    start, source = _place(random, data), other or bytes(data)
    begin = random.randrange(len(source) + 1)
    piece = source[begin : begin + random.choice((4, 16, 256, 10_000))]
    data[start : start + random.choice((0, len(piece)))] = piece


def _repeat(random: Random, data: bytearray, _other: bytes) -> None:
    start = _place(random, data)
    piece = bytes(data[start : start + random.choice((1, 4, 12, 64, 1000))])
    data[start:start] = piece * random.choice((1, 2, 100, 10_000 if len(piece) < 100 else 10))


def _insert(random: Random, data: bytearray, _other: bytes) -> None:
    start = _place(random, data)
    data[start:start] = random.choice((b"\x00", b"\n", b"#", b"\xff\xda", b"\x80", random.randbytes(9)))


def damage_json(random: Random, content: bytes) -> bytes:
    """Damage a JSON document in its structure (a value, a key, nesting, a huge number), or sometimes in its bytes."""
    if random.random() < 0.2:
        return damage_bytes(random, content)
    document = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _damage_value(random, document)
    text = json.dumps(document, ensure_ascii=random.random() < 0.8)
    if random.random() < 0.1:  # what a JSON writer would not write
        value = random.choice(
            ("[" * 100_000, '{"a":' * 50_000, "9" * 5000, "1e999", "'a'", "NaN", "/**/", '"\\ud800"', "\ufeff")
        )
        start = random.randrange(len(text) + 1)
        text = text[:start] + value + text[start + random.choice((0, 1, len(value))) :]
    return text.encode("utf-8", random.choice(("surrogatepass", "replace")))


def damage_json_lines(random: Random, content: bytes) -> bytes:
    """Damage a file of one JSON document a line: a line in its structure, or the order and number of lines."""
    lines = content.splitlines(keepends=True)
    where = random.randrange(len(lines))
    how = random.choice(("line", "line", "line", "drop", "double", "swap", "shuffle", "bytes"))
    if how == "line":
        lines[where] = damage_json(random, lines[where]) + random.choice(
            (b"\n", b"", b"\n\n", b"\r\n", b"\x85", b"\x0c")
        )
    elif how == "drop":
        del lines[where]
    elif how == "double":
        lines.insert(random.randrange(len(lines)), lines[where])
    elif how == "swap":
        lines[where], lines[-1] = lines[-1], lines[where]
    elif how == "shuffle":
        random.shuffle(lines)
    joined = b"".join(lines)
    return damage_bytes(random, joined) if how == "bytes" else joined


def _damage_value(random: Random, value: Any) -> Any:
    """Walk down to a random value and damage it there."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        changed = dict(value)
        how = random.choice(("into", "into", "into", "into", "drop", "rename", "add"))
        if how == "into":
            changed[key] = _damage_value(random, value[key])
        elif how == "add":
            changed[random.choice((key + " ", key.upper(), "__class__", "", "\ud800", "a" * 10_000))] = value[key]
        else:
            moved = changed.pop(key)
            if how == "rename":
                changed[random.choice((key + "x", key[:-1], "\u0000", "__proto__"))] = moved
        return changed
    if isinstance(value, list) and value and random.random() < 0.8:
        where = random.randrange(len(value))
        return [*value[:where], _damage_value(random, value[where]), *value[where + random.choice((0, 1, 1, 2)) :]]
    return random.choice((*SCALARS, [value], {"a": value}, str(value), _nested(value, random.choice((3, 500, 2000)))))


def _nested(value: Any, depth: int) -> Any:
    # not deeper than json.dumps can write; deeper text is made by hand
    for _ in range(min(depth, 300)):
        value = [value]
    return value


def damage_npz(random: Random, content: bytes, other: bytes = b"") -> bytes:
    """Damage an archive of arrays: its members, their headers and data, the way they are packed, or its bytes."""
    if random.random() < 0.3:
        return damage_bytes(random, content, other)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(random.choice((1, 1, 2, 3))):
        if not members:
            break
        where = random.randrange(len(members))
        name, data = members[where]
        how = random.choice(("header", "header", "header", "data", "data", "drop", "double", "rename", "swap"))
        if how == "header":
            members[where] = name, _damage_npy_header(random, data)
        elif how == "data":
            members[where] = name, data[:64] + damage_bytes(random, data[64:])
        elif how == "drop":
            del members[where]
        elif how == "double":
            members.append((name, damage_bytes(random, data)))
        elif how == "rename":
            names = (
                "",
                "/",
                "../x_train.npy",
                "x_train",
                "class_names.npy",
                "\ud7ff",
                "a" * 300,
                name + ".npy",
                "é.npy",
            )
            members[where] = random.choice(names), data
        else:
            members[where] = name, random.choice(members)[1]
    buffer = io.BytesIO()
    packed = random.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, data in members:
            archive.writestr(name or " ", data)
    return damage_bytes(random, buffer.getvalue(), other) if random.random() < 0.2 else buffer.getvalue()


_DTYPES = (
    "'|u1'", "'<u8'", "'>i8'", "'<i2'", "'|b1'", "'<f4'", "'<f8'", "'<c16'", "'|O'", "'<U5'", "'<U0'", "'|S9'", "'|V1'",
    "'<M8[ns]'", "'<m8'", "'(2,3'", "'(2,3)u1'", "'<U1000000000'", "''", "'u1,u1'", "[('a', '|u1')]", "[('a', '|O')]",
    "[]", "None", "7", "'\\ud800'", "'|u1' * 10**9", "__import__('os')",
)  # fmt: skip
_SHAPES = (
    "()", "(0,)", "(-1,)", "(1,)", "(4,)", "(4, 8, 8, 3)", "(4, 3, 8, 8)", "(4, 8, 8)", "(4, 0, 8, 3)", "(2**40,)",
    f"({2**40},)", f"({2**62}, 4)", f"({2**31}, {2**31}, 4)", "(4, 1)", "(4, 14)", "(1.5,)", "('a',)", "4", "None",
    "[4]",
    "(True,)", "(" + "1," * 70 + ")", "(" * 3000, "(4, 8, 8, 3, 1)",
)  # fmt: skip


def _damage_npy_header(random: Random, data: bytes) -> bytes:
    length = int.from_bytes(data[8:10], "little")
    text, rest = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    how = random.choice(("dtype", "dtype", "shape", "shape", "order", "text", "version"))
    version = b"\x01\x00"
    if how == "dtype":
        text = text.replace(text[text.find("'descr': ") + 9 : text.find(", 'fortran")], random.choice(_DTYPES))
    elif how == "shape":
        text = text.replace(text[text.find("'shape': ") + 9 : text.rfind("}")], random.choice(_SHAPES))
    elif how == "order":
        text = text.replace("False", random.choice(("True", "None", "2", "0")))
    elif how == "text":
        text = damage_bytes(random, text.encode("latin1")).decode("latin1")
    else:
        version = random.choice((b"\x02\x00", b"\x03\x00", b"\x00\x00", b"\xff\xff"))
    encoded = text.encode("latin1", "replace")[:65_000]
    size = (
        struct.pack("<H", len(encoded))
        if version == b"\x01\x00"
        else struct.pack("<I", random.choice((len(encoded), 2**31)))
    )
    return b"\x93NUMPY" + version + size + encoded + rest
