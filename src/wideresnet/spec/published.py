"""The paper's published figures, as data to compare with: Tables 2 to 9 and Figure 4 of arXiv 1605.07146v4.

Errors are in percent. If the paper has a mistake or counts differently, the row says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from wideresnet.spec.names import parse

USUAL_DATA = {"cifar": (10, 32), "imagenet": (1000, 224)}
"""Number of classes and side of the images (px) of the data that the paper trained each family of networks on."""

FIGURE4_MS = {
    "PreActResNet-164": 85,
    "PreActResNet-1001": 512,
    "WRN-40-4": 68,
    "WRN-16-10": 164,
    "WRN-28-10": 312,
}
"""Figure 4: milliseconds per training step of 32 images on a Titan X with cuDNN v5; two thin networks, three wide.

The errors that it prints next to WRN-40-4 and WRN-28-10 are those of WRN-40-8 and WRN-22-8 in Table 4.
"""

FIGURE4_BATCH_SIZE = 32

# Exact parameter counts of more such networks, for 10 classes: arithmetic on layer shapes.
EXACT_PARAMS = {
    "WRN-16-4": 2_748_890,
    "WRN-28-2": 1_467_610,
    "WRN-34-10": 46_160_474,
    "WRN-40-10": 55_841_754,
    "WRN-52-1": 758_362,
    "WRN-70-16": 266_796_506,
}

_COUNTED_WITHOUT_NORM = "10.2M counts the convolutions alone (10.18M); with normalization and linear layer it has 10.3M"
_NOT_1001 = "the table prints 10.2M, PreActResNet-1001's size; this network has 19.4M (He et al. 2016a, Table 6)"


@dataclass(frozen=True)
class Result:
    """One row of a table.

    Attributes:
        table: its number in the paper.
        network: canonical name, or the name of a network that this package does not build.
        family: "cifar" or "imagenet"; None if this package does not build the network.
        preprocessing: "zca", "mean_std" or "imagenet" (single 224x224 crop); SVHN is always divided by 255.
        dropout: probability: 0.3 on CIFAR and 0.4 on SVHN if the paper says "with dropout".
        stochastic_depth: survival probability of the last block; None if all blocks are always computed.
        params_exact: for 10 classes at 32x32; arithmetic on layer shapes that the printed figure rounds.
        params_printed: as in the paper, in millions.
        params_note: why the network's true count does not round to the printed one; empty if it does.
        cifar10_pct, cifar100_pct, svhn_pct: test error.
        top1_pct, top5_pct: ImageNet validation error.
        seconds_per_epoch: training time in Table 2, s.
        milliseconds_per_batch: time of a batch of 16 in Table 8, ms.
        note: anything else a reader must know to compare.
    """

    table: int
    network: str
    family: str | None = "cifar"
    preprocessing: str = "zca"
    dropout: float = 0.0
    stochastic_depth: float | None = None
    params_exact: int | None = None
    params_printed: str = ""
    params_note: str = ""
    cifar10_pct: float | None = None
    cifar100_pct: float | None = None
    svhn_pct: float | None = None
    top1_pct: float | None = None
    top5_pct: float | None = None
    seconds_per_epoch: float | None = None
    milliseconds_per_batch: float | None = None
    note: str = ""


def results(table: int | None = None, network: str | None = None, family: str | None = None) -> tuple[Result, ...]:
    """Select the published rows of a table, of a network, or of both; all rows without arguments.

    Args:
        table: number of the table, 2 to 9.
        network: a name that `wideresnet.spec.names.parse` reads.
        family: for names that both families have.

    Returns:
        Rows in the paper's order; none for a network that the paper does not report.
    """
    rows = [row for row in RESULTS if table in (None, row.table)]
    if network is not None:
        wanted = parse(network, family)
        rows = [row for row in rows if (row.network, row.family) == (str(wanted), wanted.family)]
    return tuple(rows)


def _table2(network: str, exact: int, printed: str, seconds: float, error_pct: float) -> Result:
    return Result(
        2,
        network,
        params_exact=exact,
        params_printed=printed,
        seconds_per_epoch=seconds,
        cifar10_pct=error_pct,
        note="median of 5; depth is 6N+4 whatever the number of convolutions in a block",
    )


def _table3(network: str, error_pct: float, note: str = "median of 5") -> Result:
    return Result(3, network, params_exact=2_243_546, cifar10_pct=error_pct, note=note)


def _table4(network: str, exact: int, cifar10_pct: float, cifar100_pct: float | None) -> Result:
    return Result(4, network, params_exact=exact, cifar10_pct=cifar10_pct, cifar100_pct=cifar100_pct)


def _table5(network: str, printed: str, cifar10_pct: float, cifar100_pct: float | None, note: str = "") -> Result:
    return Result(
        5,
        network,
        preprocessing="mean_std",
        params_printed=printed,
        cifar10_pct=cifar10_pct,
        cifar100_pct=cifar100_pct,
        note=note,
    )


def _other(network: str, cifar10_pct: float, cifar100_pct: float) -> Result:
    return Result(5, network, None, "mean_std", cifar10_pct=cifar10_pct, cifar100_pct=cifar100_pct)


def _table6(network: str, cifar10_pct: float, cifar100_pct: float, svhn_pct: float | None, dropout: float) -> Result:
    return Result(
        6,
        network,
        preprocessing="mean_std",
        dropout=dropout,
        cifar10_pct=cifar10_pct,
        cifar100_pct=cifar100_pct,
        svhn_pct=svhn_pct,
        note="dropout 0.3 on CIFAR, 0.4 on SVHN" if dropout else "",
    )


def _table7(network: str, top1_pct: float, top5_pct: float, printed: str) -> Result:
    return Result(7, network, "imagenet", "imagenet", params_printed=printed, top1_pct=top1_pct, top5_pct=top5_pct)


def _table8(network: str, top1_pct: float, top5_pct: float, printed: str, ms: float, note: str = "") -> Result:
    return Result(
        8,
        network,
        "imagenet",
        "imagenet",
        params_printed=printed,
        top1_pct=top1_pct,
        top5_pct=top5_pct,
        milliseconds_per_batch=ms,
        note=note,
    )


_STOCHASTIC = "with stochastic depth (Huang et al. 2016)"

RESULTS: tuple[Result, ...] = (
    _table2("WRN-40-2-B(1,3,1)", 1_429_082, "1.4M", 85.8, 6.06),
    _table2("WRN-40-2-B(3,1)", 1_211_354, "1.2M", 67.5, 5.78),
    _table2("WRN-40-2-B(1,3)", 1_297_370, "1.3M", 72.2, 6.42),
    _table2("WRN-40-2-B(3,1,1)", 1_343_066, "1.3M", 82.2, 5.86),
    _table2("WRN-28-2", 1_467_610, "1.5M", 67.5, 5.73),
    _table2("WRN-22-2-B(3,1,3)", 1_145_498, "1.1M", 59.9, 5.78),
    _table3("WRN-40-2-l1", 6.69),
    _table3("WRN-40-2", 5.43, "median of 5; Table 4 prints 5.33 for the same network"),
    _table3("WRN-40-2-l3", 5.65),
    _table3("WRN-40-2-l4", 5.93),
    _table4("WRN-40-1", 563_930, 6.85, 30.89),
    _table4("WRN-40-2", 2_243_546, 5.33, 26.04),
    _table4("WRN-40-4", 8_949_210, 4.97, 22.89),
    _table4("WRN-40-8", 35_748_314, 4.66, None),
    _table4("WRN-28-10", 36_479_194, 4.17, 20.50),
    _table4("WRN-28-12", 52_517_850, 4.33, 20.43),
    _table4("WRN-22-8", 17_158_106, 4.38, 21.22),
    _table4("WRN-22-10", 26_797_914, 4.44, 20.75),
    _table4("WRN-16-8", 10_961_370, 4.81, 22.07),
    _table4("WRN-16-10", 17_116_634, 4.56, 21.59),
    _other("NIN", 8.81, 35.67),
    _other("DSN", 8.22, 34.57),
    _other("FitNet", 8.39, 35.04),
    _other("Highway", 7.72, 32.39),
    _other("ELU", 6.55, 24.28),
    _table5("ResNet-110", "1.7M", 6.43, 25.16),
    Result(
        5,
        "ResNet-1202",
        preprocessing="mean_std",
        params_printed="10.2M",
        params_note=_NOT_1001,
        cifar10_pct=7.93,
        cifar100_pct=27.82,
    ),
    Result(
        5,
        "ResNet-110",
        preprocessing="mean_std",
        stochastic_depth=0.5,
        params_printed="1.7M",
        cifar10_pct=5.23,
        cifar100_pct=24.58,
        note=_STOCHASTIC,
    ),
    Result(
        5,
        "ResNet-1202",
        preprocessing="mean_std",
        stochastic_depth=0.5,
        params_printed="10.2M",
        params_note=_NOT_1001,
        cifar10_pct=4.91,
        note=_STOCHASTIC,
    ),
    _table5("PreActResNet-110", "1.7M", 6.37, None),
    _table5("PreActResNet-164", "1.7M", 5.46, 24.33),
    Result(
        5,
        "PreActResNet-1001",
        preprocessing="mean_std",
        params_printed="10.2M",
        params_note=_COUNTED_WITHOUT_NORM,
        cifar10_pct=4.92,
        cifar100_pct=22.71,
        note="4.64 on CIFAR-10 with batches of 64",
    ),
    _table5("WRN-40-4", "", 4.53, 21.18, "median of 5"),
    _table5("WRN-16-8", "", 4.27, 20.43, "median of 5"),
    _table5("WRN-28-10", "", 4.00, 19.25, "median of 5"),
    _table6("WRN-16-4", 5.02, 24.03, 1.85, 0.0),
    _table6("WRN-16-4", 5.24, 23.91, 1.64, 0.3),
    _table6("WRN-28-10", 4.00, 19.25, None, 0.0),
    _table6("WRN-28-10", 3.89, 18.85, None, 0.3),
    _table6("WRN-52-1", 6.43, 29.89, 2.08, 0.0),
    _table6("WRN-52-1", 6.28, 29.78, 1.70, 0.3),
    Result(6, "WRN-16-8", preprocessing="mean_std", svhn_pct=1.81, note="in the text; single run"),
    Result(6, "WRN-16-8", preprocessing="mean_std", dropout=0.4, svhn_pct=1.54, note="in the text; single run"),
    _table7("WRN-18-1", 30.4, 10.93, "11.7M"),
    _table7("WRN-18-1.5", 27.06, 9.0, "25.9M"),
    _table7("WRN-18-2", 25.58, 8.06, "45.6M"),
    _table7("WRN-18-3", 24.06, 7.33, "101.8M"),
    _table7("WRN-34-1", 26.77, 8.67, "21.8M"),
    _table7("WRN-34-1.5", 24.5, 7.58, "48.6M"),
    _table7("WRN-34-2", 23.39, 7.00, "86.0M"),
    _table8("ResNet-50", 24.01, 7.02, "25.6M", 49),
    _table8("ResNet-101", 22.44, 6.21, "44.5M", 82),
    _table8("ResNet-152", 22.16, 6.16, "60.2M", 115),
    _table8("WRN-50-2-bottleneck", 21.9, 6.03, "68.9M", 93),
    _table8("PreActResNet-200", 21.66, 5.79, "64.7M", 154),
    Result(
        9,
        "WRN-40-10",
        preprocessing="mean_std",
        dropout=0.3,
        cifar10_pct=3.8,
        cifar100_pct=18.3,
        note="best single run",
    ),
    Result(9, "WRN-16-8", preprocessing="mean_std", dropout=0.4, svhn_pct=1.54, note="best single run"),
    Result(
        9,
        "WRN-50-2-bottleneck",
        "imagenet",
        "imagenet",
        top1_pct=21.9,
        top5_pct=5.79,
        note="Table 8 prints top-5 6.03 for this network; 5.79 is PreActResNet-200's",
    ),
)
