"""What the paper reports on COCO, and what it does not."""

from __future__ import annotations

from typing import NamedTuple


class CocoResult(NamedTuple):
    """A published result on COCO.

    Attributes:
        network: the backbone.
        ap_pct: mAP over IoU 0.50 to 0.95, percent.
        split: what it was measured on.
        detector: how it was obtained.
        source: where it is.
    """

    network: str
    ap_pct: float
    split: str
    detector: str
    source: str


PAPER = "MultiPathNet, LocNet-like localization, AttractioNet proposals"

COCO_RESULTS = (
    CocoResult("WRN-34-2", 35.2, "test-std", PAPER, "Wide Residual Networks, Table 9"),
    CocoResult("WRN-34-2", 36.0, "val5k", PAPER, "the authors' README"),
    CocoResult("ResNet-50", 37.0, "val2017", "torchvision's Faster R-CNN, 26 epochs", "torchvision's documentation"),
    CocoResult("ResNet-50", 36.4, "val2017", "torchvision's RetinaNet, 26 epochs", "torchvision's documentation"),
)
"""test-std and val5k are of COCO 2014; val2017 has 5,000 images, those called minival. The detectors differ."""
