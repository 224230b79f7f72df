"""Where the encoded images of a stream are: files, parts of files, or an array. Packed, so that forks share them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wideresnet.data.decode import Encoded, Member


class Texts:
    """Many texts in one array: a million Python strings would be copied into every worker, page by page."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.bytes[start : int(self.ends[index])].tobytes())


class Files:
    """Images in files, or in parts of files such as tar shards.

    Args:
        encoded: the images; none of them in memory.
    """

    def __init__(self, encoded: Sequence[Encoded]) -> None:
        places = [e.source if isinstance(e.source, Member) else Member(Path(str(e.source)), 0, -1) for e in encoded]
        paths = list(dict.fromkeys(path for path, _, _ in places))
        number = {path: index for index, path in enumerate(paths)}
        self.paths = Texts([os.fspath(path) for path in paths])
        self.names = Texts([image.where for image in encoded])
        self.file = np.array([number[path] for path, _, _ in places], np.int64)
        self.offset = np.array([offset for _, offset, _ in places], np.int64)
        self.size = np.array([size for _, _, size in places], np.int64)  # -1: the whole file

    def __len__(self) -> int:
        return len(self.file)

    def name(self, index: int) -> str:
        """Name an image in a message."""
        return self.names[index]

    def read(self, index: int) -> bytes | Path:
        """Return the content of an image; a file by its path.

        Raises:
            UnreadableError: it cannot be read.
        """
        path, size = Path(self.paths[int(self.file[index])]), int(self.size[index])
        return path if size < 0 else Member(path, int(self.offset[index]), size).read_bytes()

    def digest(self, index: np.ndarray) -> bytes:
        """Return a digest of which images these are, by name and size; a file's own size counts too."""
        over = hashlib.sha256()
        for i in index.tolist():
            size = int(self.size[i])
            if size < 0:
                try:
                    size = os.stat(self.paths[int(self.file[i])]).st_size  # noqa: PTH116  # a million of them
                except OSError:
                    size = 0
            over.update(f"{self.names[i]}\0{size}\0".encode("utf-8", "surrogateescape"))
        return over.digest()


class Array:
    """Images that are decoded already, uint8 (N, H, W, C)."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Name an image in a message."""
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        """Return an image, uint8 (H, W, C)."""
        return self.images[index]

    def digest(self, index: np.ndarray) -> bytes:
        """Return a digest of all pixels."""
        over = hashlib.sha256()
        for i in index.tolist():
            over.update(np.ascontiguousarray(self.images[i]).data)
        return over.digest()


Source = Files | Array
