"""Test images without class folders, as in ImageNet and Tiny-ImageNet: labels in a text file, names of classes too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wideresnet.base.errors import DataError
from wideresnet.data.limits import check_fits
from wideresnet.data.readers.walk import Found, Place, images_by_class, visible

_EXTENSIONS = (".txt", ".csv", ".tsv")
_SEPARATORS = ("\t", ",", ";", " ")
_MAX_TEXT_BYTES = 256 * 2**20
_WNID = re.compile(r"n\d{8}")  # of a synset in WordNet
_NAME_FILES = ("words.txt", "LOC_synset_mapping.txt", "synset_words.txt")  # Tiny-ImageNet's, Kaggle's, Caffe's


def read_text(path: Place) -> str:
    """Return a text file, in UTF-8 with or without a mark, or else in Windows' Western encoding.

    Raises:
        DataError: it is larger than any table of labels.
    """
    size = path.stat().st_size
    if size > _MAX_TEXT_BYTES:
        raise DataError(f"{path}: a text file of {size:,} bytes, at most {_MAX_TEXT_BYTES:,} are read; split it")
    check_fits(10 * size, f"{path}: its lines", "split it")
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_annotated(
    flat: Any, root: Any, top: Place, class_names: Sequence[str], found: Found
) -> tuple[dict[str, list[Any]], Any] | None:
    """Sort the images of a folder without class folders by a file with their labels, in it or beside it.

    Such a file names an image and its class in each line, in this order: `val_0.JPEG<tab>n01443537<tab>...`, or
    `ILSVRC2012_val_00000001,n01751748 111 ...`, or a number of the class among the sorted names, as Caffe's val.txt.

    Args:
        flat: the folder.
        root: the folder that it is in.
        top: all that the user gave.
        class_names: the classes of train, sorted.
        found: takes what else is found.

    Returns:
        The images of each class, and the file; None if there is no such file, so that the images have no labels.

    Raises:
        DataError: the file has labels of some of the images only.
    """
    images = images_by_class(top, {"": flat}, Found())[""]
    by_name = {key: path for path in images for key in (path.stem, path.name)}
    files = [path for place in (flat, *_folders(flat), root) for path in visible(place, Found())]
    for path in files:
        if path.is_dir() or path.suffix.lower() not in _EXTENSIONS:
            continue
        labelled = _parse(read_text(path).splitlines(), by_name, class_names)
        if not labelled:
            continue
        if without := [image.name for image in images if image not in labelled]:
            raise DataError(
                f"{path}: has no label of {len(without)} of {len(images)} images in {flat.name}/ "
                f"({', '.join(without[:5])}{', ...' if len(without) > 5 else ''}); add them, or remove the images"
            )
        classes: dict[str, list[Any]] = {}
        for image, name in labelled.items():
            classes.setdefault(name, []).append(image)
        found.others = [other for other in found.others if other != path]
        return {name: sorted(paths) for name, paths in classes.items()}, path
    return None


def _folders(folder: Any) -> Iterable[Any]:
    return [path for path in visible(folder, Found()) if path.is_dir()]


def _parse(lines: Sequence[str], by_name: Mapping[str, Any], class_names: Sequence[str]) -> dict[Any, str]:
    """Return image -> class of the lines that name both; empty if these are not most of the lines."""
    known = frozenset(class_names)
    for separator in _SEPARATORS:
        labelled: dict[Any, str] = {}
        strange = 0
        for line in filter(str.strip, lines):
            first, *others = (cell.strip().strip('"') for cell in line.split(separator))
            image = by_name.get(first.replace("\\", "/").rpartition("/")[2])
            name = _class_of(others, known, class_names) if image is not None else None
            if image is not None and name is not None:
                labelled[image] = name
            else:
                strange += 1
            if strange > 1 + len(labelled):  # one may be a header
                break
        else:
            if labelled and strange <= 1:
                return labelled
    return {}


def _class_of(cells: Sequence[str], known: frozenset[str], names: Sequence[str]) -> str | None:
    for cell in cells:
        for text in (cell, cell.partition(" ")[0]):
            if text in known:
                return text
    is_number = bool(cells) and cells[0].isdecimal() and len(cells[0]) < 10
    return names[int(cells[0])] if is_number and int(cells[0]) < len(names) else None


def spelled_names(class_names: Sequence[str], places: Iterable[Place]) -> tuple[tuple[str, ...], str] | None:
    """Replace numbers of WordNet's synsets, such as n01443537, by words, from a file of the data set.

    Args:
        class_names: of the folders.
        places: folders that may hold words.txt.

    Returns:
        The first word of each class (all of them if two classes share it, with the number if that is not enough), and
        the name of the file; None if the classes have other names, or there is no such file.
    """
    if not all(map(_WNID.fullmatch, class_names)):
        return None
    for path in (place / name for place in places for name in _NAME_FILES):
        if not path.is_file():
            continue
        lines = (line.strip().split(None, 1) for line in read_text(path).splitlines())
        words = {line[0]: line[1] for line in lines if len(line) == 2}
        if all(name in words for name in class_names):
            full = [words[wnid] for wnid in class_names]
            names = _distinct([name.partition(",")[0].strip() for name in full], full)
            numbered = [f"{name} ({wnid})" for name, wnid in zip(names, class_names, strict=True)]
            return tuple(_distinct(names, numbered)), path.name
    return None


def _distinct(names: list[str], longer: list[str]) -> list[str]:
    """Take the longer form of names that occur twice."""
    counts = Counter(names)
    return [more if counts[name] > 1 else name for name, more in zip(names, longer, strict=True)]
