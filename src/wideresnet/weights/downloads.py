"""Trained weights of ImageNet networks that torchvision downloads."""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

from safetensors.torch import save
from torch import Tensor

from wideresnet.base import progress
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.spec.files import digest
from wideresnet.spec.names import NetworkName
from wideresnet.weights.foreign import Foreign
from wideresnet.weights.pretrained import TORCHVISION


def torchvision_name(name: NetworkName) -> str | None:
    """Return what an ImageNet network is called in torchvision and timm; None for other networks."""
    if name.family != "imagenet" or name.kind == "preact":
        return None
    if name.kind == "resnext":
        return f"resnext{name.depth}_{name.cardinality}x{name.base_width}d"
    if name.width == 1:
        return f"resnet{name.depth}"
    return f"wide_resnet{name.depth}_{name.width:g}" if name.bottleneck else None


def download(name: NetworkName) -> Foreign:
    """Return the newest weights that torchvision has for a network; they are downloaded once and kept by torch.hub.

    Raises:
        UsageError: torchvision has none.
        WRNError: they cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    there = torchvision_name(name)
    try:
        weights: Any = get_model_weights(there or "").DEFAULT  # type: ignore[attr-defined]
    except (ValueError, AttributeError):
        raise UsageError(
            f"init_from={TORCHVISION}: it has no weights for {name}; use a network such as ResNet-50 or "
            "WRN-50-2-bottleneck, or name other weights"
        ) from None
    try:
        with progress.status(f"downloading {weights.url}"):
            tensors: dict[str, Tensor] = dict(
                weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
            )
    except (OSError, URLError, RuntimeError) as error:
        raise WRNError(
            f"init_from={TORCHVISION}: {weights.url} cannot be downloaded ({' '.join(str(error).split())}); connect "
            "to the network, or download that file elsewhere and give its path as init_from="
        ) from None
    preset = weights.transforms()
    mean, std = (tuple(255 * float(value) for value in values) for values in (preset.mean, preset.std))
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    return Foreign(tensors, digest(content), mean, std, (f"torchvision's weights are {weights}",))
