"""Self-contained HTML: no script, and no font or picture from elsewhere; every text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from wideresnet.base.metrics import class_errors, most_confused
from wideresnet.report.figures import DARK, LIGHT, Curve, Tile, draw_comparison, draw_curves, image_to_png, to_svg

MAX_MATRIX_CLASSES = 20
"""Up to this number of classes the whole confusion matrix is readable on a page. This package's choice."""

_STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --ink: #1f2328; --muted: #646d76; --line: #e4e7eb; --soft: #f5f7f9;
  --accent: #0b62c4; --wrong: #c6283a; --right-heat: 11, 98, 196; --wrong-heat: 214, 40, 57; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181c; --ink: #e3e6ea; --muted: #98a1ab; --line: #2c3138;
  --soft: #1d2126; --accent: #5aa5ff; --wrong: #ff7583; --right-heat: 56, 128, 220; --wrong-heat: 226, 62, 80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .5rem; }
p { margin: .35rem 0 .75rem; max-width: 48rem; }
.muted, figcaption small { color: var(--muted); }
.headline { font-size: 2.75rem; font-weight: 650; line-height: 1.1; margin: 1.25rem 0 .25rem; color: var(--accent); }
.note { border-left: 3px solid var(--wrong); padding: .1rem 0 .1rem .75rem; overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.5rem;
  margin: 1.25rem 0 0; }
dl.facts dt { color: var(--muted); font-size: .82rem; }
dl.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
table.plain { white-space: nowrap; }
table.plain .wrapped { white-space: normal; min-width: 12rem; }
td.number, th.number { text-align: right; }
tr.group th { padding-top: 1.1rem; color: var(--muted); font-weight: 400; font-size: .82rem; }
tr.changed th, tr.changed td { color: var(--accent); }
tr.changed td.value { font-weight: 600; }
td.value { overflow-wrap: anywhere; min-width: 7.5rem; max-width: 22rem; }
td.was { white-space: nowrap; }
tr td.muted { color: var(--muted); min-width: 14rem; }
table.matrix td, table.matrix th { border: 1px solid var(--bg); padding: .3rem .4rem; text-align: right; }
table.matrix td { min-width: 2.6rem; text-align: center; background: var(--soft); }
table.matrix thead th { vertical-align: bottom; text-align: center; }
table.matrix thead th.long span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; }
table.matrix .full { color: #ffffff; }
table.matrix .none { color: transparent; }
.bars { columns: 19rem; column-gap: 2.5rem; margin: 0; padding: 0; list-style: none; font-size: .9rem; }
.bars li { display: grid; grid-template-columns: 7.5rem 1fr 6.5rem; gap: .6rem; align-items: center;
  break-inside: avoid; padding: .12rem 0; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .bar { background: var(--soft); height: .65rem; }
.bars .bar span { display: block; height: 100%; background: var(--wrong); }
.bars .figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: 1.1rem .9rem; }
.tiles figure { margin: 0; font-size: .85rem; line-height: 1.3; }
.tiles img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft);
  border: 2px solid var(--line); image-rendering: pixelated; margin-bottom: .3rem; }
.tiles .wrong img { border-color: var(--wrong); }
.tiles .wrong b { color: var(--wrong); }
.tiles figcaption { overflow-wrap: anywhere; }
.curves { display: block; width: 100%; max-width: 50rem; height: auto; }
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
    ).encode("utf-8", "replace")  # a file name need not be valid Unicode


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


def curves_picture(curves: Sequence[Curve]) -> str:
    """Draw the curves of one run or of several, in the reader's light or dark colors."""

    def source(theme: Any) -> str:
        figure = draw_curves(curves[0], theme) if len(curves) == 1 else draw_comparison(curves, theme)
        return _data_uri(to_svg(figure), "image/svg+xml")

    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{source(DARK)}">'
        f'<img class="curves" alt="error, loss and learning rate by epoch" src="{source(LIGHT)}"></picture>'
    )


def tiles(pictures: Iterable[Tile]) -> str:
    """Write images with their true and predicted classes; wrong ones in red."""
    return f'<div class="tiles">{"".join(map(_tile, pictures))}</div>'


def _tile(tile: Tile) -> str:
    return (
        f'<figure class="{"wrong" if tile.is_wrong else "right"}">'
        f'<img alt="" src="{_data_uri(image_to_png(tile.image), "image/png")}"><figcaption>'
        f"<b>{escape(tile.predicted)}</b> {100 * tile.probability:.1f}&nbsp;%<br>"
        f"<small>true: {escape(tile.true)}</small></figcaption></figure>"
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = (), wrapped: Sequence[int] = ()
) -> str:
    """Write a table of plain values.

    Args:
        header: names of the columns.
        rows: values, one per column.
        numbers: indices of the columns to align right.
        wrapped: indices of the columns whose lines may wrap.
    """
    kinds = ["number" if i in numbers else "wrapped" if i in wrapped else "text" for i in range(len(header))]

    def row(cells: Sequence[Any], tag: str) -> str:
        pairs = zip(kinds, cells, strict=True)
        parts = (f'<{tag} class="{kind}">{escape(str(cell))}</{tag}>' for kind, cell in pairs)
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    head = row(header, "th")
    return f'<div class="scroll"><table class="plain"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def confusion_table(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Write the confusion matrix as a heat map, or the most confused pairs if there are too many classes.

    Args:
        matrix: int64 (classes, classes), as `base.metrics.confusion` returns it.
        class_names: in the order of the labels.
    """
    totals = class_errors(matrix).num_images
    if len(class_names) > MAX_MATRIX_CLASSES:
        pairs = [
            (class_names[true], class_names[predicted], count, f"{100 * count / totals[true]:.1f}")
            for true, predicted, count in most_confused(matrix, limit=20)
        ]
        return table(("true", "taken for", "images", "of the class, %"), pairs, numbers=(2, 3))
    length = ' class="long"' if max(map(len, class_names)) > 3 else ""
    columns = "".join(f'<th scope="col"{length}><span>{escape(name)}</span></th>' for name in class_names)
    rows = []
    for true, name in enumerate(class_names):
        cells = (_heat(int(count), int(totals[true]), true == i) for i, count in enumerate(matrix[true]))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="matrix"><thead><tr><th class="muted">true \\ predicted</th>'
        f"{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat(count: int, total: int, is_right: bool) -> str:
    if count == 0:
        return '<td class="none">0</td>'
    # the square root of the share, so that a single mistake in a thousand images is still visible
    alpha = 0.12 + 0.88 * (count / total) ** 0.5
    color = "right-heat" if is_right else "wrong-heat"
    full = ' class="full"' if alpha > 0.55 else ""
    return f'<td{full} style="background: rgba(var(--{color}), {alpha:.2f})">{count}</td>'


def class_error_bars(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Write the error of every class as a bar, the worst first; the scale ends at the worst.

    Args:
        matrix: int64 (classes, classes), as `base.metrics.confusion` returns it.
        class_names: in the order of the labels.
    """
    errors = class_errors(matrix)
    drawn_pct = np.nan_to_num(errors.error_pct)
    longest = float(drawn_pct.max()) or 1.0
    items = []
    for label in np.argsort(-drawn_pct, kind="stable"):
        name, num_images = escape(class_names[int(label)]), errors.num_images[label]
        figure = f"{drawn_pct[label]:.1f} % of {num_images}" if num_images else "no image"
        width = 100 * drawn_pct[label] / longest
        items.append(
            f'<li><span class="name" title="{name}">{name}</span><span class="bar">'
            f'<span style="width: {width:.1f}%"></span></span><span class="figure">{figure}</span></li>'
        )
    return f'<ul class="bars">{"".join(items)}</ul>'


def recipe_table(groups: dict[str, list[tuple[str, str, str | None, str]]]) -> str:
    """Write every field of a recipe.

    Args:
        groups: group -> rows of (field, value, the named recipe's value if it differs, what the field does).
    """
    rows = []
    for group, fields in groups.items():
        rows.append(f'<tr class="group"><th colspan="4">{escape(group)}</th></tr>')
        for name, value, base, does in fields:
            kind = "" if base is None else ' class="changed"'
            was = "" if base is None else f"recipe: {escape(base)}"
            rows.append(
                f'<tr{kind}><th scope="row">{escape(name)}</th><td class="value">{escape(value)}</td>'
                f'<td class="was">{was}</td><td class="muted">{escape(does)}</td></tr>'
            )
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def command(text: str) -> str:
    """Write a command line."""
    return f"<pre>{escape(text)}</pre>"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
