"""A record in words, shared by tables and plots."""

from __future__ import annotations

from typing import Any

from wideresnet.base.format import human_number
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.spec import published as paper

OURS = "wideresnet"
OURS_BF16 = "wideresnet bf16"
OURS_INT8 = "wideresnet int8"
OWN = (OURS, OURS_BF16, OURS_INT8)
"""The names of this package's contenders; each lower precision has its own, so that no ratio mixes precisions."""

ENGINES = {
    "onnxruntime": "fp32",
    "onnxruntime-int8": "int8",
    "openvino": "fp32",
    "openvino-bf16": "bf16",
    "openvino-int8": "int8",
    "ncnn": "fp32",
    "mnn": "fp32",
    "opencv": "fp32",
}
"""Inference engines that ours is compared with, and the precision of each: they run our weights."""

START_WAYS = {
    "cold": "wrn train with an empty cache: kernels are compiled, the fastest way is measured",
    "warm": "wrn train again: kernels and measurement are kept",
    "plain": "our network in a plain loop of PyTorch, on images that are there already",
}
"""What `wrn bench start` times."""


def case_title(case: dict[str, Any]) -> str:
    """Name a case: "WRN-16-4, training, batch 128"."""
    job = {"train": "training", "infer": "inference"}[case["job"]]
    trained = f" ({case['weights']} on {case['data']})" if case.get("weights") else ""
    return f"{case['network']}{trained}, {job}, batch {case['batch_size']}"


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


def has_answers(case: dict[str, Any]) -> bool:
    """Tell whether answers were compared, so that tables have a column for them."""
    return any(name in row for row in case["contenders"] for name in ("max_logit_difference", "num_test_images"))


def answers_text(row: dict[str, Any]) -> str:
    """Say how near to ours in fp32 a contender with our weights is: "99.4 %" of the answers, or "4e-06" of a logit."""
    if "num_test_images" in row:
        return f"{row['top1_agreement_pct']:.4g} %"
    return f"± {row['max_logit_difference']:.0e}" if "max_logit_difference" in row else ""


def answers_line(case: dict[str, Any]) -> str:
    """Explain the column of `answers_text`, and say what it lacks; "" if there is nothing to say, as in old records."""
    if case["job"] != "infer" or "fastest" not in case:
        return ""
    sizes = [row["num_test_images"] for row in case["contenders"] if "num_test_images" in row]
    lower = any(precision != "fp32" for precision in case["fastest"])
    texts = []
    if any("max_logit_difference" in row for row in case["contenders"]):
        texts.append("in fp32, the largest difference of a logit of this batch")
    if sizes:
        texts.append(f"in lower precisions, the same class on {sizes[0]:,} test images")
    elif lower and case["weights"] is None:
        texts.append("lower precisions are not compared, since random weights answer nothing: name trained weights")
    return f"answers next to ours in fp32: {'; '.join(texts)}" if texts else ""


def fastest_lines(case: dict[str, Any]) -> list[str]:
    """Name the fastest of all in each precision, ours or not: "int8: openvino-int8, 1.21 x wideresnet int8".

    Records from before engines were compared have none.
    """
    lines = []
    for precision, name in case.get("fastest", {}).items():
        rows = [row for row in case["contenders"] if row.get("precision") == precision]
        ratios = {row["name"]: row["ours_is_faster"]["median"] for row in rows if "ours_is_faster" in row}
        ours = next((row["name"] for row in rows if row["name"] in OWN), "")
        line = f"{precision}: {short_name(row_of(case, name))}"
        if name in ratios:
            line += f", {1 / ratios[name]:.2f} x {ours}"
        elif ratios:
            second = min(ratios, key=lambda other: ratios[other])
            line += f", {ratios[second]:.2f} x {short_name(row_of(case, second))}"
        elif len(rows) == 1:
            line += ", alone"
        lines.append(line)
    return lines


def parts_line(case: dict[str, Any]) -> str:
    """List the parts of a step of ours: "forward 34.1 ms, backward 61.0 ms, ..."."""
    names = {"optimiser": "optimizer"}  # as committed records spell it
    text = ", ".join(
        f"{names.get(name, name)} {human_number(1000 * part['median_s'])} ms" for name, part in case["parts"].items()
    )
    return text + " (each waited for, without a CUDA graph)" * (case["device"] == "cuda")


def errors_of(network: str) -> tuple[float, int] | None:
    """Find the paper's CIFAR-10 test error of a network.

    Returns:
        The error in percent and the number of its table (5 if it is in both 4 and 5); None if it is in neither.
    """
    rows = [row for row in paper.results(network=network, family="cifar") if row.table in (4, 5)]
    return (rows[-1].cifar10_pct, rows[-1].table) if rows and rows[-1].cifar10_pct is not None else None
