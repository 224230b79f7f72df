"""A record in words, shared by tables and plots."""

from __future__ import annotations

from typing import Any

from wideresnet.base.format import counted, human_number
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.spec import published as paper

OURS = "wideresnet"
OURS_BF16 = "wideresnet bf16"
OURS_INT8 = "wideresnet int8"
OWN = (OURS, OURS_BF16, OURS_INT8)
"""The names of this package's contenders; each lower precision has its own, so that no ratio mixes precisions."""

START_WAYS = {
    "cold": "wrn train with an empty cache: kernels are compiled, the fastest way is measured",
    "warm": "wrn train again: kernels and measurement are kept",
    "plain": "our network in a plain loop of PyTorch, on images that are there already",
}
"""What `wrn bench start` times."""


def case_title(case: dict[str, Any]) -> str:
    """Name a case: "WRN-16-4, training, batch 128"."""
    job = {"train": "training", "infer": "inference"}[case["job"]]
    return f"{case['network']}, {job}, batch {case['batch_size']}"


def row_of(case: dict[str, Any], name: str) -> dict[str, Any]:
    """Find a contender by its name."""
    return next(row for row in case["contenders"] if row["name"] == name)


def short_name(row: dict[str, Any]) -> str:
    """Name a contender without its module: "authors" for "tools.peers:authors"."""
    return row["name"].rpartition(":")[2]


def verdict(case: dict[str, Any]) -> str:
    """Compare ours with the best other: "1.35 x pytorchcv"; "" if there is no other."""
    if case["best_peer"] is None:
        return ""
    row = row_of(case, case["best_peer"])
    return f"{row['ours_is_faster']['median']:.2f} x {short_name(row)}"


def machine_line(document: dict[str, Any], precision: str | None = None) -> str:
    """Name the machine of a record and the precision of this package's networks: of all cases, or the given one."""
    precisions = dict.fromkeys(case["precision"] for case in document["cases"])
    precision = precision or " and ".join("the fastest precision" if p == "auto" else p for p in precisions)
    return f"{hardware_text(document['env'])}, ours in {precision}, {torch_text(document['env'])}"


def quartiles(spread: dict[str, float], form: str, scale: float = 1.0, between: str = " to ") -> str:
    """Write the quartiles of a spread: "1.21 to 1.40".

    Args:
        spread: as `bench.summary.spread` returns it.
        form: the format of a number, e.g. ".2f".
        scale: factor of the numbers, e.g. 1000 for seconds in ms.
        between: the text between the two.
    """
    return between.join(f"{scale * spread[name]:{form}}" for name in ("quartile1", "quartile3"))


def agreement_line(case: dict[str, Any], row: dict[str, Any]) -> str:
    """Say how often a lower precision of ours answers as fp32 does; "" if that is not known."""
    if "top1_agreement_pct" not in row:
        return ""
    images = counted(case["batch_size"], "image")
    return f"{row['top1_agreement_pct']:.4g} % of its answers on the {images} are those of fp32"


def parts_line(case: dict[str, Any]) -> str:
    """List the parts of a step of ours: "forward 34.1 ms, backward 61.0 ms, ..."."""
    text = ", ".join(f"{name} {human_number(1000 * part['median_s'])} ms" for name, part in case["parts"].items())
    return text + " (each waited for, without a CUDA graph)" * (case["device"] == "cuda")


def errors_of(network: str) -> tuple[float, int] | None:
    """Find the paper's CIFAR-10 test error of a network.

    Returns:
        The error in percent and the number of its table (5 if it is in both 4 and 5); None if it is in neither.
    """
    rows = [row for row in paper.results(network=network, family="cifar") if row.table in (4, 5)]
    return (rows[-1].cifar10_pct, rows[-1].table) if rows and rows[-1].cifar10_pct is not None else None
