"""`wrn info`: what a network is and costs before anything runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wideresnet.base.errors import UsageError
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
_COLUMNS = {"cifar10_pct": "C-10", "cifar100_pct": "C-100", "svhn_pct": "SVHN", "top1_pct": "top-1"}
"""Fields of a published row that the comparison shows, under short names: it must fit into 80 columns."""


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    info = add_verb(verbs, "info", run, "show a network's stages, parameters, operations, memory; compare several",
                 "wrn info WRN-28-10 WRN-40-2-B313 --batch-size 128")  # fmt: skip
    info.add_argument(
        "networks", nargs="*", metavar="NETWORK",
        help="a network's name; several are compared; `list` shows those of the paper and some much used since",
    )  # fmt: skip
    info.add_argument(
        "--weights", metavar="WEIGHTS",
        help="a trained network, with its classes and test error: run folder, weights folder, model.safetensors or "
        "name of a shipped network; `list` shows the shipped ones",
    )  # fmt: skip
    info.add_argument(
        "--num-classes", type=int, default=None, metavar="N", help="outputs (10; ImageNet's networks 1000)"
    )
    info.add_argument("--input-size", type=int, metavar="PX", help="side of the images (32; ImageNet's networks 224)")
    info.add_argument("--in-channels", type=int, metavar="N", help="channels of the images (3)")
    info.add_argument("--batch-size", type=int, default=128, metavar="N", help="batch for the memory (128)")
    info.add_argument("--family", choices=CHOICES["family"], help="reading of a name that has two")


def run(args: argparse.Namespace) -> None:
    """Describe a network, compare several, or list those of the paper or those that are shipped."""
    options = {"num_classes": args.num_classes, "input_size": args.input_size}
    if args.weights is not None:
        _show_weights(args, {**options, "in_channels": args.in_channels, "family": args.family})
        return
    if not args.networks:
        raise UsageError("needs NETWORK or --weights, e.g. wrn info WRN-28-10")
    if args.networks == ["list"]:
        if given := next((name for name, value in options.items() if value is not None), None):
            raise UsageError(f"{given}={options[given]}: the list is for the paper's data; name the networks instead")
        show(args, _catalog(args.family), render_several)
        return
    from wideresnet.networks.describe import describe

    channels = 3 if args.in_channels is None else args.in_channels
    described = [
        describe(name, family=args.family, batch_size=args.batch_size, **options, in_channels=channels)
        for name in args.networks
    ]
    if len(described) == 1:
        show(args, described[0], render)
    else:
        show(args, described, render_several)


def _show_weights(args: argparse.Namespace, options: dict[str, Any]) -> None:
    from wideresnet.inference.describe import describe_pretrained, describe_weights

    if args.networks:
        raise UsageError(
            f"{args.networks[0]} and --weights: one describes a network, the other trained weights; choose one"
        )
    if given := next((name for name, value in options.items() if value is not None), None):
        raise UsageError(f"{given}={options[given]}: trained weights have their own; leave out {given}=")
    if args.weights == "list" and not Path("list").exists():
        show(args, describe_pretrained(), render_pretrained)
    else:
        show(args, describe_weights(args.weights, batch_size=args.batch_size), render_weights)


def _catalog(family: str | None) -> list[dict[str, Any]]:
    from wideresnet.spec.counts import COUNTS
    from wideresnet.spec.published import results

    return [
        {
            "network": name, "family": own, "params": params, "macs": macs,
            "published": [
                {field: value for field, value in asdict(row).items() if value not in (None, "")}
                for row in results(network=name, family=own)
            ],
        }
        for own, networks in COUNTS.items() if family in (None, own) for name, (params, macs) in networks.items()
    ]  # fmt: skip


def render_several(infos: list[dict[str, Any]]) -> RenderableType:
    """A row for each network: its cost, and what the paper reports."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("network", no_wrap=True)
    batch_size = infos[0].get("batch_size")
    for heading in ("parameters", "MACs", *(["activations"] if batch_size else []), *_COLUMNS.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for info in infos:
        errors = (_published(info["published"], field) for field in _COLUMNS)
        table.add_row(
            info["network"], f"{info['params']:,}", human_count(info["macs"]),
            *([human_bytes(info["activation_bytes"])] if batch_size else []),
            *("-" if error is None else f"{error:.2f}" for error in errors),
        )  # fmt: skip
    about = "MACs: multiply-accumulates of one image. Errors: the paper's, %, without dropout if there are both."
    if batch_size:
        about += f" Activations: of a training batch of {batch_size}, float32."
    return Group(table, Text(), Text(about, style="dim"))


def render_pretrained(networks: list[dict[str, Any]]) -> RenderableType:
    """A row for each shipped network."""
    if not networks:
        return Text("No network is shipped with this package.")
    table = Table("name", "network", "data", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("test error", "parameters", "size"):
        table.add_column(heading, justify="right")
    for each in networks:
        error, size = f"{each['test_error_pct']:.2f} %", human_bytes(each["bytes"])
        table.add_row(each["name"], each["network"], each["dataset"], error, f"{each['params']:,}", size)
    return table


def render_weights(info: dict[str, Any]) -> RenderableType:
    """What the weights know, then their network."""
    names, known = ", ".join(info["class_names"]), "not known to have been tested"
    width, height = reversed(info["input_size"])
    if info["test_error_pct"] is not None:
        known = f"{info['test_error_pct']:.2f} % test error on {info['dataset']}"
    parts: list[RenderableType] = [
        Text.assemble((info["weights"], "bold"), f"  {known}"),
        Text(f"classes: {names}"),
        Text(f"preprocessing: {info['preprocessing']['kind']}, images of {width} x {height} px"),
        *(Text(f"note: {note}") for note in info["notes"]),
    ]
    return Group(*parts, Text(), render(info))


def _published(rows: list[dict[str, Any]], field: str) -> float | None:
    """The paper's last figure for a network, without dropout and stochastic depth if there is one."""
    reported = [row for row in rows if field in row]
    plain = [row for row in reported if not row["dropout"] and "stochastic_depth" not in row]
    return (plain or reported)[-1][field] if reported else None


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
