"""Decoded images on disk, so that a second run starts at once; also lists and clears everything that is cached."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wideresnet.base.paths import (
    data_root,
    is_private,
    kernel_files,
    kernels_folder,
    matching_files,
    measurements_file,
    model_files,
    private_folder,
)
from wideresnet.data.limits import check_fits

# Part of every key: increase it when decoding changes, so that older entries are never used.
_FORMAT_VERSION = 2
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_DRAFT_NAME = re.compile(r"[0-9a-f]{64}\.\d+\.tmp|\.tmp[0-9A-Za-z]{6}")  # ours, and the one safetensors writes first
_LEFTOVER_S = 3600.0  # a draft is written in seconds; one this old belongs to a process that was killed


@dataclass(frozen=True)
class Entry:
    """Decoded images.

    Attributes:
        images: uint8 (M, H, W, C).
        kept: bool (N,), which of the N images of the source could be read.
        notes: what was done to the images.
        source: the folder that holds the encoded images.
        white: the value of 16-bit images that became 255; None if there were none.
    """

    images: np.ndarray
    kept: np.ndarray
    notes: tuple[str, ...]
    source: str
    white: int | None = None


def key_of(folder: Path, files: Sequence[Path], **options: object) -> str:
    """Return a key for a decoded set: a digest of everything that decides its content.

    Args:
        folder: the folder that holds the files.
        files: the files, in order; their names, sizes and modification times count.
        options: options of decoding, as values for JSON.
    """
    root = folder.resolve()
    digest = hashlib.sha256(json.dumps([_FORMAT_VERSION, os.fspath(root), options]).encode())
    for file in files:
        digest.update(os.fsencode(file.relative_to(folder)))
        try:
            status = file.stat()
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        except OSError:
            digest.update(b"\0missing\0")
    return digest.hexdigest()


def load(key: str) -> tuple[Entry | None, tuple[str, ...]]:
    """Read an entry.

    Returns:
        The entry, or None if there is none that can be trusted; and a note if it is damaged or not private.

    Raises:
        DataError: it does not fit in memory.
    """
    path = _folder() / f"{key}.safetensors"
    if not path.is_file():
        return None, ()
    if public := next((place for place in (path.parent, path) if not is_private(place)), None):
        return None, (f"the cached images {path} are not used, because others can write to {public}",)
    check_fits(path.stat().st_size, f"{path}: the decoded images", "use a smaller image_size=")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["about"])
            images, kept = file.get_tensor("images"), file.get_tensor("kept")
        if about["crc32"] != _checksum(images, kept):
            raise ValueError("checksum")
        return Entry(images, kept, tuple(about["notes"]), about["source"], about["white"]), ()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None, (f"the cached images {path} were damaged and have been decoded again",)


def store(key: str, entry: Entry) -> tuple[str, ...]:
    """Write an entry, completely or not at all.

    Returns:
        A note if it could not be written, which is no reason to stop.
    """
    path = _folder() / f"{key}.safetensors"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    about = {
        "crc32": _checksum(entry.images, entry.kept), "notes": entry.notes, "source": entry.source,
        "white": entry.white,
    }  # fmt: skip
    try:
        _make_private(path.parent)
        _remove_leftovers()
        tensors = {"images": np.ascontiguousarray(entry.images), "kept": entry.kept}
        save_file(tensors, draft, metadata={"about": json.dumps(about)})
        draft.chmod(0o600)
        draft.replace(path)
    except (OSError, SafetensorError, UnicodeError) as error:  # UnicodeError: safetensors takes UTF-8 paths only
        with suppress(OSError):
            draft.unlink()
        reason = " ".join(str(error).split())
        return (f"decoded images could not be cached in {path.parent} ({reason}); set WRN_DATA to another folder",)
    return ()


def cache_contents() -> list[tuple[str, int, str]]:
    """List the content of the cache: file name, size in bytes, and what it is."""
    return [
        *((path.name, path.stat().st_size, _origin(path)) for path in _entries()),
        *((path.name, path.stat().st_size, "decoded images, unfinished") for path in _drafts()),
        *((path.name, path.stat().st_size, "kernels compiled for this processor") for path in kernel_files()),
        *((path.name, path.stat().st_size, "a network converted for --engine") for path in model_files()),
        *((path.name, path.stat().st_size, "measured speeds of configurations") for path in _measurements()),
    ]


def clear_cache() -> int:
    """Remove what `cache_contents` lists and nothing else; every file is made again when it is needed.

    Returns:
        The number of bytes freed.
    """
    freed = 0
    for path in (*_entries(), *_drafts(), *kernel_files(), *model_files(), *_measurements()):
        freed += path.stat().st_size
        path.unlink()
    return freed


def downloads_bytes() -> int:
    """Return the size of all other files in the data root, bytes: what torchvision has downloaded."""
    files = (path for path in data_root().rglob("*") if path.is_file() and kernels_folder() not in path.parents)
    return sum(path.stat().st_size for path in set(files) - {*_entries(), *_drafts(), *model_files(), *_measurements()})


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else can write to; one of this user's that is open to others is closed."""
    private_folder(folder)
    if not is_private(folder):
        if folder.stat().st_uid != os.getuid():
            raise PermissionError("it belongs to another user")
        folder.chmod(0o700)


def _folder() -> Path:
    return data_root() / "decoded"


def _entries() -> list[Path]:
    return matching_files(_folder(), _ENTRY_NAME)


def _drafts() -> list[Path]:
    return matching_files(_folder(), _DRAFT_NAME)


def _remove_leftovers() -> None:
    """Remove drafts of processes that were killed while they wrote."""
    for path in _drafts():
        with suppress(OSError):  # another process has just finished or removed it
            if path.stat().st_mtime < time.time() - _LEFTOVER_S:
                path.unlink()


def _measurements() -> list[Path]:
    return [path for path in (measurements_file(),) if path.is_file()]


def _origin(path: Path) -> str:
    try:
        with safe_open(path, framework="numpy") as file:
            return f"decoded from {json.loads(file.metadata()['about'])['source']}"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return "decoded images, damaged"


def _checksum(images: np.ndarray, kept: np.ndarray) -> int:
    shape = json.dumps([images.shape, kept.shape]).encode()
    return zlib.crc32(np.ascontiguousarray(images).data, zlib.crc32(kept.data, zlib.crc32(shape)))
