"""What a network is and costs before anything runs: the content of `wrn info NETWORK`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet import paper
from wideresnet.names import parse
from wideresnet.networks import cost, create
from wideresnet.text import human_bytes, human_count

_ERRORS = {
    "cifar10_pct": "CIFAR-10",
    "cifar100_pct": "CIFAR-100",
    "svhn_pct": "SVHN",
    "top1_pct": "ImageNet top-1",
    "top5_pct": "top-5",
}


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
    """Describes a network: its structure, its cost and what its name's depth counts. Nothing is computed.

    Args:
        name: as in `WRN-28-10`.
        num_classes: outputs; None for the paper's: 10 at 32x32, 1000 at ImageNet size.
        input_size: side, or (height, width), of the images, px; None for 32 or 224.
        in_channels: channels of the images.
        batch_size: images in the training batch that `activation_bytes` is for.
        family: "cifar" or "imagenet", for names that both have.
        options: any further option of `create`.

    Returns:
        JSON-ready: network, family, depth_meaning, num_blocks, kernels, num_classes, options, input_size
        (height, width), batch_size, params, buffers, weight_bytes (float32), macs and flops of one image's
        forward pass, training_flops of its forward and backward, activation_bytes (float32, the batch),
        stages (name, shape, params, macs) and published (the rows of the paper's tables on this network).

    Raises:
        UsageError: an unknown name or an option outside its range.
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


def render(info: dict[str, Any]) -> RenderableType:
    """The description as a terminal shows it: summary, stages, the depth's meaning, published errors."""
    size = "x".join(str(n) for n in (info["options"]["in_channels"], *info["input_size"]))
    summary = Text.assemble(
        (info["network"], "bold"),
        f"  {info['params']:,} parameters ({human_bytes(info['weight_bytes'])}), {size} images, ",
        f"{info['num_classes']} classes\n",
        f"one image: {human_count(info['macs'])}MAC forward, ",
        f"{human_count(info['training_flops'])}FLOP forward and backward\n",
        f"a training batch of {info['batch_size']}: ",
        f"{human_bytes(info['activation_bytes'])} of activations in float32",
    )
    stages = Table("stage", "output", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("parameters", "MACs"):
        stages.add_column(heading, justify="right")
    for stage in info["stages"]:
        shape = "x".join(str(n) for n in stage["shape"])
        stages.add_row(stage["name"], shape, f"{stage['params']:,}", human_count(stage["macs"]))
    stages.add_row("total", "", f"{info['params']:,}", human_count(info["macs"]), style="bold")
    parts: list[RenderableType] = [summary, Text(), stages, Text(), Text(info["depth_meaning"])]
    if info["published"]:
        parts += [
            Text(),
            Text("published test error, %", style="bold"),
            *map(_published_line, info["published"]),
        ]
    return Group(*parts)


def _published_line(row: dict[str, Any]) -> Text:
    errors = ", ".join(f"{label} {row[field]:.2f}" for field, label in _ERRORS.items() if field in row)
    how = [row["preprocessing"].replace("_", "/")]
    if row["dropout"]:
        how.append("dropout")
    how += [row[field] for field in ("note", "params_note") if field in row]
    return Text(f"  Table {row['table']}: {errors} ({'; '.join(how)})")
