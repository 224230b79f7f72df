"""Errors on corrupted images as a page: curves over severity, tables, and an image under each corruption."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wideresnet.data.corruptions import PUBLISHED_GROUPS, corrupt
from wideresnet.report import html
from wideresnet.report.figures import LIGHT, NARROW_WIDTH_IN, SERIES_COLORS, WIDTH_IN, Theme, add_legend, style
from wideresnet.report.text import arithmetic
from wideresnet.spec.files import write_atomic

SHOWN_SEVERITIES = (1, 3, 5)
"""Of the image that is shown. This package's choice."""

MOST_LARGE = 10
"""Columns whose names have room in ordinary letters."""

MARKERS = ("o", "s", "^", "D")

Corrupted = Callable[[str, int], np.ndarray]
"""An image under a corruption at a severity, uint8 (H, W, C)."""


def spelled(name: str) -> str:
    """Write the name of a corruption for readers: 'jpeg_compression' -> 'JPEG compression'."""
    return name.replace("_", " ").replace("jpeg", "JPEG").replace("gaussian", "Gaussian")


def error_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a table: a row per corruption, its error at each severity, means of error, NLL and ECE."""
    errors = result["corruptions"]

    def row(name: str, values: Sequence[float], error: float, loss: float, ece: float) -> tuple[str, ...]:
        return (name, *map(_pct, values), _pct(error), f"{loss:.3f}", _pct(ece))

    tables = (errors, result["loss"], result["ece_pct"])
    rows = [
        row(spelled(name), each, *(float(np.mean(table[name])) for table in tables)) for name, each in errors.items()
    ]
    means = np.mean(list(errors.values()), axis=0).tolist()
    return [*rows, row("mean", means, result["mean_error_pct"], result["mean_loss"], result["mean_ece_pct"])]


def likelihood_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return two more rows of that table: NLL and ECE at each severity, means over the corruptions."""
    losses, eces = (np.mean(list(result[key].values()), axis=0) for key in ("loss", "ece_pct"))
    return [
        ("NLL, nats", *(f"{loss:.3f}" for loss in losses), f"{result['mean_loss']:.3f}"),
        ("ECE, %", *map(_pct, eces), _pct(result["mean_ece_pct"])),
    ]


def _pct(value: float) -> str:
    return f"{value:.2f}"


def write_corruptions(
    path: Path, result: dict[str, Any], image: np.ndarray | None, corrupted: Corrupted | None = None
) -> None:
    """Write a page about weights on corrupted images; an old one is replaced.

    Args:
        path: the page; its folder is made if necessary.
        result: what `inference.corruptions.corruption_errors` or `published_corruption_errors` returned.
        image: uint8 (H, W, C), shown under each corruption; C is 1 or 3. None if there is no clean one.
        corrupted: returns that image under a corruption at a severity; None: this package corrupts it.
    """
    clean, errors, extra = result["clean"], result["corruptions"], result.get("extra")
    about = clean or result["about"]
    name = f"{about['network']} on {'corrupted ' if clean else ''}{about['dataset']}"
    header = ("corruption", *map(str, result["severities"]), "mean", "NLL, nats", "ECE, %")
    columns = range(1, len(header))
    worst = max(errors, key=lambda each: np.mean(errors[each]))
    clean_text = f"clean {clean['error_pct']:.2f} %, " if clean else ""
    alt = (
        f"Test error by severity of {len(errors)} corruptions; {clean_text}mean "
        f"{result['mean_error_pct']:.2f} %, worst {spelled(worst)} with {np.mean(errors[worst]):.2f} %."
    )
    dashed = "Dashed: the error on clean images. " if clean else ""
    body = [
        html.title(name, f"{about['weights']}; {about['num_images']:,} test images per corruption and severity"),
        html.headline(f"{result['mean_error_pct']:.2f} %", "mean corruption error, over corruptions and severities"),
        html.facts(
            [
                *_clean_facts(clean),
                ("corrupted NLL, mean", f"{result['mean_loss']:.4f} nats"),
                ("corrupted ECE, mean", f"{result['mean_ece_pct']:.2f} %"),
                ("arithmetic", arithmetic(about)),
            ]
        ),
        *(html.paragraph(note, "note") for note in (*about["notes"], *result["notes"])),
        html.heading("Error by severity"),
        html.picture(functools.partial(draw_corruption_errors, result), alt),
        html.paragraph(f"{dashed}The legends give means over the severities.", "muted"),
        html.table("test error by severity, %", header, error_rows(result), numbers=columns),
        html.paragraph("Test error, %, by severity; NLL and ECE are means over the severities.", "muted"),
        *(_extra(extra, header) if extra else ()),
        html.heading("Likelihood and calibration by severity"),
        html.table("NLL and ECE by severity", ("mean of", *header[1:-2]), likelihood_rows(result), numbers=range(1, 7)),
        html.paragraph(
            "Negative log likelihood and expected calibration error, means over the corruptions."
            + (f" On clean images they are {clean['loss']:.3f} nats and {clean['ece_pct']:.2f} %." if clean else ""),
            "muted",
        ),
        html.heading("What the corruptions look like"),
        html.picture(
            functools.partial(draw_examples, image, list(errors), corrupted=corrupted),
            f"The first test image, {'clean and ' if clean else ''}under each corruption at severity "
            f"{_listed(SHOWN_SEVERITIES)}.",
        ),
        html.paragraph(f"The first test image at severity {_listed(SHOWN_SEVERITIES)}.", "muted"),
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, html.page(name, body))


def _clean_facts(clean: dict[str, Any] | None) -> list[tuple[str, str]]:
    if clean is None:
        return []
    return [
        ("clean error", f"{clean['error_pct']:.2f} %"),
        ("clean NLL", f"{clean['loss']:.4f} nats"),
        ("clean ECE", f"{clean['ece_pct']:.2f} %"),
    ]


def _extra(extra: dict[str, Any], header: Sequence[str]) -> list[str]:
    """Show the corruptions that do not count."""
    return [
        html.heading("Corruptions that do not count"),
        html.table("further corruptions, %", header, error_rows(extra)[:-1], numbers=range(1, len(header))),
        html.paragraph("CIFAR-10-C's four for validation; they are in no mean above.", "muted"),
    ]


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def draw_corruption_errors(result: dict[str, Any], theme: Theme = LIGHT, *, narrow: bool = False) -> Figure:
    """Draw the error of each corruption over severity, a panel for each group, with the clean error as a line.

    Args:
        result: what `inference.corruptions.corruption_errors` returned.
        theme: colors.
        narrow: for a telephone.
    """
    errors, severities = result["corruptions"], result["severities"]
    groups = [
        (group, shown)
        for group, names in PUBLISHED_GROUPS.items()
        if (shown := [name for name in names if name in errors])
    ]
    columns = 1 if narrow or len(groups) == 1 else 2
    rows = -(-len(groups) // columns)
    size = (NARROW_WIDTH_IN if narrow else WIDTH_IN, 3.0 * rows + 0.3)
    figure = Figure(size, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    clean_pct = result["clean"]["error_pct"] if result["clean"] else None
    top = max(max(max(row) for row in errors.values()), clean_pct or 0.0)
    for place, (group, names) in enumerate(groups):
        axes = figure.add_subplot(rows, columns, place + 1)
        style(axes, theme)
        if clean_pct is not None:
            axes.axhline(clean_pct, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
        lines = []
        for name in names:
            i = PUBLISHED_GROUPS[group].index(name)
            look = {"color": SERIES_COLORS[i], "marker": MARKERS[i], "markersize": 5, "linewidth": 1.6}
            lines += axes.plot(severities, errors[name], **look)
        add_legend(axes, lines, [f"{spelled(name)}  {np.mean(errors[name]):.1f} %" for name in names], theme, 1)
        axes.set_title(group, loc="left", color=theme.ink, fontsize=10, fontweight="bold")
        axes.set(ylim=(0, max(1.0, 1.05 * top)), xticks=severities)
        if place % columns == 0:
            axes.set_ylabel("error, %", color=theme.ink, fontsize=10)
        if place + columns >= len(groups):
            axes.set_xlabel("severity", color=theme.ink, fontsize=10)
    return figure


def draw_examples(
    image: np.ndarray | None,
    names: Sequence[str],
    theme: Theme = LIGHT,
    *,
    narrow: bool = False,
    corrupted: Corrupted | None = None,
) -> Figure:
    """Draw an image as it is and under each corruption, at `SHOWN_SEVERITIES`.

    Args:
        image: uint8 (H, W, C), C is 1 or 3; None to leave it out.
        names: the corruptions.
        theme: colors.
        narrow: for a telephone: a row per corruption instead of a column.
        corrupted: as for `write_corruptions`.
    """
    own: Corrupted = corrupted or (lambda name, severity: corrupt(np.asarray(image)[None], name, severity)[0])
    labels = (*(("clean",) if image is not None else ()), *(f"severity {severity}" for severity in SHOWN_SEVERITIES))
    size = (NARROW_WIDTH_IN, 0.8 * len(names) + 0.3) if narrow else (WIDTH_IN, 0.7 * len(labels) + 0.6)
    figure = Figure(size, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    shape = (len(names), len(labels)) if narrow else (len(labels), len(names))
    panels = figure.subplots(*shape, squeeze=False, subplot_kw={"xticks": (), "yticks": ()})
    for name, strip in zip(names, panels if narrow else panels.T, strict=True):
        clean = () if image is None else (image,)
        pictures = (*clean, *(own(name, severity) for severity in SHOWN_SEVERITIES))
        for axes, picture in zip(strip, pictures, strict=True):
            shown = picture[..., 0] if picture.shape[2] == 1 else picture
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="none")  # each pixel whole in SVG
            axes.spines[:].set_visible(False)
    folded = [spelled(name).replace(" ", "\n") for name in names]
    rows, columns = (folded, labels) if narrow else (labels, folded)
    for axes, label in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(label, rotation=0, ha="right", va="center", color=theme.ink, fontsize=8)
    for axes, label in zip(panels[0], columns, strict=True):
        axes.set_title(label, color=theme.ink, fontsize=8 if len(columns) <= MOST_LARGE else 6)
    return figure
