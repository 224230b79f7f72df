"""Walk through folders of images: each folder once, in a fixed order, and nothing left out without a word."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wideresnet.base.errors import DataError
from wideresnet.data.images import EXTENSIONS

# What tools leave next to and inside class folders, in lower case: macOS's zip, Synology, QNAP, Windows, Jupyter, ext4
_LITTER = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "@tmp", "$recycle.bin", "system volume information"}
    | {".ipynb_checkpoints", "__pycache__", "lost+found"}
)
_MAX_PEEKED = 1000  # entries of a hidden folder that are looked at for images
_NUM_LISTED = 5


@dataclass
class Found:
    """What a walk came across besides the images that it returns.

    Attributes:
        others: files that are no images.
        litter: folders that tools leave behind.
        hidden: folders whose names begin with a dot and that hold images.
        num_outside: links to outside the folder that were followed.
        num_repeated: links that were not followed, because their folder is read already.
    """

    others: list[Path] = field(default_factory=list)
    litter: dict[Path, None] = field(default_factory=dict)
    hidden: dict[Path, None] = field(default_factory=dict)
    num_outside: int = 0
    num_repeated: int = 0

    def notes(self, folder: Path) -> list[str]:
        """Say it, one line each, with paths relative to a folder."""
        notes = []
        if self.others:
            reason = "no image extension, or not in a class folder"
            notes.append(f"{_counted(len(self.others), 'file')} not read: {reason}: {_listed(self.others, folder)}")
        if self.litter:
            count = _counted(len(self.litter), "folder")
            notes.append(f"ignored {count} that tools leave behind: {_listed(self.litter, folder)}")
        if self.hidden:
            notes.append(f"not read: {_counted(len(self.hidden), 'hidden folder')} with images: "
                         f"{_listed(self.hidden, folder)}")  # fmt: skip
        if self.num_outside:
            notes.append(f"followed {_counted(self.num_outside, 'link')} to outside the folder")
        if self.num_repeated:
            notes.append(f"did not follow {_counted(self.num_repeated, 'link')} to folders that are read already")
        return notes


def visible(folder: Path, found: Found) -> list[Path]:
    """List what is in a folder, sorted, without hidden files and folders and without litter."""
    paths = []
    for path in sorted(folder.iterdir()):
        if path.name.lower() in _LITTER and path.is_dir():
            found.litter[path] = None
        elif not path.name.startswith("."):
            paths.append(path)
        elif path.is_dir() and not path.is_symlink() and _holds_images(path):
            found.hidden[path] = None
    return paths


def subfolders(folder: Path, found: Found) -> dict[str, Path]:
    """The visible folders in a folder by name."""
    return {path.name: path for path in visible(folder, found) if path.is_dir()}


def images_by_class(folder: Path, tops: Mapping[str, Path], found: Found) -> dict[str, list[Path]]:
    """List the images in and below the folder of each class, in the order of their paths.

    Real folders come first, so that each belongs to the class that contains it. Folders behind links come after that,
    and none twice: a few links that fork and join again would else make billions of paths.

    Args:
        folder: all that the user gave.
        tops: the folder of each class.
        found: takes what else is found.
    """
    classes: dict[str, list[Path]] = {name: [] for name in tops}
    within = os.path.realpath(folder)
    seen = {_identity(folder), *(_identity(top.parent) for top in tops.values())}
    links: list[tuple[str, Path]] = []
    for name, path in tops.items():
        if path.is_symlink():
            links.append((name, path))
        elif _is_new(path, seen):
            links += [(name, link) for link in _walk(path, classes[name], seen, found)]
    for name, path in links:  # grows on the way
        found.num_outside += _leads_out(path, within)
        if _is_new(path, seen):
            links += [(name, link) for link in _walk(path, classes[name], seen, found)]
        elif path == tops[name]:
            raise DataError(f"{path}: a link to a folder that is read already; a folder can be one class only")
        else:
            found.num_repeated += 1
    for name, paths in classes.items():
        found.num_outside += sum(_leads_out(path, within) for path in paths)
        classes[name] = sorted(paths)
    return classes


def _walk(top: Path, images: list[Path], seen: set[tuple[int, int]], found: Found) -> list[Path]:
    """Add the images in and below a folder to `images`. Return the links to folders, which are not followed."""
    folders, links = [top], []
    while folders:
        for path in visible(folders.pop(), found):
            if path.is_dir():
                if path.is_symlink():
                    links.append(path)
                elif _is_new(path, seen):
                    folders.append(path)
            elif _is_image(path):
                images.append(path)
            else:
                found.others.append(path)
    return links


def _holds_images(folder: Path) -> bool:
    """Tell whether there are images in a folder or its subfolders, no deeper."""
    paths = (path for place in (folder, *filter(Path.is_dir, folder.iterdir())) for path in place.iterdir())
    return any(map(_is_image, itertools.islice(paths, _MAX_PEEKED)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Tell whether a folder has not been read yet, and remember it."""
    identity = _identity(folder)
    is_new = identity not in seen
    seen.add(identity)
    return is_new


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _leads_out(path: Path, folder: str) -> bool:
    return path.is_symlink() and path.exists() and not Path(os.path.realpath(path)).is_relative_to(folder)


def _counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def _listed(paths: Iterable[Path], folder: Path) -> str:
    first = [str(path.relative_to(folder)) for path in itertools.islice(paths, _NUM_LISTED + 1)]
    return ", ".join(first[:_NUM_LISTED]) + (", ..." if len(first) > _NUM_LISTED else "")
