"""Structure and cost of a network, without running it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from wideresnet.networks.build import create
from wideresnet.networks.cost import cost
from wideresnet.spec import published as paper
from wideresnet.spec.names import parse


def describe(
    name: str,
    *,
    num_classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    batch_size: int = 128,
    family: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Describe a network: its structure, its cost and what the depth in its name counts. Nothing is computed.

    Args:
        name: for example `WRN-28-10`.
        num_classes: outputs; None for the paper's: 10 at 32x32, 1000 at ImageNet size.
        input_size: side, or (height, width), of the images, px; None for 32 or 224.
        in_channels: channels of the images.
        batch_size: images in the training batch for `activation_bytes`.
        family: "cifar" or "imagenet", for names that exist in both.
        options: any other option of `create`.

    Returns:
        JSON-ready: network, family, depth_meaning, num_blocks, kernels, num_classes, options, input_size
        (height, width), batch_size, params, buffers, weight_bytes (float32), macs and flops (one image, forward
        pass), training_flops (one image, forward and backward pass), activation_bytes (float32, the batch),
        stages (name, shape, params, macs) and published (the rows of the paper's tables about this network).

    Raises:
        UsageError: an unknown name, or an option outside its range.
    """
    parsed = parse(name, family)
    usual_classes, usual_size = paper.USUAL_DATA[parsed.family]
    with torch.device("meta"):
        network = create(
            parsed,
            usual_classes if num_classes is None else num_classes,
            in_channels=in_channels,
            **options,
        )
    counted = cost(network, usual_size if input_size is None else input_size, batch_size)
    return {
        "network": str(parsed),
        "family": parsed.family,
        "depth_meaning": parsed.depth_meaning,
        "num_blocks": list(parsed.num_blocks),
        "kernels": list(parsed.kernels),
        "num_classes": network.num_classes,
        "options": network.options,
        "input_size": list(counted.input_size),
        "batch_size": batch_size,
        "params": counted.params,
        "buffers": counted.buffers,
        "weight_bytes": 4 * (counted.params + counted.buffers),
        "macs": counted.macs,
        "flops": counted.flops,
        "training_flops": counted.training_flops,
        "activation_bytes": counted.activation_bytes,
        "stages": [asdict(stage) | {"shape": list(stage.shape)} for stage in counted.stages],
        "published": [
            {field: value for field, value in asdict(row).items() if value not in (None, "")}
            for row in paper.results(network=str(parsed), family=parsed.family)
        ],
    }
