"""Files on the disk: written whole or not at all, there after a power cut, and known by their digests."""

from __future__ import annotations

import atexit
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from wideresnet.base.errors import DataError, WRNError

SEAL = "sha256"
"""The field of a JSON document that holds digests: file name -> SHA-256, of other files and of the document itself."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a kill, a power cut or a full disk leaves the old one whole.

    Raises:
        WRNError: no space is left; the old file is untouched.
        OSError: the file cannot be written; the error names it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(part, content, os.O_TRUNC)
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise _explained(error, path, len(content)) from None


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, so that it survives a power cut.

    Raises:
        WRNError: no space is left.
        OSError: the file cannot be written; the error names it.
    """
    is_new = not path.exists()
    try:
        _write(path, content, os.O_APPEND)
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path, len(content)) from None


def _write(path: Path, content: bytes, flags: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flags | getattr(os, "O_BINARY", 0), 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, which fsync of the files alone does not."""
    if os.name == "nt":  # folders cannot be opened there
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do it for folders
            raise _explained(error, folder) from None
    finally:
        os.close(file)


def make_folders(path: Path) -> list[Path]:
    """Make a folder and the missing ones above it.

    Returns:
        Those that were made, the uppermost first.

    Raises:
        FileExistsError: another process has made the folder at the same moment, so it is that one's.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()][::-1]
    for folder in missing:
        folder.mkdir(exist_ok=folder != path)
        sync_folder(folder.parent)
    return missing


_reserved: list[list[Path]] = []


def reserve_folder(path: Path) -> Path:
    """Make a new folder for this process: at the path, or if that is taken at path-2, path-3 and so on.

    If nothing has been written to it, `release_folders` removes it, when the process ends at the latest.
    """
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            if not place.exists():
                _reserved.append(make_folders(place))
                return place
    raise AssertionError  # there is always a next number


@atexit.register
def release_folders() -> None:
    """Remove the folders that were reserved and are still empty."""
    while _reserved:
        remove_empty(_reserved.pop())


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the uppermost first, as far as they are empty."""
    with suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


def remove_parts(folder: Path) -> None:
    """Remove half-written files that a kill left behind."""
    for path in folder.glob(".*.part"):
        if is_part(path):
            path.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Tell whether a file is one that `write_atomic` had not finished."""
    return path.name.startswith(".") and path.name.endswith(".part")


def write_json(path: Path, value: Any) -> bytes:
    """Write a JSON document so that a reader sees the old one or the new one, never a part; return its bytes."""
    content = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    write_atomic(path, content)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    return parse_json(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        content: UTF-8.
        where: the file, or the line of a file, for messages.

    Raises:
        DataError: it is something else.
    """
    try:
        values = json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: must be a JSON object of fields, this is {type(values).__name__}")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Digests:
    """What files must hold.

    Attributes:
        source: the document that says so.
        values: file name -> SHA-256; empty for a document without digests.
    """

    source: Path
    values: Mapping[str, str]

    def check(self, path: Path, content: bytes) -> None:
        """Refuse content that is not what was written; a file that the document does not list is not checked.

        Raises:
            DataError: naming the file and the fix.
        """
        if path.name in self.values and self.values[path.name] != digest(content):
            raise DataError(
                f"{path}: does not match its SHA-256 in {self.source.name}, so it was damaged or changed; put the "
                f"original back, or remove {SEAL!r} from {self.source} if the change is meant"
            )


def seal(document: Mapping[str, Any], name: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the document with digests of other files and of itself.

    Args:
        document: values for JSON.
        name: of the file that will hold it.
        digests: file name -> SHA-256.
    """
    values = dict(digests or {})
    return {**document, SEAL: {**values, name: _digest_of_document({**document, SEAL: values})}}


def unseal(document: dict[str, Any], path: Path) -> tuple[dict[str, Any], Digests]:
    """Return the document without its digests, and these; without digests it is taken as it is.

    Args:
        document: what the file holds.
        path: the file.

    Raises:
        DataError: the document is not what was written.
    """
    values = {key: value for key, value in document.items() if key != SEAL}
    if SEAL not in document and not any(isinstance(value, dict) and path.name in value for value in values.values()):
        return values, Digests(path, {})
    found = document.get(SEAL)  # None: the digests are there under another key, which was damaged
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        others = {name: value for name, value in found.items() if name != path.name}
        if found.get(path.name) == _digest_of_document({**values, SEAL: others}):
            return values, Digests(path, others)
    raise DataError(
        f"{path}: does not match its own SHA-256, so it was damaged or changed; put the original back, or remove "
        f"{SEAL!r} from it if the change is meant"
    )


def _digest_of_document(document: dict[str, Any]) -> str:
    """Digest values, not their layout; a document that JSON cannot express has none."""
    with suppress(ValueError, RecursionError):
        return digest(json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    return ""


def _explained(error: OSError, path: Path, num_bytes: int = 0) -> Exception:
    """Turn a full disk into a WRNError; give any other error the name of the file, which fsync does not know."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error if error.filename else OSError(error.errno, error.strerror, str(path))
    needed = f" for {num_bytes:,} bytes" if num_bytes else ""
    return WRNError(
        f"{path}: no space left on the disk{needed}; what was saved before is whole: free some space "
        "and continue with resume=True"
    )
