"""Self-contained HTML: no script, and no font or picture from elsewhere; every text is escaped and can be shown."""

from __future__ import annotations

import base64
import functools
import html
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from wideresnet.base.format import printable
from wideresnet.base.metrics import class_errors, most_confused
from wideresnet.report.figures import DARK, LIGHT, Tile, heat, in_dark, to_svg
from wideresnet.report.thumbnails import encode_small

_LAID_OUT = "\n\t\u200c\u200d"
"""What is no letter and belongs to a text: lines, and the joiners of letters in Persian, Hindi and others."""

# The colors of text have a contrast of at least 4.5 : 1 with both backgrounds, --bg and --soft.
_STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --ink: #1f2328; --muted: #59626b; --line: #e4e7eb; --soft: #f5f7f9;
  --accent: #0b62c4; --wrong: #c6283a; --right-heat: 11, 98, 196; --wrong-heat: 198, 40, 58; --shade: 0, 0, 0; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181c; --ink: #e3e6ea; --muted: #98a1ab; --line: #2c3138;
  --soft: #1d2126; --accent: #5aa5ff; --wrong: #ff7583; --right-heat: 56, 128, 220; --wrong-heat: 226, 62, 80;
  --shade: 255, 255, 255; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .5rem; }
p { margin: .35rem 0 .75rem; max-width: 48rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.muted, figcaption small { color: var(--muted); }
.headline { font-size: 2.75rem; font-weight: 650; line-height: 1.1; margin: 1.25rem 0 .25rem; color: var(--accent); }
.lead { font-size: 1.15rem; margin-top: 1rem; }
dl.facts + .note { margin-top: 1.25rem; }
.note { border-left: 3px solid var(--wrong); padding: .1rem 0 .1rem .75rem; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.5rem;
  margin: 1.25rem 0 0; }
dl.facts dt { color: var(--muted); font-size: .82rem; }
dl.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
/* a shadow at each side where a table goes on: it lies in the frame, and the covers scroll with the table */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--bg) 1.2rem, transparent) left / 2.4rem 100% no-repeat local,
  linear-gradient(to left, var(--bg) 1.2rem, transparent) right / 2.4rem 100% no-repeat local,
  linear-gradient(to right, rgba(var(--shade), .28), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, rgba(var(--shade), .28), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
tbody th { font-weight: 400; }
tr > th:first-child { position: sticky; left: 0; background: var(--bg); }
table.plain { white-space: nowrap; }
table.plain th:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; max-width: 12rem; }
table.plain .wrapped { white-space: normal; min-width: 12rem; }
td.number, th.number { text-align: right; }
tr.group th { padding-top: 1.1rem; color: var(--muted); font-size: .82rem; }
tr.changed th, tr.changed td { color: var(--accent); }
tr.changed td.value { font-weight: 600; }
td.value { overflow-wrap: anywhere; min-width: 7.5rem; max-width: 22rem; }
td.was { white-space: nowrap; }
tr td.muted { color: var(--muted); min-width: 14rem; }
table.matrix td, table.matrix th { border: 1px solid var(--bg); padding: .3rem .4rem; text-align: right; }
table.matrix tbody th { max-width: 9rem; overflow-wrap: anywhere; }
table.matrix td { min-width: 2.6rem; text-align: center; }
table.matrix thead th { vertical-align: bottom; text-align: center; }
table.matrix thead th.long span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; }
table.matrix .none { color: var(--muted); font-size: .75em; vertical-align: middle; }
.bar { display: inline-block; width: 6rem; height: .65rem; margin-right: .6rem; background: var(--soft); }
.bar span { display: block; height: 100%; background: var(--wrong); }
td small { color: var(--muted); font-size: .82rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: 1.1rem .9rem; }
.tiles figure { margin: 0; font-size: .85rem; line-height: 1.3; }
.tiles img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft);
  border: 2px solid var(--line); image-rendering: pixelated; margin-bottom: .3rem; }
.tiles img.fine { image-rendering: auto; }
.tiles .wrong img { border-color: var(--wrong); }
.tiles .wrong b { color: var(--wrong); }
.tiles figcaption { overflow-wrap: anywhere; }
.strips { grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: .25rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1.1rem .9rem; }
.pictures figure { margin: 0; font-size: .85rem; line-height: 1.3; }
.pictures img { display: block; width: 100%; height: auto; margin-bottom: .3rem; }
.pictures figcaption { overflow-wrap: anywhere; }
.groups { display: flex; flex-wrap: wrap; gap: 1.4rem 2.2rem; margin-top: 1.4rem; }
.groups p { margin: 0 0 .3rem; }
.groups .tiles { display: flex; flex-wrap: wrap; }
.groups figure { width: 6.5rem; }
.drawing { display: block; width: 100%; max-width: 50rem; height: auto; }
.drawing.small { max-width: 25rem; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .88rem; }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(name: str, body: Iterable[str]) -> bytes:
    """Write a whole document, whose policy forbids the browser to load anything.

    Args:
        name: the title of the browser's tab.
        body: pieces of HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    ).encode()


def escape(text: str) -> str:
    """Make any text part of a page: markup is only text, and what cannot be shown is written as an escape."""
    return html.escape(printable(text, keep=_LAID_OUT))


@dataclass(frozen=True)
class Link:
    """A cell of a table or a line that leads to another page."""

    text: str
    address: str


@dataclass(frozen=True)
class Bar:
    """A cell of a table with a bar and its number.

    Attributes:
        text: the number.
        share: length of the bar, 0..1.
    """

    text: str
    share: float


@dataclass(frozen=True)
class Measured:
    """A cell of a table with a number, and in small text how certain it is."""

    text: str
    interval: str


def relative_address(page: Path, other: Path) -> str:
    """Return the address of another page as seen from a page, so that both can be moved together."""
    # made of bytes, since a file name need not be valid Unicode
    return quote(os.path.relpath(os.fsencode(other.resolve()), os.fsencode(page.parent.resolve())))


def title(name: str, about: str) -> str:
    """Write the title of a page, with a line below it."""
    return f'<h1>{escape(name)}</h1><p class="muted">{escape(about)}</p>'


def headline(figure: str, about: str) -> str:
    """Write the one number that the page is about."""
    return f'<div class="headline">{escape(figure)}</div><p>{escape(about)}</p>'


def heading(text: str) -> str:
    """Write the heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Write a paragraph; `kind` is "muted", "note" or ""."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Write names and values in columns."""
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{"".join(items)}</dl>'


def link(target: Link) -> str:
    """Write a line that leads to another page."""
    return f"<p>{_content(target)}</p>"


def picture(draw: Callable[..., Figure], alt: str, *, small: bool = False) -> str:
    """Draw a figure in the reader's light or dark colors, and for wide or narrow pages, so that its text stays legible.

    Args:
        draw: takes a theme and `narrow`.
        alt: what the figure shows, for those who do not see it.
        small: give it half of the width; it is drawn narrow then on wide pages, too.
    """

    @functools.cache
    def drawn(narrow: bool) -> tuple[str, str]:
        light = to_svg(draw(LIGHT, narrow=narrow))
        dark = to_svg(draw(DARK, narrow=narrow)) if b"<image" in light else in_dark(light)
        return data_uri(light, "image/svg+xml"), data_uri(dark, "image/svg+xml")

    (light, dark), (light_narrow, dark_narrow) = drawn(small), drawn(True)
    at_night, thin = "(prefers-color-scheme: dark)", "(max-width: 43rem)"
    return (
        f'<picture><source media="{thin} and {at_night}" srcset="{dark_narrow}">'
        f'<source media="{thin}" srcset="{light_narrow}">'
        f'<source media="{at_night}" srcset="{dark}">'
        f'<img class="drawing{" small" * small}" alt="{escape(alt)}" src="{light}"></picture>'
    )


def image(pixels: np.ndarray, alt: str) -> str:
    """Write an image, uint8 (H, W, C): a small one exactly, its pixels as squares, a larger one as a thumbnail."""
    content, kind, is_exact = encode_small(pixels)
    look = "" if is_exact else ' class="fine"'
    return f'<img{look} alt="{escape(alt)}" src="{data_uri(content, kind)}">'


def tiles(pictures: Iterable[Tile]) -> str:
    """Write images with their true and predicted classes; wrong ones in red."""
    return f'<div class="tiles">{"".join(map(_tile, pictures))}</div>'


def _tile(tile: Tile) -> str:
    return (
        f'<figure class="{"wrong" if tile.is_wrong else "right"}">'
        f"{image(tile.image, f'image of {tile.true}')}<figcaption>"
        f"<b>{escape(tile.predicted)}</b> {100 * tile.probability:.1f}&nbsp;%<br>"
        f"<small>true: {escape(tile.true)}</small></figcaption></figure>"
    )


def captioned(pictures: Iterable[tuple[np.ndarray | None, str, str]]) -> str:
    """Write images, each with a line in bold and small text below; a frame stays empty if there is no image.

    Args:
        pictures: uint8 (H, W, C) or None, the line, and the text.
    """
    blank = np.full((1, 1, 3), 255, dtype=np.uint8)
    figures = (
        f"<figure>{image(blank if pixels is None else pixels, f'{line}, {text}')}<figcaption>"
        f"<b>{escape(line)}</b><br><small>{escape(text)}</small></figcaption></figure>"
        for pixels, line, text in pictures
    )
    return f'<div class="tiles">{"".join(figures)}</div>'


def strip(pictures: Iterable[tuple[np.ndarray, str]], line: str, *, is_wrong: bool) -> str:
    """Write images side by side with a line below all.

    Args:
        pictures: uint8 (H, W, C), and what each shows.
        line: below.
        is_wrong: give it the color of wrong predictions.
    """
    images = "".join(image(pixels, alt) for pixels, alt in pictures)
    return (
        f'<figure class="{"wrong" if is_wrong else "right"}"><div class="strip">{images}</div>'
        f"<figcaption>{escape(line)}</figcaption></figure>"
    )


def strips(figures: Iterable[str]) -> str:
    """Write what `strip` returned, as many next to each other as fit."""
    return f'<div class="tiles strips">{"".join(figures)}</div>'


def groups(items: Iterable[tuple[str, str]]) -> str:
    """Write several sets of images side by side, each a line of text and what `captioned` returned."""
    return (
        f'<div class="groups">{"".join(f"<section>{paragraph(text)}{tiles}</section>" for text, tiles in items)}</div>'
    )


def table(
    name: str,
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Sequence[int] = (),
    wrapped: Sequence[int] = (),
) -> str:
    """Write a table of plain values; the first column names the rows and stays in view.

    Args:
        name: what the table holds, for those who do not see it.
        header: names of the columns.
        rows: values, links, bars or measured numbers, one per column.
        numbers: indices of the columns to align right.
        wrapped: indices of the columns whose lines may wrap.
    """
    kinds = ["number" if i in numbers else "wrapped" if i in wrapped else "text" for i in range(len(header))]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(cell)}</th>' for kind, cell in zip(kinds, header, strict=True)
    )
    body = []
    for first, *cells in rows:
        others = (f'<td class="{kind}">{_content(cell)}</td>' for kind, cell in zip(kinds[1:], cells, strict=True))
        body.append(f'<tr><th scope="row" class="{kinds[0]}">{_content(first)}</th>{"".join(others)}</tr>')
    return _scroll(name, f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>')


def _content(cell: Any) -> str:
    if isinstance(cell, Link):
        return f'<a href="{html.escape(cell.address)}">{escape(cell.text)}</a>'
    if isinstance(cell, Bar):
        return f'<span class="bar"><span style="width: {100 * cell.share:.1f}%"></span></span>{escape(cell.text)}'
    if isinstance(cell, Measured):
        return f"{escape(cell.text)} <small>{escape(cell.interval)}</small>"
    return escape(str(cell))


def _scroll(name: str, wide: str) -> str:
    """Let what is wider than the page scroll by itself, also by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{wide}</div>'


def confusion_table(matrix: np.ndarray, class_names: Sequence[str], totals: np.ndarray | None = None) -> str:
    """Write the confusion matrix as a table that is a heat map.

    Args:
        matrix: int64 (classes, classes), as `base.metrics.confusion` returns it, or a block of it.
        class_names: in the order of the labels.
        totals: int64 (classes,), images of each class, if the matrix is a block; None for its sums.
    """
    totals = class_errors(matrix).num_images if totals is None else totals
    length = ' class="long"' if max(map(len, class_names)) > 3 else ""
    columns = "".join(f'<th scope="col"{length}><span>{escape(name)}</span></th>' for name in class_names)
    rows = []
    for true, name in enumerate(class_names):
        cells = (_heat(int(count), int(totals[true]), true == i) for i, count in enumerate(matrix[true]))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return _scroll(
        "confusion matrix",
        '<table class="matrix"><thead><tr><th scope="col" class="muted">true \\ predicted</th>'
        f"{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
    )


def confused_pairs(matrix: np.ndarray, class_names: Sequence[str], limit: int = 20) -> str:
    """Write the most frequent kinds of mistakes.

    Args:
        matrix, class_names: as for `confusion_table`.
        limit: how many at most.
    """
    totals = class_errors(matrix).num_images
    pairs = [
        (class_names[true], class_names[predicted], count, f"{100 * count / totals[true]:.1f}")
        for true, predicted, count in most_confused(matrix, limit)
    ]
    header = ("true", "taken for", "images", "of the class, %")
    return table("most confused classes", header, pairs, numbers=(2, 3))


def _heat(count: int, total: int, is_right: bool) -> str:
    if count == 0:
        return '<td class="none">0</td>'
    color = "right-heat" if is_right else "wrong-heat"
    return f'<td style="background: rgba(var(--{color}), {float(heat(count / total)):.2f})">{count}</td>'


def recipe_table(groups: dict[str, list[tuple[str, str, str | None, str]]]) -> str:
    """Write every field of a recipe.

    Args:
        groups: group -> rows of (field, value, the named recipe's value if it differs, what the field does).
    """
    rows = []
    for group, fields in groups.items():
        rows.append(f'<tr class="group"><th scope="rowgroup" colspan="4">{escape(group)}</th></tr>')
        for name, value, base, does in fields:
            kind = "" if base is None else ' class="changed"'
            was = "" if base is None else f"recipe: {escape(base)}"
            rows.append(
                f'<tr{kind}><th scope="row">{escape(name)}</th><td class="value">{escape(value)}</td>'
                f'<td class="was">{was}</td><td class="muted">{escape(does)}</td></tr>'
            )
    return _scroll("recipe", f"<table><tbody>{''.join(rows)}</tbody></table>")


def command(text: str) -> str:
    """Write a command line."""
    return f'<pre tabindex="0">{escape(text)}</pre>'


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
