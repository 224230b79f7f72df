"""What the blocks of networks contribute: the page of `wrn analyze`, its pictures, its tables, a section for a run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from wideresnet.base.errors import DataError
from wideresnet.base.format import human_count
from wideresnet.report import html
from wideresnet.report.block_figures import draw_blocks, draw_similarity
from wideresnet.report.figures import to_svg
from wideresnet.report.statistics import summarize
from wideresnet.spec.analysis import Analysis, read_analyses, write_analyses
from wideresnet.spec.files import digest, read_file, write_atomic
from wideresnet.spec.record import RunFolder

BLOCK_HEADER = ("block", "shortcut", "params", "error without it, %", "increase", "branch, %", "gradient, %")
SUMMARY_HEADER = (
    "network",
    "blocks",
    "params",
    "error, %",
    "median increase",
    "largest",
    "branch, %",
    "neighbor similarity",
)

_ABOUT = (
    "Top: the test error if the branch of one block is removed; dashed: the error of the whole network. Middle: the "
    "norm of the branch over the sum of the norms of branch and shortcut. Bottom: the norm of the loss's gradient with "
    "respect to a block's parameters, over the mean of all blocks. Hollow squares: blocks that change channels or "
    "resolution; their projection stays when the branch is removed."
)
_ABOUT_SUMMARY = (
    "Increase: of the error when one block is removed, in percentage points; the median is over blocks whose shortcut "
    "is the identity, and the largest over all. Branch: the mean share of the norm. Neighbor similarity: the mean "
    "linear CKA between the outputs of a block and the one before."
)
_ABOUT_SIMILARITY = (
    "Linear CKA between the outputs of all pairs of blocks: 1 if they are equal up to rotation and scale, 0 if they "
    "are unrelated. A block whose output is that of the block before adds little."
)


def name_networks(analyses: Sequence[Analysis]) -> list[str]:
    """Name networks so that they can be told apart: by their names, with the folders of the weights if necessary."""
    names = [analysis.network for analysis in analyses]
    if len(set(names)) < len(names):
        names = [f"{analysis.network} ({Path(analysis.weights).resolve().name})" for analysis in analyses]
    if len(set(names)) < len(names):
        names = [f"{analysis.network} ({analysis.weights})" for analysis in analyses]
    return names


def block_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Return the cells of a table of the blocks, as `BLOCK_HEADER` names them."""
    return [
        (
            block.name,
            "projection" if block.projects else "identity",
            f"{block.params:,}",
            f"{block.error_without_pct:.2f}",
            f"{increase:+.2f}",
            f"{100 * block.branch_share:.1f}",
            f"{100 * block.gradient_share:.1f}",
        )
        for block, increase in zip(analysis.blocks, analysis.increases_pct(), strict=True)
    ]


def summary_row(analysis: Analysis, label: str) -> tuple[str, ...]:
    """Return the cells of a network, as `SUMMARY_HEADER` names them.

    The median is over blocks with an identity shortcut: the others change the resolution, which the network depends on.
    """
    others, neighbors = analysis.increases_pct(projecting=False), analysis.neighbor_similarity()
    return (
        label,
        f"{len(analysis.blocks):,}",
        human_count(analysis.params),
        f"{analysis.error_pct:.2f}",
        f"{summarize(others).median:+.2f}" if others else "-",
        f"{max(analysis.increases_pct()):+.2f}",
        f"{100 * summarize(block.branch_share for block in analysis.blocks).mean:.1f}",
        f"{summarize(neighbors).mean:.3f}" if neighbors else "-",
    )


def images_text(analysis: Analysis) -> str:
    """Say how many images were used: '1,000 of 10,000 test images, 512 of them for gradients and similarity'."""
    text = f"{analysis.num_images:,} of {analysis.num_test_images:,} test images of {analysis.dataset}"
    compared = analysis.num_compared
    return text if compared == analysis.num_images else f"{text}, {compared:,} of them for gradients and similarity"


def write_analysis(analyses: Sequence[Analysis], folder: Path) -> list[Path]:
    """Write `analysis.json`, `analysis.html` and two pictures for print into a folder, which is made if necessary.

    Returns:
        The files; the page first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, labels = RunFolder(folder), name_networks(analyses)
    write_analyses(files.analysis, analyses)
    write_atomic(files.analysis_blocks, to_svg(draw_blocks(analyses, labels)))
    write_atomic(files.analysis_similarity, to_svg(draw_similarity(analyses, labels)))
    body = [html.title(_title(labels), "what each residual block contributes")]
    notes = dict.fromkeys(note for analysis in analyses for note in analysis.notes)
    body += [html.paragraph(note, "note") for note in notes]
    if len(analyses) > 1:
        rows = [summary_row(analysis, label) for analysis, label in zip(analyses, labels, strict=True)]
        body += [
            html.heading("Side by side"),
            html.table("networks", SUMMARY_HEADER, rows, numbers=range(1, 8)),
            html.paragraph(_ABOUT_SUMMARY, "muted"),
        ]
    body += _pictures(analyses, labels)
    for analysis, label in zip(analyses, labels, strict=True):
        body += [
            html.heading(f"Blocks of {label}"),
            html.paragraph(f"Error of the whole network: {analysis.error_pct:.2f} %, on {images_text(analysis)}."),
            html.table(f"blocks of {label}", BLOCK_HEADER, block_rows(analysis), numbers=range(2, 7)),
        ]
    write_atomic(files.analysis_page, html.page(_title(labels), body))
    return [files.analysis_page, files.analysis, files.analysis_blocks, files.analysis_similarity]


def _title(labels: Sequence[str]) -> str:
    *others, last = labels
    return f"Blocks of {', '.join(others)} and {last}" if others else f"Blocks of {last}"


def _pictures(analyses: Sequence[Analysis], labels: Sequence[str]) -> list[str]:
    alt = "Test error without each block, share of the branch and gradient, over depth. " + " ".join(
        f"{label}: {analysis.error_pct:.2f} % with all blocks, up to "
        f"{max(block.error_without_pct for block in analysis.blocks):.2f} % without one."
        for label, analysis in zip(labels, analyses, strict=True)
    )
    return [
        html.heading("Over depth"),
        html.picture(functools.partial(draw_blocks, analyses, labels), alt),
        html.paragraph(_ABOUT, "muted"),
        html.heading("Similarity of blocks"),
        html.picture(
            functools.partial(draw_similarity, analyses, labels),
            f"Heat map of the similarity between the outputs of blocks of {' and of '.join(labels)}.",
            small=len(analyses) == 1,
        ),
        html.paragraph(_ABOUT_SIMILARITY, "muted"),
    ]


def blocks_section(folder: RunFolder) -> list[str]:
    """Show what `analysis.json` in a run folder says; nothing if there is none, and why if it cannot be shown."""
    if not folder.analysis.is_file():
        return []
    try:
        own = _sha256(folder)
        found = [each for each in read_analyses(folder.analysis) if own and each.weights_sha256 == own]
    except DataError as error:
        return [html.heading("Blocks"), html.paragraph(f"Not shown: {error}. Run wrn analyze again.", "note")]
    if not found:
        reason = "is of other weights than these" if own else "cannot be checked, because the weights are not here"
        text = f"Not shown: {folder.analysis.name} {reason}. Run wrn analyze again."
        return [html.heading("Blocks"), html.paragraph(text, "note")]
    (analysis, *_), labels = found, [found[0].network]
    _, picture, about, _, similarity, more = _pictures([analysis], labels)
    page = html.Link("Every number by block", html.relative_address(folder.report, folder.analysis_page))
    return [
        html.heading("Blocks"),
        html.paragraph(f"What each residual block contributes, on {images_text(analysis)}.", "muted"),
        *([html.link(page)] if folder.analysis_page.is_file() else []),
        picture,
        about,
        similarity,
        more,
    ]


def _sha256(folder: RunFolder) -> str | None:
    """Return the digest of a run's weights: the recorded one, else that of the file; None without either."""
    recorded = folder.digests().values.get(folder.weights.name)
    if recorded is None and folder.weights.is_file():
        return digest(read_file(folder.weights))
    return recorded
