"""Where a network looks: class activation maps of a few images."""

from __future__ import annotations

import numpy as np
import torch

from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import Network

IMAGES_AT_ONCE = 16
"""A few at a time: the images are few, and may be large."""


@torch.inference_mode()
def activation_maps(
    network: Network, images: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing, *, device: str = "cpu"
) -> np.ndarray:
    """Compute how much each place of each image speaks for some classes, see `Network.class_maps`.

    Args:
        network: on the device; its mode is restored afterwards.
        images: uint8 (N, H, W, C).
        labels: int64 (N, K), the classes wanted of each image.
        preprocessing: converts a batch of images.
        device: "cpu" or "cuda".

    Returns:
        float32 (N, K, h, w).
    """
    was_training = network.training
    network.eval()
    maps, first = [], 0
    for batch in evaluation_batches(images, preprocessing, batch_size=IMAGES_AT_ONCE, device=device):
        wanted = torch.from_numpy(labels[first : first + len(batch)]).to(device)
        maps.append(network.class_maps(batch, wanted).float().cpu())
        first += len(batch)
    network.train(was_training)
    return torch.cat(maps).numpy()
