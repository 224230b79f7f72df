"""What is measured: a network, a batch and the settings of the machine, with the data that all contenders get."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wideresnet.bench.trained import Trained, read_trained
from wideresnet.data.feeds.resident import Feed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import Cost, Network, cost, create
from wideresnet.spec.names import NetworkName, parse
from wideresnet.spec.published import USUAL_DATA
from wideresnet.spec.recipe import Recipe
from wideresnet.training.setup import build_network

NUM_CALIBRATION_IMAGES = 8
"""Images of noise that a network with random weights is quantized by. Its speed does not depend on them."""

FEED_BYTES = 64 * 2**20
"""Size of the synthetic training set, uint8: more than fits into a processor's caches, as for a real set. This
package's choice."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        job: "train" for a whole step (loss, backward pass, update), "infer" for a forward pass.
        network: canonical name.
        family: "cifar" (32x32 images, 10 classes) or "imagenet" (224x224, 1000 classes).
        batch_size: images per step.
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16", of this package's network, and of others that run carefully.
        num_threads: threads of the CPU that every contender starts with.
        weights: of a trained network, as for `read_weights`; None for random ones.
        data: where its images come from; None with random weights, whose images are noise.
    """

    job: str
    network: str
    family: str
    batch_size: int
    device: str
    precision: str
    num_threads: int
    weights: str | None = None
    data: str | None = None

    @property
    def trained(self) -> Trained | None:
        """The trained network and its images, read once; None with random weights."""
        return None if self.weights is None or self.data is None else read_trained(self.weights, self.data)

    @property
    def name(self) -> NetworkName:
        """The parsed name of the network."""
        return parse(self.network, self.family)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        trained = self.trained
        return trained.weights.network.num_classes if trained else USUAL_DATA[self.family][0]

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        trained = self.trained
        return trained.weights.network.in_channels if trained else 3

    @property
    def size_px(self) -> int:
        """Side of the images, pixels."""
        trained = self.trained
        return trained.weights.input_size[0] if trained else USUAL_DATA[self.family][1]

    @property
    def preprocessing(self) -> Preprocessing:
        """From decoded images to what the network takes."""
        trained = self.trained
        return trained.weights.preprocessing if trained else Preprocessing("mean_std", (127.5,) * 3, (64.0,) * 3)

    @cached_property
    def cost(self) -> Cost:
        """Parameters and operations, from shapes alone."""
        with torch.device("meta"):
            network = create(self.network, self.num_classes, family=self.family, in_channels=self.in_channels)
        return cost(network, self.size_px, self.batch_size)

    @property
    def flops(self) -> int:
        """Operations per call: 2 x multiply-accumulates of direct convolution; three times as many for training."""
        per_image = self.cost.training_flops if self.job == "train" else self.cost.flops
        return per_image * self.batch_size

    @property
    def recipe(self) -> Recipe:
        """The paper's training step, on this machine."""
        return Recipe.flat(
            network=self.network,
            family=self.family,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
        )

    def build(self) -> Network:
        """Build the network: the trained one, or one with random weights, which are the same in every call."""
        trained = self.trained
        return copy.deepcopy(trained.weights.network) if trained else build_network(self.recipe, self.num_classes, 3)[0]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Make preprocessed images, float32 (B, C, H, W) contiguous, and labels, int64 (B,), on the device.

        They are the same in every call: noise, or test images of the trained network, whose labels are not its own.
        """
        generator, trained = torch.Generator().manual_seed(0), self.trained
        if trained:
            images = trained.prepare(self._pixels(self.batch_size)).contiguous()
        else:
            images = torch.randn(self.batch_size, 3, self.size_px, self.size_px, generator=generator)
        labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        return images.to(self.device), labels.to(self.device)

    def calibration(self) -> Tensor:
        """Make images to quantize by, float32 (N, C, H, W) on the CPU: training images, or noise."""
        trained = self.trained
        if trained:
            return trained.prepare(trained.training)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(NUM_CALIBRATION_IMAGES, 3, self.size_px, self.size_px, generator=generator)

    def feed(self, num_bytes: int = FEED_BYTES) -> Feed:
        """Make a synthetic training set of about `num_bytes`, augmented as the recipe says."""
        images = self._noise(max(2 * self.batch_size, num_bytes // (3 * self.size_px**2)))
        recipe = self.recipe
        return Feed(
            images,
            np.arange(len(images)) % self.num_classes,
            self.preprocessing,
            batch_size=self.batch_size,
            padding=recipe.feed.crop_padding,
            padding_mode=recipe.feed.padding_mode,
            flip=recipe.feed.flip,
            device=self.device,
        )

    def pixels(self) -> Tensor:
        """Make a batch as a decoder returns it: uint8 (B, H, W, C), on the device."""
        return torch.from_numpy(self._pixels(self.batch_size)).to(self.device)

    def _pixels(self, num_images: int) -> np.ndarray:
        """Images of the trained network, over and over if there are too few; or noise."""
        trained = self.trained
        return trained.test[np.arange(num_images) % len(trained.test)] if trained else self._noise(num_images)

    def _noise(self, num_images: int) -> np.ndarray:
        shape = (num_images, self.size_px, self.size_px, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return the fields; `Case(**fields)` is the inverse."""
        return asdict(self)
