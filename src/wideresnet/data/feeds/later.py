"""What is done to whole batches after the crop, on their device: PCA lighting, random erasing, mixup and cutmix.

Each draw is a pure function of (seed, epoch, place in the epoch's order) or, for mixing, of (seed, epoch, batch).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.base.seeding import seed_of

EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Of the colors of ImageNet's pixels, 0..1; a vector is a column. Source: fb.resnet.torch, datasets/imagenet.lua."""

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 3.3)
"""Share of the image, and height by width. Source: torchvision's `RandomErasing`; Zhong et al. 2020, section 5.1."""


@dataclass(frozen=True)
class Later:
    """What is done to whole batches.

    Attributes:
        lighting: standard deviation of the components; 0 for none.
        erasing: probability of a rectangle; 0 for none.
        mixup, cutmix: alpha of each; 0 for none.
        num_classes: for mixed labels.
    """

    lighting: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    num_classes: int = 0

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return bool(self.mixup or self.cutmix)

    def check(self, channels: int) -> None:
        """Refuse images that it is not for.

        Raises:
            UsageError: lighting of gray images.
        """
        if self.lighting and channels != 3:
            raise UsageError(
                f"pca_lighting={self.lighting:g}: changes colors, these images have {channels} channel"
                f"{'s' * (channels > 1)}; use pca_lighting=0"
            )

    def drawn(self, seed: int, epoch: int, num_images: int) -> Drawn:
        """Draw for an epoch."""
        return Drawn(self, seed, epoch, num_images)


class Drawn:
    """The draws of one epoch."""

    def __init__(self, how: Later, seed: int, epoch: int, num_images: int) -> None:
        self.how, self.seed, self.epoch = how, seed, epoch
        self.shifts = self.erased = None
        if how.lighting:
            self.shifts = draw_lighting(seed, epoch, num_images, how.lighting)
        if how.erasing:
            generator = torch.Generator().manual_seed(seed_of(seed, "erasing", epoch))
            self.erased = torch.rand(num_images, generator=generator) < how.erasing

    def light(self, crops: Tensor, part: slice | Tensor) -> Tensor:
        """Add lighting to uint8 (B, H, W, 3); without it return the batch itself."""
        if self.shifts is None:
            return crops
        return crops.float() + self.shifts[part].to(crops.device)[:, None, None, :]

    def erase(self, pictures: Tensor, part: slice | Tensor) -> Tensor:
        """Set rectangles of some of the images (B, C, H, W) to 0, in place."""
        if self.erased is None:
            return pictures
        from torchvision.transforms import RandomErasing

        places = torch.arange(len(self.erased))[part]
        for row in self.erased[part].nonzero().flatten().tolist():
            with _seeded(self.seed, "erasing", self.epoch, int(places[row])):
                top, left, height, width, _ = RandomErasing.get_params(pictures[row], ERASED_AREA, ERASED_ASPECT, [0.0])
            if (height, width) != pictures.shape[-2:]:  # torchvision found no rectangle that fits
                pictures[row, :, top : top + height, left : left + width] = 0
        return pictures

    def mix(self, batch: int, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images, the first of which is only there to be mixed with the second; without mixing return them all."""
        if not self.how.mixes:
            return pictures, labels
        with _seeded(self.seed, "mix", self.epoch, batch):
            mixed, soft = _mixing(self.how)(pictures, labels)
        return mixed[1:].contiguous(memory_format=torch.channels_last), soft[1:]


def draw_lighting(seed: int, epoch: int, num_images: int, std: float) -> Tensor:
    """Draw what is added to each image's red, green and blue.

    Returns:
        float32 (N, 3), gray levels of 0..255.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "lighting", epoch))
    weights = std * torch.randn(num_images, 3, generator=generator)
    return 255 * (weights * torch.tensor(EIGENVALUES)) @ torch.tensor(EIGENVECTORS).T


@functools.lru_cache(maxsize=4)
def _mixing(how: Later) -> Any:
    """Return torchvision's transform of a batch: the one that is asked for, or one of both."""
    from torchvision.transforms import v2

    choices = [
        kind(alpha=alpha, num_classes=how.num_classes)
        for kind, alpha in ((v2.MixUp, how.mixup), (v2.CutMix, how.cutmix))
        if alpha
    ]
    return v2.RandomChoice(choices) if len(choices) > 1 else choices[0]


@contextmanager
def _seeded(*parts: int | str) -> Iterator[None]:
    """Let what draws from PyTorch's global generator draw by a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))
        yield


def hard_labels(labels: Tensor) -> Tensor:
    """Return int64 (B,): the labels, or of mixed ones (B, classes) each image's largest."""
    return labels if labels.ndim == 1 else labels.argmax(1)
