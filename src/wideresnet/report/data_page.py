"""What was found in a data set as a page: verdict, classes, duplicates and doubtful labels with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.format import counted
from wideresnet.report import html
from wideresnet.spec.files import write_atomic, write_json

MAX_CLASSES = 60
"""Classes in the table; of more, the largest and the smallest are shown. This package's choice."""

MAX_SHOWN = 8
"""Pictures of one group of duplicates."""


def write_check(document: Mapping[str, Any], pictures: Mapping[int, np.ndarray], folder: Path) -> list[Path]:
    """Write `check.html` and `check.json` into a folder, which is made if necessary.

    Args:
        document: from `inference.check.check_data`.
        pictures: index of an image -> uint8 (H, W, C).
        folder: old files in it are replaced.

    Returns:
        The page and the document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "check.html", folder / "check.json"
    head = str(document["verdict"]).partition(": ")[0]
    splits = document["splits"]
    body = [
        html.title(f"Check of {document['data']}", document["layout"] or "not recognized"),
        html.headline(head, _about(document) if document["layout"] else "the data could not be opened"),
        *(html.paragraph(text, "note") for text in document["problems"]),
        *(html.paragraph(text, "note") for text in document["warnings"]),
    ]
    if document["layout"] is not None:
        body += [
            html.facts(
                [
                    ("training images", f"{splits['train']:,}"),
                    ("test images", f"{splits['test']:,}"),
                    ("classes", f"{len(document['classes']):,}"),
                    ("sizes, width x height", sizes_text(document["sizes"])),
                    ("formats", counts_text(document["formats"])),
                    ("color modes", counts_text(document["modes"])),
                    ("unreadable", f"{document['num_unreadable']:,}"),
                ]
            ),
            *_suspicious(document, pictures),
            *_duplicates(document, pictures),
            *_unreadable(document),
            *_classes(document["classes"]),
        ]
    if document["notes"]:
        body += [html.heading("What was decided"), *(html.paragraph(note, "muted") for note in document["notes"])]
    write_atomic(page, html.page(f"Check of {document['data']}", body))
    write_json(data, dict(document))
    return [page, data]


def sizes_text(sizes: Mapping[str, Any] | None) -> str:
    """Write the sizes of images: '32 x 32', or '200 x 150 to 4,000 x 3,000 (312 sizes)'."""
    if sizes is None:
        return "-"
    (low_h, low_w), (high_h, high_w) = sizes["smallest_hw"], sizes["largest_hw"]
    if sizes["distinct"] == 1:
        return f"{low_w:,} x {low_h:,}"
    return f"{low_w:,} x {low_h:,} to {high_w:,} x {high_h:,} ({sizes['distinct']:,} sizes)"


def counts_text(counts: Mapping[str, int]) -> str:
    """Write names with their counts: 'JPEG 1,200, PNG 3'."""
    return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "-"


def duplicates_text(counts: Mapping[str, int]) -> str:
    """Write how many duplicates of a kind there are."""
    if not counts["groups"]:
        return "none"
    return (
        f"{counted(counts['images'], 'image')} in {counted(counts['groups'], 'group')}, of which "
        f"{counts['across_splits']:,} across splits and {counts['across_classes']:,} across classes"
    )


def _about(document: Mapping[str, Any]) -> str:
    splits = document["splits"]
    return f"{splits['train']:,} training and {splits['test']:,} test images of {len(document['classes']):,} classes"


def _place(image: Mapping[str, Any]) -> str:
    return f"{image['split']}: {image['file']}"


def _suspicious(document: Mapping[str, Any], pictures: Mapping[int, np.ndarray]) -> list[str]:
    found = document["suspicious"]
    if not found:
        return []
    shown = [image for image in found if image["image"] in pictures]
    about = (
        f"{counted(len(found), 'image')} of which the network is sure that they belong to another class, the surest "
        f"first; {len(shown)} are shown. It may be wrong: look before you change a label."
    )
    tiles = (
        (
            pictures[image["image"]], f"{image['predicted']} {100 * image['probability']:.1f} %",
            f"label: {image['class']}; {_place(image)}",
        )
        for image in shown
    )  # fmt: skip
    return [html.heading("Doubtful labels"), html.paragraph(about, "muted"), html.captioned(tiles)]


def _duplicates(document: Mapping[str, Any], pictures: Mapping[int, np.ndarray]) -> list[str]:
    duplicates = document["duplicates"]
    body = [
        html.heading("Duplicates"),
        html.facts([("equal pixels", duplicates_text(duplicates["exact"])),
                    ("nearly equal", duplicates_text(duplicates["near"]))]),
    ]  # fmt: skip
    shown = [group for group in duplicates["groups"] if group["images"][0]["image"] in pictures]
    if len(shown) < len(duplicates["groups"]):
        total = duplicates["exact"]["groups"] + duplicates["near"]["groups"]
        body.append(html.paragraph(f"The first {len(shown)} of {total:,} groups; check.json lists more.", "muted"))
    sets = list[tuple[str, str]]()
    for group in shown:
        kinds = ["equal pixels" if group["exact"] else "nearly equal"]
        kinds += ["in train and test"] * group["across_splits"] + ["of different classes"] * group["across_classes"]
        hidden = group["num_images"] - min(group["num_images"], MAX_SHOWN)
        more = f", {hidden:,} more" if hidden else ""
        images = group["images"][:MAX_SHOWN]
        tiles = html.captioned((pictures.get(image["image"]), image["class"], _place(image)) for image in images)
        sets.append((", ".join(kinds) + more, tiles))
    return [*body, html.groups(sets)] if sets else body


def _unreadable(document: Mapping[str, Any]) -> list[str]:
    if not document["unreadable"]:
        return []
    rows = [(entry["file"], entry["reason"]) for entry in document["unreadable"][:100]]
    table = html.table("images that cannot be read", ("file", "reason"), rows, wrapped=(1,))
    more = document["num_unreadable"] - len(rows)
    end = [html.paragraph(f"{more:,} more in check.json.", "muted")] if more > 0 else []
    return [html.heading("Images that cannot be read"), table, *end]


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = sorted(classes, key=lambda row: -row["train"])
    about = "By the number of training images."
    if len(shown) > MAX_CLASSES:
        about = f"The {MAX_CLASSES // 2} largest and the {MAX_CLASSES // 2} smallest of {len(shown):,} classes."
        shown = shown[: MAX_CLASSES // 2] + shown[-MAX_CLASSES // 2 :]
    rows = [(row["class"], f"{row['train']:,}", f"{row['test']:,}") for row in shown]
    table = html.table("classes", ("class", "training images", "test images"), rows, numbers=(1, 2))
    return [html.heading("Classes"), html.paragraph(about, "muted"), table]
