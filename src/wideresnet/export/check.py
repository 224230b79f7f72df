"""The comparison of an exported model with the network that it was made from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wideresnet.base.errors import DataError
from wideresnet.engines.int8 import MAX_CHANGE

TOLERANCE = 1e-4
"""Largest difference of a probability in fp32, and of a logit as a share of the largest logit, if that is above 1.
Rounding gives about 1e-6."""

MOST = 0.9
"""Share of images whose logits may change by `MAX_CHANGE` of their norm at most in int8 and bf16: the rule and the
bound of this package's own 8-bit engine. Measured on digits, WRN-16-1: 0.018 by onnxruntime and 0.014 by OpenVINO."""


def compare(ours: Tensor, theirs: Tensor, precision: str) -> dict[str, Any]:
    """Compare logits.

    Args:
        ours: (N, classes), of the network.
        theirs: (N, classes), of the exported model.
        precision: "fp32", "bf16" or "int8", of the exported model.

    Returns:
        Values for JSON: num_images, precision, max_logit_difference, max_probability_difference, top1_agreement_pct,
        logit_change (nine in ten images change by no more, relative to the norm of their logits), and failure: why the
        model fails, or "". A prediction whose best classes are near each other may flip in int8, so that agreement is
        reported and the change of the logits decides.
    """
    ours, theirs = ours.double(), theirs.double()
    logits = float((ours - theirs).abs().max())
    probabilities = float((ours.softmax(1) - theirs.softmax(1)).abs().max())
    change = float(((ours - theirs).norm(dim=1) / ours.norm(dim=1).clamp(min=1e-12)).quantile(MOST))
    scale = max(1.0, float(ours.abs().max()))
    failure = ""
    if precision == "fp32":
        for what, value, bound in (("logits", logits, TOLERANCE * scale), ("probabilities", probabilities, TOLERANCE)):
            if not value <= bound:  # also NaN
                failure = f"{what} differ by {value:.2g} from those of wrn predict, at most {bound:.2g} is rounding"
    elif not change <= MAX_CHANGE:
        fix = "calibrate with images like these, or leave out int8=True" if precision == "int8" else "compute in fp32"
        failure = (
            f"in {precision} the logits of one image in ten change by more than {100 * change:.1f} %, at most "
            f"{100 * MAX_CHANGE:.0f} % is allowed; {fix}"
        )
    return {
        "num_images": len(ours),
        "precision": precision,
        "max_logit_difference": logits,
        "max_probability_difference": probabilities,
        "top1_agreement_pct": 100 * float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
        "logit_change": change,
        "failure": failure,
    }


def require(comparison: dict[str, Any], where: str) -> None:
    """Raise a DataError if a comparison has failed."""
    if comparison["failure"]:
        raise DataError(f"{where}: {comparison['failure']}")
