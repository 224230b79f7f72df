"""From times to a record: medians with their spread, rates, and ratios round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wideresnet.bench.case import Case
from wideresnet.bench.measure import Lane
from wideresnet.bench.peers import CAREFUL, PLAIN, peer_version
from wideresnet.bench.words import OURS, OURS_INT8
from wideresnet.report.statistics import summarize


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


def case_document(case: Case, lanes: Sequence[Lane], matmul: Lane, matmul_flops: int) -> dict[str, Any]:
    """Assemble what the record holds about a case.

    Args:
        case: what was measured.
        lanes: of the contenders, this package's own first.
        matmul: the lane of the matrix product, with the same rounds.
        matmul_flops: operations per matrix product.

    Returns:
        Values for JSON: the case, its cost, the rate of the machine, all contenders with all their times, the best of
        the others, how many times as fast our int8 network is as that (None if either is missing), and the parts of a
        step of ours. A contender that was not timed has `problem` instead of times.
    """
    ours = lanes[0]
    assert ours.contender.name == OURS
    matmul_rate = matmul_flops / summarize(matmul.seconds).median
    contenders = [_contender_document(lane, ours, case, matmul_rate) for lane in lanes]
    best = best_peer(contenders)
    seconds = {lane.contender.name: lane.seconds for lane in lanes if not lane.problem}
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
            "flops_per_s": round(matmul_rate),
        },
        "contenders": contenders,
        "best_peer": best,
        "int8_is_faster": ratio(seconds[OURS_INT8], seconds[best]) if best and OURS_INT8 in seconds else None,
        "parts": _parts_document(ours.parts),
    }


def best_peer(contenders: Sequence[dict[str, Any]]) -> str | None:
    """Find the fastest other implementation as its users run it, or the fastest careful one if there is no other.

    Returns:
        Its name; None if no other implementation was timed.
    """
    peers = [row for row in contenders if row["name"] not in (OURS, OURS_INT8, PLAIN) and "problem" not in row]
    usual = [row for row in peers if not row["name"].endswith(CAREFUL)]
    return min(usual or peers, key=lambda row: row["call_s"]["median"])["name"] if peers else None


def _contender_document(lane: Lane, ours: Lane, case: Case, matmul_rate: float) -> dict[str, Any]:
    name = lane.contender.name
    row: dict[str, Any] = {"name": name}
    if version := peer_version(name):
        row["version"] = version
    if lane.problem:
        return {**row, "problem": lane.problem}
    call = spread(lane.seconds)
    rate = case.flops / call["median"]
    row |= {
        "configuration": lane.contender.configuration,
        "num_threads": lane.contender.num_threads,
        "calls_per_round": lane.num_calls,
        "first_call_s": round(lane.first_s, 6),
        "seconds": _rounded(lane.seconds),
        "call_s": {key: round(value, 9) for key, value in call.items()},
        "images_per_s": round(case.batch_size / call["median"], 2),
        "flops_per_s": round(rate),
        "share_of_matmul": round(rate / matmul_rate, 4),
        "peak_memory_mib": None if lane.peak_memory_mib is None else round(lane.peak_memory_mib, 1),
    }
    if lane is not ours:
        row["ours_is_faster"] = {key: round(value, 4) for key, value in ratio(ours.seconds, lane.seconds).items()}
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
