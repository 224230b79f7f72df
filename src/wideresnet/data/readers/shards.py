"""Tar shards as webdataset writes them: `000000.jpg` with `000000.cls`, or with the class in a `.json` or `.txt`.

Nothing is extracted. An index of where each image is in its shard is built once and cached.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import DataError
from wideresnet.base.progress import track
from wideresnet.data import cache
from wideresnet.data.catalog import Catalog, hold_out
from wideresnet.data.dataset import MAX_NAME_LENGTH, check_labels
from wideresnet.data.decode import Encoded, Member
from wideresnet.data.formats import EXTENSIONS
from wideresnet.data.images import MAX_ENCODED_BYTES

CLASS_NAMES = ("classnames.txt", "classes.txt")
"""Files beside the shards with a class name per line, as in the ImageNet shards on the Hugging Face hub."""

LABEL_KEYS = ("label", "cls", "class", "class_index", "class_id")
"""Where a `.json` has the class, the first one that is there."""

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".npz")
_LABELS = (".cls", ".json", ".txt")  # in this order, if a sample has several
_MAX_LABEL_BYTES = 2**20
_MAX_HEADER_BYTES = 2**20  # of a name or of extended attributes
_MAX_CLASS = 10**6
_COMPRESSED = re.compile(r"\.(tgz|tar\.\w+)$", re.IGNORECASE)
_SPLIT = re.compile("train|val|test|dev", re.IGNORECASE)
_FIX = "download or write the shard again"


@dataclass(frozen=True)
class Index:
    """Where the images of a set of shards are.

    Attributes:
        names: "shard.tar/000000.jpg".
        shard: number of each one's shard.
        offset, size: of each one's content, bytes.
        label: class numbers.
    """

    names: list[str]
    shard: list[int]
    offset: list[int]
    size: list[int]
    label: list[int]


def find_shards(path: Path) -> list[Path]:
    """Return the tar shards that a path names or holds, also in folders of splits.

    There are none beside other folders, images or tables: then the archives are what these were unpacked from.

    Raises:
        DataError: they are compressed, so that no image can be read alone.
    """
    if path.is_file():
        return [path]
    inner = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not all(_SPLIT.match(folder.name) for folder in inner):
        return []
    places = [place for folder in (path, *inner) for place in sorted(folder.iterdir()) if place.name[0] != "."]
    if any(_is_of_another_layout(place) for place in places if place not in inner):
        return []
    if packed := [file for file in places if _COMPRESSED.search(file.name) and file.is_file()]:
        raise DataError(f"{packed[0]}: a compressed shard, of which no image can be read alone; decompress it to .tar")
    return [file for file in places if file.suffix.lower() == ".tar" and file.is_file()]


def _is_of_another_layout(place: Path) -> bool:
    return place.is_dir() or place.suffix.lower() in EXTENSIONS or place.suffix.lower() in _TABLES


def read_shards(path: Path, shards: list[Path], source: str) -> Catalog:
    """Read tar shards. `train` or `val`, `test`, ... in a shard's name, or in its folder's, says which split it is.

    Args:
        path: the folder, or the only shard.
        shards: what `find_shards` found.
        source: what the user asked for.

    Raises:
        DataError: a shard is damaged, an image has no class, or labels break a rule; naming shard and member.
    """
    folder = path if path.is_dir() else path.parent
    index = _index(folder, shards)
    roles = [_role(shard.relative_to(folder)) for shard in shards]
    labels = np.array(index.label, np.int64)
    has_test = {"train", "test"} <= set(roles) or {"train", "val"} <= set(roles)
    notes = [f"{len(shards)} tar shards with {len(labels):,} images"]
    class_names = _class_names(folder, labels)
    if has_test:
        test_role = "test" if "test" in roles else "val"
        if unread := [
            shard.name for shard, role in zip(shards, roles, strict=True) if role not in ("train", test_role)
        ]:
            notes.append(f"not read: {', '.join(unread[:5])}{', ...' * (len(unread) > 5)}")
        role_of = np.array(roles)[np.array(index.shard, np.int64)]
        order = np.concatenate([np.flatnonzero(role_of == "train"), np.flatnonzero(role_of == test_role)])
        is_test = role_of[order] == test_role
        if test_role == "val":
            notes.append("no test shards: those of the validation split are the test set")
    else:
        held, more = hold_out(labels, "no test shards", str(path), tuple(class_names) if class_names else None)
        order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
        is_test = held[order]
        notes += more
    labels = labels[order]
    names = check_labels(
        labels[~is_test],
        labels[is_test],
        class_names,
        str(path),
        lambda split, row: index.names[int(order[np.flatnonzero(is_test == (split == "test"))[row]])],
    )

    def read() -> Iterator[Encoded]:
        for i in order.tolist():
            yield Encoded(index.names[i], Member(shards[index.shard[i]], index.offset[i], index.size[i]))

    return Catalog(
        folder.resolve().name, source, "tar shards" + ", test images held out" * (not has_test), names, labels,
        is_test, read, folder, shards, tuple(notes), can_stay=True,
    )  # fmt: skip


def _role(path: Path) -> str:
    """Tell a shard's split by the words of its path."""
    words = set(re.findall("[a-z]+", path.as_posix().lower()))
    for role, spellings in (("test", {"test"}), ("val", {"val", "valid", "validation", "dev"})):
        if words & spellings:
            return role
    return "train"


def _class_names(folder: Path, labels: np.ndarray) -> list[str] | None:
    """Return the names in a file beside the shards; None without one that has enough."""
    for name in CLASS_NAMES:
        if (path := folder / name).is_file() and path.stat().st_size <= MAX_NAME_LENGTH * _MAX_CLASS:
            names = path.read_text("utf-8", errors="replace").splitlines()
            if len(names) > labels.max(initial=0):
                return names
            raise DataError(f"{path}: {len(names)} class names, but there is a label {labels.max()}; add the others")
    return None


def _index(folder: Path, shards: list[Path]) -> Index:
    """Return the index of shards, from the cache if they have not changed."""
    key = cache.key_of(folder, shards, index=1)
    entry, _ = cache.load(key)
    if entry is not None:
        return Index(**json.loads(entry.images.tobytes()))
    index = Index([], [], [], [], [])
    for number, shard in enumerate(track(shards, "indexing shards", len(shards))):
        _read_one(shard, str(shard.relative_to(folder)), number, index)
    if not index.names:
        raise DataError(f"{folder}: no images in its tar shards; accepted are 000000.jpg with 000000.cls")
    content = np.frombuffer(json.dumps(vars(index)).encode(), np.uint8).reshape(-1, 1, 1, 1)
    cache.store(key, cache.Entry(content, np.ones(1, bool), (), source=f"places in the shards of {folder}"))
    return index


def _read_one(shard: Path, name: str, number: int, index: Index) -> None:
    """Add the images of a shard, in their order, to an index."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, dict[str, tarfile.TarInfo]] = {}
    size = shard.stat().st_size
    with shard.open("rb") as raw:
        for member in _members(raw, shard, size):
            # a sample's key is the path up to the first dot of its name
            place, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            sample, kind = f"{place}/{stem}", "." + extension.lower()
            if kind in EXTENSIONS:
                if sample in images:
                    raise DataError(f"{shard}: {member.name}: a second image of the same sample; {_FIX}")
                if member.size > MAX_ENCODED_BYTES:
                    raise DataError(f"{shard}: {member.name}: {member.size:,} bytes, too large for an image; {_FIX}")
                images[sample] = member
            elif kind in _LABELS:
                labels.setdefault(sample, {})[kind] = member
        for sample, member in images.items():
            found = labels.get(sample, {})
            place = next((found[kind] for kind in _LABELS if kind in found), None)
            if place is None:
                raise DataError(f"{shard}: {member.name} has no class; add {Path(member.name).stem}.cls beside it")
            index.label.append(_label(raw, shard, place))
            index.names.append(f"{name}/{member.name}")
            index.shard.append(number)
            index.offset.append(member.offset_data)
            index.size.append(member.size)


class _Headers(io.RawIOBase):
    """A file of which no more is read at once than a header may have."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def read(self, size: int = -1, /) -> bytes:  # type: ignore[override]
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _members(raw: Any, shard: Path, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a shard; links and other special members are refused, since nothing is extracted."""
    last, end = "the beginning", 0
    try:
        with tarfile.open(fileobj=_Headers(raw), mode="r:") as tar:  # type: ignore[arg-type]
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                last = member.name
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends at byte {size:,} of {member.offset_data + member.size:,}")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise tarfile.ReadError("it is a link or another special member, which is not read")
                yield member
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, OSError, UnicodeError, EOFError) as error:
        raise DataError(f"{shard}: damaged at {last} ({' '.join(str(error).split())[:200]}); {_FIX}") from error
    raw.seek(end)
    rest = raw.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE or any(rest):  # tarfile takes both for the end
        what = "damaged" if any(rest) else "cut off"
        raise DataError(f"{shard}: {what} after {last}, at byte {end:,}; {_FIX}")


def _label(raw: Any, shard: Path, member: tarfile.TarInfo) -> int:
    """Return the class number that a member holds."""
    where = f"{shard}: {member.name}"
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"{where}: {member.size:,} bytes, too many for a class number; {_FIX}")
    raw.seek(member.offset_data)
    text = raw.read(member.size).decode("utf-8", errors="replace").strip()
    value: Any = text
    if member.name.lower().endswith(".json"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: not JSON; {_FIX}") from None
        if isinstance(value, dict):
            value = next((value[key] for key in LABEL_KEYS if key in value), None)
            if value is None:
                raise DataError(f"{where}: has none of {', '.join(LABEL_KEYS)}; write the class number as one of them")
    if isinstance(value, str) and re.fullmatch(r"\d{1,7}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_CLASS:
        raise DataError(f"{where}: {str(value)[:40]!a} is no class number; use 0..{_MAX_CLASS:,}")
    return value
