"""Contact sheets of classified files: what `wrn predict --sheet` draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base import progress
from wideresnet.base.errors import UsageError
from wideresnet.base.format import counted
from wideresnet.data.decode import in_threads
from wideresnet.data.feeds.decoder import fitted
from wideresnet.data.images import UnreadableError, decode_quietly, silent_pillow
from wideresnet.engines.explain import activation_maps
from wideresnet.inference.predict import white_for
from wideresnet.report.maps import overlay
from wideresnet.report.sheet import COLUMNS, ROWS, SIDE_PX, Thumbnail, draw_sheet, shrink
from wideresnet.spec.files import write_atomic
from wideresnet.weights.hub import Weights, read_weights
from wideresnet.weights.pretrained import default_name

ORDERS = ("class", "given")
"""By class, the most probable first; or as the files were given."""


def write_sheets(
    out: Path,
    weights: str | Path | Weights | None,
    answers: Sequence[dict[str, Any]],
    *,
    order: str = "class",
    explain: bool = False,
) -> list[Path]:
    """Write a contact sheet, of more than `COLUMNS * ROWS` images several: `out.png`, `out-2.png` and so on.

    Thumbnails are upright, and transparent and 16-bit images look as the network sees them.

    Args:
        out: the file, `.png`; old ones are replaced.
        weights: those of the answers, as for `predict_files`.
        answers: from `predict_files`.
        order: one of `ORDERS`; files that cannot be read come last if it is "class".
        explain: show what the network sees, with the places that speak for the class.

    Returns:
        The files.

    Raises:
        UsageError: an exported model cannot be explained.
        DataError: as for `predict_files`.
    """
    read = weights if isinstance(weights, Weights) else read_weights(default_name() if weights is None else weights)
    if explain and read.precision is not None:
        raise UsageError("explain=True: an exported model shows its outputs alone; use the weights that it was made of")
    rows = list(answers)
    if order == "class":
        rows.sort(key=lambda row: (not row["predictions"], *_rank(row)))
    files = [Path(row["file"]) for row in rows if row["predictions"]]
    num_unreadable = len(rows) - len(files)
    per_page = COLUMNS * ROWS
    pages = [rows[start : start + per_page] for start in range(0, len(rows), per_page)]
    title = f"{read.network.name}: {counted(len(files), 'image')}"
    title += f", {counted(num_unreadable, 'file')} cannot be read" if num_unreadable else ""
    written: list[Path] = []
    with silent_pillow():
        white = white_for(files, read)
        for number, page in enumerate(progress.track(pages, "drawing sheets", len(pages)), 1):
            pixels = iter(_pictures(page, read, white, explain=explain))
            thumbnails = [
                Thumbnail(next(pixels) if row["predictions"] else None, _line(row), Path(row["file"]).name)
                for row in page
            ]
            of = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
            path = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
            write_atomic(path, draw_sheet(thumbnails, title + of))
            written.append(path)
    return written


def _rank(row: dict[str, Any]) -> tuple[str, float]:
    best = row["predictions"][0] if row["predictions"] else {"class": "", "probability": 0.0}
    return best["class"], -best["probability"]


def _line(row: dict[str, Any]) -> str:
    if not row["predictions"]:
        return "not read"
    best = row["predictions"][0]
    return f"{100 * best['probability']:.0f} % {best['class']}"


def _pictures(
    page: Sequence[dict[str, Any]], weights: Weights, white: int, *, explain: bool
) -> list[np.ndarray | None]:
    """Return the thumbnails of the readable files, uint8 (H, W, C); None for one that has become unreadable."""
    rows = [row for row in page if row["predictions"]]
    size, channels = weights.input_size, weights.network.in_channels

    def one(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None] | None:
        try:
            image, _ = decode_quietly(Path(row["file"]), channels if explain else 3, white)
        except UnreadableError:
            return None
        if not explain:
            return np.asarray(shrink(image)), None
        times = max(1, SIDE_PX // max(size))  # what the network sees, at a finer resolution
        resize = None if weights.resize is None else times * weights.resize
        view = fitted(image, (times * size[0], times * size[1]), resize)
        return view, fitted(image, size, weights.resize)

    found = list(in_threads(one, rows))
    if not explain:
        return [None if each is None else each[0] for each in found]
    seen = [(row, each[0], each[1]) for row, each in zip(rows, found, strict=True) if each is not None]
    labels = np.array([[weights.class_names.index(row["predictions"][0]["class"])] for row, _, _ in seen])
    maps = iter(())
    if seen:
        device = next(weights.network.parameters()).device.type
        inputs = np.stack([pixels for _, _, pixels in seen if pixels is not None])
        maps = iter(activation_maps(weights.network, inputs, labels, weights.preprocessing, device=device)[:, 0])
    pictures: list[np.ndarray | None] = []
    for each in found:
        if each is None:
            pictures.append(None)
            continue
        activation = next(maps)
        pictures.append(overlay(each[0], activation, float(activation.max())))
    return pictures
