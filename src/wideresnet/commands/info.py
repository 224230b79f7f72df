"""`wrn info`: what a network is and costs before anything runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.format import human_bytes, human_count
from wideresnet.commands.verbs import add_verb, show
from wideresnet.spec.recipe import CHOICES

_ERRORS = {
    "cifar10_pct": "CIFAR-10",
    "cifar100_pct": "CIFAR-100",
    "svhn_pct": "SVHN",
    "top1_pct": "ImageNet top-1",
    "top5_pct": "top-5",
}


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    info = add_verb(verbs, "info", run, "show a network's stages, parameters, operations and memory",
                 "wrn info WRN-28-10 --batch-size 128")  # fmt: skip
    info.add_argument("network", help="a network's name; `list` shows those of the paper")
    info.add_argument(
        "--num-classes", type=int, default=None, metavar="N", help="outputs (10; ImageNet's networks 1000)"
    )
    info.add_argument("--input-size", type=int, metavar="PX", help="side of the images (32; ImageNet's networks 224)")
    info.add_argument("--in-channels", type=int, default=3, metavar="N", help="channels of the images (3)")
    info.add_argument("--batch-size", type=int, default=128, metavar="N", help="batch for the memory (128)")
    info.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")


def run(args: argparse.Namespace) -> None:
    """Describe a network, or list the names."""
    if args.network == "list":
        from wideresnet.spec.names import list_networks

        names = list_networks()
        print(json.dumps(names) if args.json else "\n".join(names))
        return
    from wideresnet.networks.describe import describe

    description = describe(
        args.network,
        num_classes=args.num_classes,
        input_size=args.input_size,
        in_channels=args.in_channels,
        batch_size=args.batch_size,
        family=args.family,
    )
    show(args, description, render)


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
