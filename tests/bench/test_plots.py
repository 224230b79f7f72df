"""Plots of records: colors that say what is ours, quartiles, and texts of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from wideresnet.bench.plots import draw_bars, draw_starts, write_plot
from wideresnet.report.figures import LIGHT

ENV = {"gpu": None, "cpu": "a CPU", "cpu_capability": "AVX2", "num_threads": 2, "torch": "2.11.0+cpu"}


def record(*names: str, problem: str = "") -> dict[str, Any]:
    call_s = {"median": 0.02, "min": 0.01, "quartile1": 0.016, "quartile3": 0.04}
    rows: list[dict[str, Any]] = [{"name": name, "call_s": call_s, "images_per_s": 200.0} for name in names]
    if problem:
        rows.append({"name": "other", "problem": problem})
    case = {"job": "infer", "network": "WRN-16-4", "batch_size": 4, "precision": "fp32", "best_peer": None,
            "contenders": rows}  # fmt: skip
    return {"job": "infer", "env": ENV, "cases": [case]}


def luminance(color: Any) -> float:
    """Source: WCAG 2.2, relative luminance."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_int8_is_in_ours_family_of_colors_and_every_bar_stands_out() -> None:
    (axes,) = draw_bars(record("wideresnet", "wideresnet int8", "timm")).axes
    ours, eight, other = (bar.get_facecolor() for bar in axes.patches)
    assert to_hex(other) == LIGHT.muted
    for color in (ours, eight):
        red, _, blue = to_rgb(color)
        assert blue > 3 * red
    assert ours != eight
    for color in (ours, eight, other):
        assert (luminance(LIGHT.background) + 0.05) / (luminance(color) + 0.05) >= 4.5


def test_a_bar_has_the_quartiles_of_its_rate() -> None:
    (axes,) = draw_bars(record("wideresnet")).axes
    assert np.asarray(axes.lines[-1].get_xdata()).tolist() == [100, 250]  # 4 images in 0.04 and in 0.016 s
    assert axes.get_xlim()[1] > 250
    starts = {
        "job": "start",
        "env": ENV,
        "cases": [
            {
                "network": "WRN-16-4",
                "batch_size": 4,
                "precision": "fp32",
                "starts": [{"name": "cold", "stepped_s": {"median": 5.0, "quartile1": 4.0, "quartile3": 7.0}}],
            }
        ],
    }
    (axes,) = draw_starts(starts).axes
    assert np.asarray(axes.lines[-1].get_xdata()).tolist() == [4, 7]


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d", "a\x00\x1b[31m", "$x^", "two\nlines"])
def test_any_name_and_any_problem_can_be_drawn(text: str, tmp_path: Path) -> None:
    write_plot(record("wideresnet", f"{text}.py:build", problem=text), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.size[0] > 400


def test_nothing_timed_is_drawn_too() -> None:
    (axes,) = draw_bars(record(problem="not installed")).axes
    assert "not installed" in axes.texts[0].get_text()
