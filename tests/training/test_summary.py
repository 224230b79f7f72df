"""The summary before the first step: what is in effect, what was overridden, what was decided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wideresnet.data import load_dataset
from wideresnet.distributed.world import World
from wideresnet.spec.recipe import FIELDS, GROUPS, Recipe
from wideresnet.training import Job, Plan, prepare
from wideresnet.training.summary import summarize

MakeNpz = Callable[..., Path]


def prepared(data: Path, **changes: Any) -> tuple[Job, Plan, Recipe]:
    base = Recipe.flat(network="wrn-10-1", data=str(data), batch_size=16, crop_padding=1, device="cpu")
    job, plan = prepare(base.replace(**changes), load_dataset(data))
    return job, plan, base


def test_a_summary_shows_every_value_in_effect_and_names_what_was_overridden(make_npz: MakeNpz) -> None:
    job, plan, base = prepared(make_npz(), lr=0.05, flip=False)
    summary = summarize(job, plan, base)
    assert summary.title == "WRN-10-1 on own, recipe paper"
    assert {key for values in summary.groups.values() for key in values} == set(FIELDS) - set(GROUPS["what"])
    assert (summary.groups["schedule"]["lr"], summary.groups["feed"]["flip"]) == ("0.05", "off")
    assert summary.groups["machine"]["layout"] == job.execution.layout
    assert summary.overridden == {"lr": ("0.1", "0.05"), "flip": ("on", "off")}
    facts = dict(summary.facts)
    assert facts["data"].startswith("64 training and 24 test images of 8x8, 4 classes")
    assert facts["device"] == f"cpu: {job.execution.describe()}"
    assert facts["steps"] == "800 (4 per epoch)"
    assert "processes" not in facts
    assert summary.notes == job.notes


def test_a_resumed_run_has_nothing_overridden(make_npz: MakeNpz) -> None:
    job, plan, _ = prepared(make_npz(), lr=0.05)
    assert summarize(job, plan, None).overridden == {}


def test_as_plain_text_a_summary_is_one_line_for_each_group_fact_and_note(make_npz: MakeNpz) -> None:
    job, plan, base = prepared(make_npz(), limit=40)
    summary = summarize(job, plan, base)
    lines = summary.lines()
    assert lines[0] == summary.title
    assert len(lines) == 1 + len(summary.groups) + len(summary.facts) + len(summary.notes)
    assert "note: trained on 40 of 64 images (limit)" in lines


@pytest.mark.parametrize(
    ("size", "rule", "words"),
    [
        (2, "global", "16 images per step: 2 processes x 8, lr 0.1 (rule global)"),
        (3, "global", "16 images per step: 3 processes of 6, 5, 5, lr 0.1 (rule global)"),
        (1, "linear", ""),
    ],
)
def test_several_processes_are_told_their_shares(make_npz: MakeNpz, size: int, rule: str, words: str) -> None:
    job, plan, base = prepared(make_npz(), batch_rule=rule)
    together = Job(**{**vars(job), "world": World(size=size)})
    assert dict(summarize(together, plan, base).facts).get("processes", "") == words
