"""Decoded images on disk, so that a second run starts at once; also lists and clears everything that is cached."""

from __future__ import annotations

import hashlib
import json
import os
import re
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
    kernel_files,
    kernels_folder,
    matching_files,
    measurements_file,
    private_folder,
)

# Part of every key: increase it when decoding changes, so that older entries are never used.
_FORMAT_VERSION = 1
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.(safetensors|\d+\.tmp)")


@dataclass(frozen=True)
class Entry:
    """Decoded images.

    Attributes:
        images: uint8 (M, H, W, C).
        kept: bool (N,), which of the N images of the source could be read.
        notes: what was done to the images.
        source: the folder that holds the encoded images.
    """

    images: np.ndarray
    kept: np.ndarray
    notes: tuple[str, ...]
    source: str


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
        The entry, or None if there is none or it is damaged; and a note if it is damaged.
    """
    path = _folder() / f"{key}.safetensors"
    try:
        if not path.is_file():
            return None, ()
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["about"])
            images, kept = file.get_tensor("images"), file.get_tensor("kept")
        if about["crc32"] != _checksum(images, kept):
            raise ValueError("checksum")
        return Entry(images, kept, tuple(about["notes"]), about["source"]), ()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None, (f"the cached images {path} were damaged and have been decoded again",)


def store(key: str, entry: Entry) -> tuple[str, ...]:
    """Write an entry, completely or not at all.

    Returns:
        A note if it could not be written, which is no reason to stop.
    """
    path = _folder() / f"{key}.safetensors"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    about = {"crc32": _checksum(entry.images, entry.kept), "notes": entry.notes, "source": entry.source}
    try:
        private_folder(path.parent)
        tensors = {"images": np.ascontiguousarray(entry.images), "kept": entry.kept}
        save_file(tensors, draft, metadata={"about": json.dumps(about)})
        draft.chmod(0o600)
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            draft.unlink()
        reason = " ".join(str(error).split())
        return (f"decoded images could not be cached in {path.parent} ({reason}); set WRN_DATA to another folder",)
    return ()


def cache_contents() -> list[tuple[str, int, str]]:
    """List the content of the cache: file name, size in bytes, and what it is."""
    return [
        *((path.name, path.stat().st_size, _origin(path)) for path in _entries()),
        *((path.name, path.stat().st_size, "kernels compiled for this processor") for path in kernel_files()),
        *((path.name, path.stat().st_size, "measured speeds of configurations") for path in _measurements()),
    ]


def clear_cache() -> int:
    """Remove what `cache_contents` lists and nothing else; every file is made again when it is needed.

    Returns:
        The number of bytes freed.
    """
    freed = 0
    for path in (*_entries(), *kernel_files(), *_measurements()):
        freed += path.stat().st_size
        path.unlink()
    return freed


def downloads_bytes() -> int:
    """Return the size of all other files in the data root, bytes: what torchvision has downloaded."""
    files = (path for path in data_root().rglob("*") if path.is_file() and kernels_folder() not in path.parents)
    return sum(path.stat().st_size for path in set(files) - {*_entries(), *_measurements()})


def _folder() -> Path:
    return data_root() / "decoded"


def _entries() -> list[Path]:
    return matching_files(_folder(), _ENTRY_NAME)


def _measurements() -> list[Path]:
    return [path for path in (measurements_file(),) if path.is_file()]


def _origin(path: Path) -> str:
    try:
        with safe_open(path, framework="numpy") as file:
            return f"decoded from {json.loads(file.metadata()['about'])['source']}"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return "decoded images, damaged or unfinished"


def _checksum(images: np.ndarray, kept: np.ndarray) -> int:
    shape = json.dumps([images.shape, kept.shape]).encode()
    return zlib.crc32(np.ascontiguousarray(images).data, zlib.crc32(kept.data, zlib.crc32(shape)))
