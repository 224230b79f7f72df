"""A .zip of images read as if it were a folder: nothing is unpacked, and no name in it leads anywhere else."""

from __future__ import annotations

import io
import posixpath
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from wideresnet.base.errors import DataError
from wideresnet.base.format import counted
from wideresnet.data.images import MAX_ENCODED_BYTES, UnreadableError
from wideresnet.data.limits import check_fits, damage_in_one_line

_BYTES_PER_MEMBER = 1024  # what a name takes in Python: its ZipInfo, its node, its places in lists
_MIN_ENTRY_BYTES = 46  # of a member in the central directory; APPNOTE.TXT 4.3.12
_MAX_DEPTH = 100  # folders within folders; Windows allows 130
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ZipPath:
    """A file or folder in an archive, with what the readers need of `pathlib.Path`.

    Attributes:
        name: without its folders.
        parent: its folder; the root is its own.
        archive: what it is in.
        info: of a file; None for a folder.
        children: of a folder, by name.
    """

    def __init__(self, archive: _Archive, name: str, parent: ZipPath | None, info: zipfile.ZipInfo | None) -> None:
        self.archive, self.name, self.parent, self.info = archive, name, parent or self, info
        self.children: dict[str, ZipPath] = {}

    def parts(self) -> list[str]:
        """The names from the root of the archive, without it."""
        names, place = list[str](), self
        while place.parent is not place:
            names.append(place.name)
            place = place.parent
        return names[::-1]

    def __str__(self) -> str:
        return "/".join([str(self.archive.path), *self.parts()])

    def __lt__(self, other: ZipPath) -> bool:
        return self.parts() < other.parts()

    def __truediv__(self, name: str) -> ZipPath:
        place = self
        for part in PurePosixPath(name).parts:
            place = place.children.get(part) or ZipPath(self.archive, part, place, None)
        return place

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    def is_dir(self) -> bool:
        return self.info is None and (bool(self.children) or self.parent is self)

    def is_file(self) -> bool:
        return self.info is not None

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def is_symlink(self) -> bool:
        return False

    def resolve(self) -> ZipPath:
        return self

    def iterdir(self) -> Iterator[ZipPath]:
        return iter(list(self.children.values()))

    def relative_to(self, folder: ZipPath) -> PurePosixPath:
        return PurePosixPath("/".join(self.parts()[len(folder.parts()) :]))

    def stat(self) -> Any:
        return SimpleNamespace(st_dev=0, st_ino=id(self), st_size=self.info.file_size if self.info else 0)

    def open(self, mode: str = "rb") -> io.BytesIO:
        if mode != "rb":
            raise ValueError(mode)
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """Return the content of a file.

        Raises:
            UnreadableError: it is damaged, encrypted, or larger than any image may be.
        """
        assert self.info is not None
        return self.archive.read(self.info)


class _Archive:
    """An open archive that threads share."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.lock = path, zipfile.ZipFile(path), threading.Lock()

    def read(self, info: zipfile.ZipInfo) -> bytes:
        if info.flag_bits & 1:
            raise UnreadableError("encrypted; unpack the archive with its password first")
        if info.compress_type not in _READABLE:
            raise UnreadableError("in an unusual compression; unpack the archive first")
        if info.file_size > MAX_ENCODED_BYTES:
            raise UnreadableError(f"a file of {info.file_size:,} bytes, the limit is {MAX_ENCODED_BYTES:,}")
        try:
            with self.lock, self.file.open(info) as member:
                content = member.read(info.file_size + 1)  # no more than declared, whatever is compressed there
        except Exception as error:  # zipfile and zlib raise almost every type of error for a damaged file
            raise UnreadableError(" ".join(f"damaged in the archive: {error}".split())) from error
        if len(content) != info.file_size:
            raise UnreadableError("damaged in the archive: not as long as it claims")
        return content


def open_zip(path: Path) -> tuple[ZipPath, list[str]]:
    """Open an archive as a tree of files and folders.

    Returns:
        Its root, and notes on members that are left out.

    Raises:
        DataError: it is damaged, or its list of members does not fit in memory.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{path}: damaged or not a .zip; download it again")
    _check_directory(path)
    with damage_in_one_line(f"{path}: damaged; download it again"):
        archive = _Archive(path)
    root = ZipPath(archive, path.name, None, None)
    num_unsafe = num_doubled = 0
    for info in archive.file.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if posixpath.isabs(name) or ".." in parts or ":" in name[:2] or len(parts) > _MAX_DEPTH:
            num_unsafe += 1
        elif parts and not info.is_dir():
            num_doubled += not _insert(root, parts, info)
    notes = []
    if num_unsafe:
        notes.append(f"not read: {counted(num_unsafe, 'member')} of {path.name} with paths that lead out of it")
    if num_doubled:
        notes.append(f"not read: {counted(num_doubled, 'member')} of {path.name} whose names it has twice")
    return root, notes


def _insert(root: ZipPath, parts: tuple[str, ...], info: zipfile.ZipInfo) -> bool:
    """Add a file to the tree; False if its name is taken."""
    place = root
    for name in parts[:-1]:
        place = place.children.setdefault(name, ZipPath(root.archive, name, place, None))
        if place.info is not None:
            return False
    if parts[-1] in place.children:
        return False
    place.children[parts[-1]] = ZipPath(root.archive, parts[-1], place, info)
    return True


def _check_directory(path: Path) -> None:
    """Refuse an archive whose list of members does not fit in memory, before zipfile reads it (APPNOTE.TXT 4.3.16)."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 65_557))  # the longest comment and the record before it
        tail = file.read()
        start = tail.rfind(b"PK\x05\x06")
        listed = struct.unpack_from("<L", tail, start + 12)[0] if 0 <= start <= len(tail) - 22 else 0
        if listed == 2**32 - 1 and start >= 20 and tail[start - 20 : start - 16] == b"PK\x06\x07":
            file.seek(min(struct.unpack_from("<Q", tail, start - 12)[0], size))
            record = file.read(56)  # of the 64-bit form
            listed = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else listed
    most = min(listed, size) // _MIN_ENTRY_BYTES * _BYTES_PER_MEMBER
    check_fits(most, f"{path}: the names in it", "split it, or unpack it")
