"""A reader as the fuzzer sees it: valid inputs, ways to damage them, and how to read them."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .mutations import damage_bytes

Files = dict[str, bytes | str | None]
"""Path -> content; a string is the target of a link ("|": a pipe instead); None is a folder."""

UNDAMAGED = 0.02  # share of inputs that are left as they are, and must be read


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
        name: on the command line.
        seeds: makes valid inputs.
        damage: changes one, and may take pieces of another.
        read: reads the input in a folder.
        declared_mib: memory that a valid input of the largest permitted size needs.
    """

    name: str
    seeds: Callable[[], list[Files]]
    damage: Callable[[Random, Files, Files], Files]
    read: Callable[[Path], object]
    declared_mib: float = 0

    def write(self, folder: Path, random: Random) -> None:
        """Write the input that a source of choices leads to."""
        seeds = _seeds(self)
        files, other = random.choice(seeds), random.choice(seeds)
        write_files(folder, files if random.random() < UNDAMAGED else self.damage(random, dict(files), other))

    def remove(self, folder: Path) -> None:
        """Remove a written input."""
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _seeds(reader: Reader) -> list[Files]:
    return reader.seeds()


def write_files(folder: Path, files: Files) -> None:
    """Write files, links and folders."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif content == "|":
            os.mkfifo(path)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def damage_one(damage: Callable[[Random, bytes], bytes], *names: str) -> Callable[[Random, Files, Files], Files]:
    """Return a function that damages one of the named files in the given way."""

    def change(random: Random, files: Files, _other: Files) -> Files:
        name = random.choice(names or tuple(files))
        content = files[name]
        assert isinstance(content, bytes)
        return {**files, name: damage(random, content)}

    return change


def any_bytes(random: Random, files: Files, other: Files) -> Files:
    """Damage the bytes of any one file."""
    name = random.choice(list(files))
    content, source = files[name], next(iter(other.values()))
    assert isinstance(content, bytes)
    return {**files, name: damage_bytes(random, content, source if isinstance(source, bytes) else b"")}
