"""Figures of docs/the-paper.md: the same bytes for the same data, stale if the data changes, legible in the dark."""

from __future__ import annotations

import re
from dataclasses import replace

from paper_figures import Drawing, Timing, dark_style, times
from wideresnet.report.figures import DARK, LIGHT

TIMINGS = (Timing("PreActResNet-164", 5e10, 0.1), Timing("WRN-28-10", 1e12, 0.3))


def drawing(*timings: Timing) -> Drawing:
    return times([("then", timings), ("now", timings)])


def test_equal_data_gives_equal_files_without_a_version_of_matplotlib() -> None:
    svg = drawing(*TIMINGS).svg()
    assert svg == drawing(*TIMINGS).svg()
    assert drawing(*TIMINGS).mark in svg
    assert "atplotlib v" not in svg


def test_other_data_gives_another_mark() -> None:
    slower = replace(TIMINGS[1], seconds=0.31)
    assert drawing(*TIMINGS).mark != drawing(TIMINGS[0], slower).mark


def test_every_color_has_one_for_a_dark_page() -> None:
    svg, style = drawing(*TIMINGS).svg(), dark_style()
    body = svg.replace(style, "")
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", body))
    assert {LIGHT.background, LIGHT.ink} <= used
    for color in used:
        assert f'[style*="fill: {color}"]' in style, color
        assert f'[style*="stroke: {color}"]' in style, color
    assert all(color in style for color in vars(DARK).values())
