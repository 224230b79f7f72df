"""torchvision's Faster R-CNN and RetinaNet over the stages of any of our ImageNet networks.

A state dict of torchvision's own detector loads unchanged if the backbone is a network that torchvision has, too.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from wideresnet.base.errors import UsageError
from wideresnet.networks import Network, create
from wideresnet.spec.names import parse

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of anchors. Source: torchvision's detectors; Ren et al. 2015."""

NUM_LEVELS = 5
"""P2 to P6 of Faster R-CNN, P3 to P7 of RetinaNet. Source: Lin et al. 2017a and b."""

OCTAVES = (0, 1 / 3, 2 / 3)
"""RetinaNet has three sizes of anchors per level. Source: Lin et al. 2017b, section 4."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in 0..1. Source: torchvision's detectors."""


class Pyramid(nn.Module):
    """A backbone whose stages C2 to C5 (C3 to C5 for RetinaNet) feed a feature pyramid.

    Attributes:
        body: the network, without its classifier.
        out_channels: of each level.
        precision: "fp32" or "bf16". The maps are float32 in both: torchvision computes boxes in the type of what its
            heads return, and a coordinate of 1,000 px has steps of 4 px in bfloat16.
    """

    precision = "fp32"

    def __init__(self, body: Network, *, first: int, channels: int) -> None:
        super().__init__()
        widths = [group[-1] for group in body.name.group_widths]
        self.body, self.out_channels = body, channels
        self.stages = [f"conv{number}" for number in range(first, 2 + len(widths))]
        body.fc = nn.Identity()  # type: ignore[assignment]  # nothing to classify, and no parameter without a gradient
        extra = LastLevelMaxPool() if first == 2 else LastLevelP6P7(channels, channels)
        self.fpn = FeaturePyramidNetwork(widths[first - 2 :], channels, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        is_bf16 = self.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16) if is_bf16 else nullcontext():
            maps = self.compute(x)
        return {name: each.float() for name, each in maps.items()}

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the maps in the type that autocast chooses."""
        stages = self.body.features(x)
        # of pre-activation networks, the last stage has a normalization and an activation after its sum
        last = self.stages[-1]
        maps = {name: self.body.finish(stages[name]) if name == last else stages[name] for name in self.stages}
        return self.fpn({str(place): maps[name] for place, name in enumerate(self.stages)})


class _Prepared(GeneralizedRCNNTransform):
    """Normalizes and pads; the feed has scaled the images."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def build_detector(
    network: str,
    num_classes: int,
    *,
    detector: str = "faster_rcnn",
    norm: str = "batch",
    fpn_channels: int = 256,
    anchor_size: int = 32,
    proposals: int = 1000,
    regions: int = 512,
    min_size: int = 800,
    max_size: int = 1333,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    options: dict[str, Any] | None = None,
) -> FasterRCNN | RetinaNet:
    """Build a detector. Its initial weights are a function of PyTorch's seed.

    Args:
        network: name of one of ImageNet's networks, such as "WRN-34-2".
        num_classes: kinds of objects, without the background.
        detector, fpn_channels, anchor_size, proposals, regions, min_size, max_size: as in `DetectionRecipe`.
        norm: "frozen", "batch" or "group".
        mean, std: per channel, of pixels in 0..1.
        options: other options of the backbone, as for `create`.

    Returns:
        The detector in training mode. Its classes are numbered from 1; 0 is the background.

    Raises:
        UsageError: the network is not one of ImageNet's.
    """
    name = parse(network, "imagenet")
    if name.family != "imagenet":
        raise UsageError(f"backbone={network}: a backbone must be one of ImageNet's networks, such as WRN-34-2")
    body = create(name, 1, **{**(options or {}), "norm": "group" if norm == "group" else "batch"})
    if norm == "frozen":
        freeze_norms(body)
    first = 2 if detector == "faster_rcnn" else 3
    backbone = Pyramid(body, first=first, channels=fpn_channels)
    sizes = [anchor_size * 2**level for level in range(NUM_LEVELS)]
    common: dict[str, Any] = {
        "min_size": min_size, "max_size": max_size, "image_mean": list(mean), "image_std": list(std),
    }  # fmt: skip
    ratios = (RATIOS,) * NUM_LEVELS
    if detector == "faster_rcnn":
        anchors = AnchorGenerator(tuple((size,) for size in sizes), ratios)
        model: FasterRCNN | RetinaNet = FasterRCNN(
            backbone, num_classes + 1, rpn_anchor_generator=anchors, rpn_head=RPNHead(fpn_channels, len(RATIOS)),
            rpn_pre_nms_top_n_train=2 * proposals, rpn_post_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=proposals, rpn_post_nms_top_n_test=proposals,
            box_batch_size_per_image=regions, **common,
        )  # fmt: skip
    else:
        anchors = AnchorGenerator(tuple(tuple(int(size * 2**octave) for octave in OCTAVES) for size in sizes), ratios)
        model = RetinaNet(backbone, num_classes + 1, anchor_generator=anchors, **common)
    model.transform = _Prepared(min_size, max_size, list(mean), list(std))
    return model


def freeze_norms(body: nn.Module) -> None:
    """Replace each batch normalization by one with fixed statistics, scale and shift, of the same names."""
    for module in list(body.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                state = child.state_dict()
                state.pop("num_batches_tracked", None)
                frozen.load_state_dict(state)
                setattr(module, name, frozen)


def freeze_stages(body: Network, num_stages: int) -> None:
    """Exclude the parameters of the first stages from training, the stem being the first."""
    stages = [name for name in body.stage_modules() if name.startswith("conv")]
    for name in stages[:num_stages]:
        for module in body.stage_modules()[name]:
            module.requires_grad_(False)


def body_of(model: nn.Module) -> Network:
    """Return the backbone of a detector."""
    return model.backbone.body  # type: ignore[union-attr, return-value]


def set_precision(model: nn.Module, precision: str) -> None:
    """Let a detector compute its backbone and pyramid, most of its work, in "fp32" or "bf16"."""
    model.backbone.precision = precision  # type: ignore[union-attr]


def scaled_size(height: int, width: int, min_size: float, max_size: float) -> tuple[int, int]:
    """Return (height, width) of an image whose shorter side is `min_size`, unless the longer exceeds `max_size`.

    Source: torchvision's GeneralizedRCNNTransform.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_input(pixels: Tensor, device: str) -> Tensor:
    """Return an image as a detector takes it: uint8 (3, H, W) -> float32 in 0..1 on the device."""
    return pixels.to(device, non_blocking=True).to(torch.float32) / 255
