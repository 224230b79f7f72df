"""From times to a record: medians with their spread, rates, and ratios round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wideresnet.base.format import human_number
from wideresnet.bench.case import Case
from wideresnet.bench.measure import Lane
from wideresnet.bench.peers import CAREFUL, PLAIN, peer_version
from wideresnet.bench.words import OURS, OWN
from wideresnet.report.statistics import summarize

PARTS_BESIDE = ("loading and augmentation", "preprocessing")
"""The parts of a step that a contender's call leaves out."""

MAX_CONTRADICTION = 0.1
"""The parts of a call must add up to its time within this share. Own records: 0.032 at most on machines with a load
below 2.1, 0.03 to 0.45 with one of 4.9."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Summarize times or ratios for a record: median, minimum and quartiles."""
    over = summarize(values)
    return {"median": over.median, "min": over.min, "quartile1": over.quartile1, "quartile3": over.quartile3}


def ratio(ours_s: Sequence[float], other_s: Sequence[float]) -> dict[str, float]:
    """Summarize how many times as fast ours is: in each round, the other's time divided by ours.

    Whatever slows the machine down for some seconds slows both times of a round, so the ratio stays; the two medians
    over all rounds could be affected differently.

    Args:
        ours_s: for each round, seconds of one call of ours.
        other_s: likewise of the other.
    """
    return spread([other / ours for ours, other in zip(ours_s, other_s, strict=True)])


def case_document(case: Case, lanes: Sequence[Lane], products: Mapping[str, Lane], flops: int) -> dict[str, Any]:
    """Assemble what the record holds about a case.

    Args:
        case: what was measured.
        lanes: of the contenders, this package's own first.
        products: precision -> the lane of the matrix product in it, with the same rounds.
        flops: operations per matrix product.

    Returns:
        Values for JSON: the case, its cost, the rate of the machine, all contenders with all their times, the best of
        the others in the precision of ours, the fastest of all in each precision, the parts of a step of ours, and
        warnings about the measurement. A contender that was not timed has `problem` instead of times. How many times as
        fast ours is is only told of contenders in equal precision. What `compare_answers` found is in their rows.
    """
    ours, matmul = lanes[0], products[case.precision]
    assert ours.contender.name == OURS
    rates = {precision: flops / summarize(lane.seconds).median for precision, lane in products.items()}
    owns = {lane.contender.precision: lane for lane in lanes if lane.contender.name in OWN and not lane.problem}
    contenders = [_contender_document(lane, owns, case, rates) for lane in lanes]
    return {
        **case.to_json(),
        "size_px": case.size_px,
        "num_classes": case.num_classes,
        "params": case.cost.params,
        "flops": case.flops,
        "num_rounds": len(ours.seconds),
        "matmul": {
            "what": matmul.contender.configuration,
            "seconds": _rounded(matmul.seconds),
            "flops_per_s": round(rates[case.precision]),
        },
        "contenders": contenders,
        "best_peer": best_peer(contenders),
        "fastest": fastest(contenders),
        "parts": _parts_document(ours.parts),
        "warnings": [warning] if case.device == "cpu" and (warning := contradiction(ours)) else [],
    }


def best_peer(contenders: Sequence[dict[str, Any]]) -> str | None:
    """Find the fastest other implementation as its users run it, or the fastest careful one if there is no other.

    Args:
        contenders: rows of a record, this package's own first.

    Returns:
        Its name; None if no other implementation was timed in the precision of ours.
    """
    precision = contenders[0].get("precision")
    peers = [
        row
        for row in contenders
        if row["name"] not in (*OWN, PLAIN) and "problem" not in row and row.get("precision") == precision
    ]
    usual = [row for row in peers if not row["name"].endswith(CAREFUL)]
    return min(usual or peers, key=lambda row: row["call_s"]["median"])["name"] if peers else None


def fastest(contenders: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Find the fastest of all in each precision, ours or not, by the reported ratios to ours.

    Args:
        contenders: rows of a record.

    Returns:
        Precision -> name, of the precisions that were timed.
    """

    def relative_s(row: dict[str, Any]) -> tuple[float, float]:
        times_ours = 1.0 if row["name"] in OWN else row.get("ours_is_faster", {"median": 1.0})["median"]
        return times_ours, row["call_s"]["median"]

    by_precision: dict[str, list[dict[str, Any]]] = {}
    for row in contenders:
        if "problem" not in row:
            by_precision.setdefault(row["precision"], []).append(row)
    return {precision: min(rows, key=relative_s)["name"] for precision, rows in by_precision.items()}


def contradiction(lane: Lane) -> str:
    """Say that the parts of a call on a CPU do not add up to the whole, as on a busy machine; "" if they do.

    On a GPU they never do: each part is launched kernel by kernel and waited for, and the whole is a CUDA graph.
    """
    whole_s = summarize(lane.seconds).median
    parts_s = summarize(
        sum(seconds for name, seconds in parts.items() if name not in PARTS_BESIDE) for parts in lane.parts
    ).median
    if abs(parts_s - whole_s) <= MAX_CONTRADICTION * whole_s:
        return ""
    pieces, whole = human_number(1000 * parts_s), human_number(1000 * whole_s)
    return (
        f"the pieces of a step add up to {pieces} ms, but the whole took {whole} ms: other programs disturbed the "
        "measurement; measure again on a quiet machine"
    )


def _contender_document(
    lane: Lane, owns: Mapping[str, Lane], case: Case, matmul_rates: Mapping[str, float]
) -> dict[str, Any]:
    name, precision = lane.contender.name, lane.contender.precision
    row: dict[str, Any] = {"name": name}
    if version := peer_version(name):
        row["version"] = version
    if lane.problem:
        return {**row, "problem": lane.problem}
    call = spread(lane.seconds)
    rate = case.flops / call["median"]
    row |= {
        "configuration": lane.contender.configuration,
        "precision": precision,
        "notes": list(lane.contender.notes),
        "num_threads": lane.contender.num_threads,
        "calls_per_round": lane.num_calls,
        "first_call_s": round(lane.first_s, 6),
        "seconds": _rounded(lane.seconds),
        "call_s": {key: round(value, 9) for key, value in call.items()},
        "images_per_s": round(case.batch_size / call["median"], 2),
        "flops_per_s": round(rate),
        "share_of_matmul": round(rate / matmul_rates.get(precision, matmul_rates[case.precision]), 4),
        "peak_memory_mib": None if lane.peak_memory_mib is None else round(lane.peak_memory_mib, 1),
    }
    row |= lane.answers
    if name not in OWN and precision in owns:
        faster = ratio(owns[precision].seconds, lane.seconds)
        row["ours_is_faster"] = {key: round(value, 4) for key, value in faster.items()}
    return row


def _parts_document(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The median seconds of each part of a step, and all of them."""
    return {
        name: {"median_s": round(summarize(part[name] for part in rounds).median, 9),
               "seconds": _rounded([part[name] for part in rounds])}
        for name in rounds[0]
    }  # fmt: skip


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(value, 9) for value in seconds]
