"""Walk through folders of images: each folder once, in a fixed order, and nothing left out without a word."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from wideresnet.base import progress
from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import counted
from wideresnet.data.depth import UnreadableError
from wideresnet.data.formats import (
    ALWAYS_READ,
    EXTENSIONS,
    RAW_EXTENSIONS,
    START_BYTES,
    UNFINISHED_EXTENSIONS,
    is_worth_a_look,
    may_be_image,
)
from wideresnet.data.readers.zips import ZipPath

Place = Path | ZipPath
"""A file or folder on disk or in an archive."""

# What tools leave next to and inside class folders, in lower case: macOS, Synology, QNAP, Windows, Linux, Jupyter,
# photo programs, version control
_LITTER_FOLDERS = frozenset(
    {"__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems"}
    | {"@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot", ".@__thumb", "@sharebin"}
    | {"$recycle.bin", "recycler", "system volume information", ".trash-0", ".trash-1000", "lost+found"}
    | {".ipynb_checkpoints", "__pycache__", ".git", ".svn", ".hg", ".idea", ".vscode", ".dvc"}
    | {".thumbnails", "thumbnails", "_thumbnails", "_thumbs", ".thumbs", ".picasaoriginals", ".dropbox.cache"}
)  # fmt: skip
_LITTER_FILES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"})
_LITTER_STARTS = ("._", "synofile_", "synophoto_", ".ds_store", ".localized", ".picasa.ini", ".directory", ".nomedia")
_MAX_PEEKED = 1000  # entries of a hidden folder that are looked at for images
_NUM_LISTED = 5


@dataclass
class Found:
    """What a walk came across besides the images that it returns.

    Attributes:
        others: files that are no images.
        litter: folders and files that tools leave behind.
        hidden: files and folders whose names begin with a dot and that are or hold images.
        unnamed: images without the extension of one, found by their first bytes.
        num_outside: links to outside the folder that were followed.
        num_repeated: links that were not followed, because their folder is read already.
    """

    others: list[Place] = field(default_factory=list)
    litter: dict[Place, None] = field(default_factory=dict)
    hidden: dict[Place, None] = field(default_factory=dict)
    unnamed: list[Place] = field(default_factory=list)
    num_outside: int = 0
    num_repeated: int = 0

    def notes(self, folder: Place) -> list[str]:
        """Say it, one line each, with paths relative to a folder."""
        notes = []
        kinds = {
            "a camera's raw format, which is not read": RAW_EXTENSIONS,
            "downloads that have not finished": UNFINISHED_EXTENSIONS,
        }
        others = list(dict.fromkeys(self.others))
        for reason, extensions in kinds.items():
            if chosen := [path for path in others if path.suffix.lower() in extensions]:
                notes.append(f"{counted(len(chosen), 'file')} not read: {reason}: {listed(chosen, folder)}")
                others = [path for path in others if path.suffix.lower() not in extensions]
        if images := [path for path in others if has_image_name(path)]:
            notes.append(f"{counted(len(images), 'image')} not read: in no class folder: {listed(images, folder)}")
        if files := [path for path in others if not has_image_name(path)]:
            notes.append(f"{counted(len(files), 'file')} not read: no images: {listed(files, folder)}")
        if self.unnamed:
            count = counted(len(self.unnamed), "image")
            notes.append(f"{count} without the extension of one, known by content: {listed(self.unnamed, folder)}")
        if self.litter:
            count = counted(len(self.litter), "folder or file", "folders and files")
            notes.append(f"ignored {count} that tools leave behind: {listed(self.litter, folder)}")
        if self.hidden:
            counts = Counter("folder" if path.is_dir() else "image" for path in self.hidden)
            what = " and ".join(
                counted(counts[kind], text) for kind, text in (("folder", "hidden folder"), ("image", "hidden image"))
                if counts[kind]
            )  # fmt: skip
            what += " with images" if counts["folder"] and not counts["image"] else ""
            notes.append(f"not read: {what}: {listed(self.hidden, folder)}")
        if self.num_outside:
            notes.append(f"followed {counted(self.num_outside, 'link')} to outside the folder")
        if self.num_repeated:
            notes.append(f"did not follow {counted(self.num_repeated, 'link')} to folders that are read already")
        return notes


def visible(folder: Place, found: Found) -> list[Any]:
    """List what is in a folder, sorted, without hidden files and folders and without litter."""
    paths = []
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        is_folder = path.is_dir()
        if name in _LITTER_FOLDERS if is_folder else name in _LITTER_FILES or name.startswith(_LITTER_STARTS):
            found.litter[path] = None
        elif not name.startswith("."):
            paths.append(path)
        elif path.is_symlink():
            continue
        elif _holds_images(path) if is_folder else has_image_name(path):
            found.hidden[path] = None
    return paths


def subfolders(folder: Place, found: Found) -> dict[str, Any]:
    """The visible folders in a folder by name."""
    return {path.name: path for path in visible(folder, found) if path.is_dir()}


def images_by_class(folder: Place, tops: Mapping[str, Place], found: Found) -> dict[str, list[Any]]:
    """List the images in and below the folder of each class, in the order of their paths.

    Real folders come first, so that each belongs to the class that contains it. Folders behind links come after that,
    and none twice: a few links that fork and join again would else make billions of paths.

    Args:
        folder: all that the user gave.
        tops: the folder of each class.
        found: takes what else is found.
    """
    classes: dict[str, list[Any]] = {name: [] for name in tops}
    within = os.path.realpath(folder) if isinstance(folder, Path) else ""
    above = map(_identity, Path(within).parents) if within else ()  # links up bring in other folders
    seen = {_identity(folder), *above, *(_identity(top.parent) for top in tops.values())}
    seen -= set(map(_identity, tops.values()))
    links: list[tuple[str, Place]] = []
    for name, path in tops.items():
        if path.is_symlink():
            links.append((name, path))
        elif _is_new(path, seen):
            links += [(name, link) for link in _walk(path, classes[name], seen, found)]
    for name, path in links:  # grows on the way
        if _is_new(path, seen):
            found.num_outside += _leads_out(path, within)
            links += [(name, link) for link in _walk(path, classes[name], seen, found)]
        elif path == tops[name]:
            raise DataError(f"{path}: a link to a folder that is read already; a folder can be one class only")
        else:
            found.num_repeated += 1
    for name, paths in classes.items():
        found.num_outside += sum(_leads_out(path, within) for path in paths)
        classes[name] = sorted(paths)
    return classes


def all_images(folder: Place, found: Found) -> list[Any]:
    """List the images in and below a folder, in the order of their paths."""
    return images_by_class(folder, {"": folder}, found)[""]


def _walk(top: Place, images: list[Any], seen: set[tuple[int, int]], found: Found) -> list[Any]:
    """Add the images in and below a folder to `images`. Return the links to folders, which are not followed."""
    folders, links = [top], []
    while folders:
        for path in visible(folders.pop(), found):
            if path.is_dir():
                if path.is_symlink():
                    links.append(path)
                elif _is_new(path, seen):
                    folders.append(path)
            elif is_image(path, found):
                images.append(path)
            else:
                found.others.append(path)
    return links


def is_image(path: Place, found: Found) -> bool:
    """Tell whether a file is an image, by its extension, or else by its first bytes, which is noted."""
    if has_image_name(path):
        return True
    if not is_worth_a_look(path.suffix) or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except (OSError, UnreadableError):
        return False
    if not may_be_image(start):
        return False
    found.unnamed.append(path)
    return True


def has_image_name(path: Place) -> bool:
    """Tell whether a file is called like an image."""
    return path.suffix.lower() in EXTENSIONS


def has_images(folder: Place, found: Found) -> bool:
    """Tell whether there is an image directly in a folder."""
    return any(not path.is_dir() and is_image(path, found) for path in visible(folder, found))


def _holds_images(folder: Place) -> bool:
    """Tell whether there are images in a folder or its subfolders, no deeper."""
    inside = list(itertools.islice(folder.iterdir(), _MAX_PEEKED))
    paths = (path for place in (folder, *(p for p in inside if p.is_dir())) for path in place.iterdir())
    return any(map(has_image_name, itertools.islice(paths, _MAX_PEEKED)))


def _is_new(folder: Place, seen: set[tuple[int, int]]) -> bool:
    """Tell whether a folder has not been read yet, and remember it."""
    identity = _identity(folder)
    is_new = identity not in seen
    seen.add(identity)
    return is_new


def _identity(path: Place) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _leads_out(path: Place, folder: str) -> bool:
    return path.is_symlink() and path.exists() and not Path(os.path.realpath(str(path))).is_relative_to(folder)


def listed(paths: Iterable[Place], folder: Place) -> str:
    """The first few paths, relative to a folder."""
    first = [str(path.relative_to(folder)) for path in itertools.islice(paths, _NUM_LISTED + 1)]  # type: ignore[arg-type]
    return ", ".join(first[:_NUM_LISTED]) + (", ..." if len(first) > _NUM_LISTED else "")


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files of paths; what is left out of a folder is reported.

    Args:
        paths: files; a folder stands for all image files in and below it, a pattern for the files that match.

    Raises:
        UsageError: a path does not exist, or there is no image file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            found = map(Path, glob(str(path), recursive=True))  # noqa: PTH207  # takes absolute patterns, too
            matches = sorted(match for match in found if match.exists())
            if not matches:
                raise UsageError(f"{path}: no such file or folder")
            files += image_files(matches)
            continue
        if not path.is_dir():
            files.append(path)
            continue
        found = Found()
        inside = all_images(path, found)
        if not inside:
            raise UsageError(f"{path}: no image file in this folder; known are {', '.join(sorted(ALWAYS_READ))}")
        for note in found.notes(path):
            progress.report(f"{path}: {note}")
        files += inside
    if not files:
        raise UsageError("no images: name image files, or a folder that has some")
    return files
