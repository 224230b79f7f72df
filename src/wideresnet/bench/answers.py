"""What contenders with the same weights answer: how near to ours in fp32, next to how fast."""

from __future__ import annotations

from collections.abc import Sequence

from wideresnet.bench.case import Case
from wideresnet.bench.measure import Lane, attempt
from wideresnet.bench.peers import PeerError
from wideresnet.bench.words import ENGINES
from wideresnet.export.check import compare


def compare_answers(case: Case, lanes: Sequence[Lane]) -> None:
    """Compare each contender that has our weights with ours in fp32, and note the result in its lane.

    In fp32, the logits of the batch that was timed: an engine whose logits differ by more than rounding has computed
    something else, which is a problem. In a lower precision, the top-1 answers on test images, if the network is
    trained; the answers of random weights say nothing.

    Args:
        case: what was timed, on ours in fp32 first.
        lanes: of all contenders, this package's own first.
    """
    exact = lanes[0].contender.logits
    if case.job != "infer" or exact is None or lanes[0].contender.precision != "fp32":
        return
    trained, batch = case.trained, case.batch()[0].cpu()
    lower = [lane for lane in lanes if lane.contender.precision != "fp32"]
    test = trained.prepare(trained.test) if trained and any(not lane.problem for lane in lower) else None
    ours, ours_of_test = exact(batch), None if test is None else exact(test)

    def compare_lane(lane: Lane) -> None:
        logits = lane.contender.logits
        if logits is None:
            return
        if lane.contender.precision == "fp32":
            found = compare(ours, logits(batch), "fp32")
            if found["failure"] and lane.contender.name in ENGINES:
                raise PeerError(found["failure"])
            lane.answers = {"max_logit_difference": float(f"{found['max_logit_difference']:.3g}")}
        elif test is not None and ours_of_test is not None:
            found = compare(ours_of_test, logits(test), lane.contender.precision)
            agreement = round(found["top1_agreement_pct"], 2)
            lane.answers = {"top1_agreement_pct": agreement, "num_test_images": len(test)}

    for lane in lanes[1:]:
        if not lane.problem:
            attempt(lane, lambda lane=lane: compare_lane(lane))
