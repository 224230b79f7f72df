"""The paper's tables and figures as exhibits: what each one shows, how it was made, what is odd about it.

The numbers are in `spec.published`. Here is what a reader needs to compare with them: data, preprocessing, statistic
and number of runs, the training protocol, the paper's inconsistencies, and what independent code has measured.

Source: arXiv 1605.07146v4, its captions and section 3; the authors' repository for what their code does.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from wideresnet.base.errors import UsageError
from wideresnet.base.format import nearest
from wideresnet.spec import published


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure of the paper.

    Attributes:
        name: "table2" to "table9", "figure2" to "figure4".
        title: what it shows.
        tables: the tables of `spec.published` that hold its numbers.
        data: what its networks are trained on: keys of `ERROR_FIELDS`, or "imagenet", "coco".
        statistic: how several runs become a number: "median", "single run", "curve" or "time".
        num_runs: runs behind each number; None if the paper does not say.
        protocol: key of `PROTOCOLS` that its runs follow.
        note: anything else a reader must know to compare; empty if nothing.
    """

    name: str
    title: str
    tables: tuple[int, ...]
    data: tuple[str, ...]
    statistic: str
    num_runs: int | None
    protocol: str
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """How networks are trained.

    Attributes:
        name: "cifar", "svhn", "imagenet" or "coco".
        said: what the paper says.
        done: what the authors' code does in addition, or instead; empty if it is not public.
    """

    name: str
    said: str
    done: str


@dataclass(frozen=True)
class Inconsistency:
    """Two figures of the paper that do not agree.

    Attributes:
        exhibits: the exhibits that it concerns.
        text: what disagrees, in one sentence.
    """

    exhibits: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Reproduction:
    """An error that other code has measured.

    Attributes:
        network: canonical name.
        data: key of `ERROR_FIELDS`.
        error_pct: test error, percent: (lowest, highest) of its runs, or the same number twice.
        source: whose code.
        how: statistic and what differs from the paper's protocol.
    """

    network: str
    data: str
    error_pct: tuple[float, float]
    source: str
    how: str


ERROR_FIELDS = {"cifar10": "cifar10_pct", "cifar100": "cifar100_pct", "svhn": "svhn_pct"}
"""Data set -> the field of `published.Result` that holds its test error."""

_CIFAR, _BOTH = ("cifar10",), ("cifar10", "cifar100")

EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit("table2", "types of residual block, k = 2", (2,), _CIFAR, "median", 5, "cifar",
            "ZCA whitening; time is seconds per training epoch"),
    Exhibit("table3", "convolutions per block, WRN-40-2", (3,), _CIFAR, "median", 5, "cifar", "ZCA whitening"),
    Exhibit("table4", "depth and width", (4,), _BOTH, "median", None, "cifar",
            "ZCA whitening; the caption does not say how many runs"),
    Exhibit("table5", "wide against thin networks", (5,), _BOTH, "median", 5, "cifar",
            "mean/std preprocessing, no dropout; errors of other networks are those of their papers"),
    Exhibit("table6", "effect of dropout", (6,), ("cifar10", "cifar100", "svhn"), "median", 5, "cifar",
            "mean/std preprocessing; dropout 0.3 on CIFAR, 0.4 on SVHN; SVHN's number of runs is not stated"),
    Exhibit("table7", "ImageNet, basic blocks", (7,), ("imagenet",), "single run", 1, "imagenet", "single crop"),
    Exhibit("table8", "ImageNet, bottleneck blocks", (8,), ("imagenet",), "single run", 1, "imagenet",
            "single crop; time is that of a batch of 16"),
    Exhibit("table9", "best results", (9,), ("cifar10", "cifar100", "svhn", "imagenet", "coco"), "single run", 1,
            "cifar", "COCO test-std: 35.2 mAP by WRN-34-2 in MultiPathNet, whose hyperparameters are not published"),
    Exhibit("figure2", "training curves on CIFAR: thin and wide", (5,), _BOTH, "curve", 1, "cifar",
            "PreActResNet-164 (5.46 and 24.33 %) against WRN-28-10 (4.00 and 19.25 %)"),
    Exhibit("figure3", "training curves on SVHN: thin and wide, with and without dropout", (6,), ("svhn",), "curve", 1,
            "svhn", "a thin network (called ResNet-50, 2.07 %; Table 6 has WRN-52-1 with 2.08 %) against WRN-16-4, and "
            "WRN-16-4 with dropout; loss and error rise after the first drop of the learning rate, less with dropout"),
    Exhibit("figure4", "time of a training step of 32 images", (), (), "time", None, "cifar", "Titan X, cuDNN v5"),
)  # fmt: skip

PROTOCOLS: tuple[Protocol, ...] = (
    Protocol(
        "cifar",
        "SGD with Nesterov momentum 0.9 and dampening 0, weight decay 5e-4, batches of 128, 200 epochs; lr 0.1, times "
        "0.2 at epochs 60, 120 and 160; flips and random crops of images padded by 4 pixels by reflection",
        "lr drops at the start of epoch 60 counted from 1, momentum restarts at each drop, the last partial batch is "
        "left out, weight decay applies to batch normalization too, whose scale starts from U(0, 1) since 2016-05-17",
    ),
    Protocol(
        "svhn",
        "train and extra images, pixels / 255, no augmentation, 160 epochs; lr 0.01, times 0.1 at epochs 80 and 120",
        "would apply CIFAR's mean and standard deviation to bytes",
    ),
    Protocol(
        "imagenet",
        "as fb.resnet.torch",
        "90 epochs, lr 0.1 divided by 10 every 30, weight decay 1e-4; random resized crops of 224, color jitter 0.4, "
        "PCA lighting 0.1, flips; test images resized to 256 and cropped to 224 in the center",
    ),
    Protocol("coco", "WRN-34-2 in MultiPathNet with LocNet-style localization and AttractioNet proposals", ""),
)

_FIGURES = {
    "figure2": ("PreActResNet-164", "WRN-28-10"),
    "figure3": ("WRN-52-1", "WRN-16-4"),
}
"""The networks whose curves a figure shows."""

INCONSISTENCIES: tuple[Inconsistency, ...] = (
    Inconsistency(("table8", "table9"), "WRN-50-2-bottleneck has top-5 error 6.03 in Table 8 and 5.79 in Table 9, "
                  "which is PreActResNet-200's"),
    Inconsistency(("figure4", "table4"), "the errors printed next to WRN-40-4 and WRN-28-10 in Figure 4 are those of "
                  "WRN-40-8 and WRN-22-8 in Table 4"),
    Inconsistency(("table3", "table4"), "WRN-40-2 has 5.43 in Table 3 and 5.33 in Table 4"),
    Inconsistency(("figure3", "table6"), "the thin network on SVHN is ResNet-50 with 2.07 in Figure 3, 52 layers with "
                  "2.08 in Table 6"),
    Inconsistency(("table5",), "Table 5 of the first version (arXiv v1) has ZCA's errors: 4.97, 4.81, 4.17"),
    Inconsistency(("table7", "table8"), "the text has weight decay 5e-4 in all experiments; ImageNet's was 1e-4"),
    Inconsistency(("table2", "table3"), "Table 2 counts depth as 6N + 4 whatever the number of convolutions per block, "
                  "Table 3 counts convolutions"),
)  # fmt: skip

_AUTHORS = "the authors' PyTorch code"
_AUTHORS_HOW = "last epoch; no Nesterov momentum, keeps the last partial batch"

REPRODUCTIONS: tuple[Reproduction, ...] = (
    Reproduction("WRN-16-4", "cifar10", (4.94, 4.99), _AUTHORS, _AUTHORS_HOW),
    Reproduction("WRN-40-4", "cifar10", (4.24, 4.36), _AUTHORS, _AUTHORS_HOW),
    Reproduction("WRN-16-8", "cifar10", (4.35, 4.37), _AUTHORS, _AUTHORS_HOW),
    Reproduction("WRN-28-10", "cifar10", (3.88, 3.97), _AUTHORS, _AUTHORS_HOW),
    Reproduction("WRN-28-10", "cifar10", (4.03, 4.03), "hysts/pytorch_wrn", "median of 3, batches of 64"),
    Reproduction("WRN-28-10", "cifar10", (3.87, 3.87), "Cutout's baseline", "mean of 5, with dropout"),
    Reproduction("WRN-28-10", "cifar100", (18.8, 18.8), "Cutout's baseline", "mean of 5, with dropout"),
    Reproduction("WRN-16-8", "svhn", (1.60, 1.60), "Cutout's baseline", "mean of 5, with dropout"),
    Reproduction("WRN-28-10", "cifar10", (4.0, 4.0), "uncertainty-baselines", "mean"),
    Reproduction("WRN-28-10", "cifar100", (20.2, 20.2), "uncertainty-baselines", "mean"),
    Reproduction(
        "WRN-28-10", "cifar100", (21.68, 21.68), "issue 58 of the authors' code", "batches of 512, lr not scaled"
    ),
)


def exhibit_name(text: str) -> str:
    """Return the name of an exhibit, from what people type: "Table 4" -> "table4".

    Raises:
        UsageError: there is no such table or figure; the nearest is named.
    """
    name, known = re.sub(r"[ -]", "", text.lower()), [each.name for each in EXHIBITS]
    if name not in known:
        raise UsageError(f"{text}: no such table or figure; {nearest(name, known)}")
    return name


def runs_text(num_runs: int | None) -> str:
    """Say how many runs are behind a number of the paper; None if it does not say."""
    return {None: "number of runs not stated", 1: "single run"}.get(num_runs, f"{num_runs} runs")


def exhibit(name: str) -> Exhibit:
    """Return the exhibit of this name.

    Raises:
        KeyError: there is none.
    """
    return {each.name: each for each in EXHIBITS}[name]


def rows(name: str) -> list[published.Result]:
    """Return the published rows of an exhibit; none for Figure 4, which has times alone."""
    networks = _FIGURES.get(name)
    found = [row for table in exhibit(name).tables for row in published.results(table)]
    return [row for row in found if networks is None or row.network in networks]


def describe_exhibit(name: str) -> dict[str, Any]:
    """Return an exhibit as JSON-ready values.

    Returns:
        name, label ("Table 4"), title, data, statistic, num_runs, note, protocol (name, said, done), rows (network and
        those of params, dropout, preprocessing, cifar10_pct, cifar100_pct, svhn_pct, top1_pct, top5_pct (percent),
        seconds_per_epoch, milliseconds_per_batch, milliseconds_per_step, note that the paper has), inconsistencies, and
        reproductions by other code of these rows.
    """
    each = exhibit(name)
    found = rows(name)
    documents = [_row(row) for row in found]
    if name == "figure4":
        documents = [{"network": network, "milliseconds_per_step": ms} for network, ms in published.FIGURE4_MS.items()]
    networks = {row.network for row in found}
    return {
        "name": each.name,
        "label": f"{each.name[:-1].capitalize()} {each.name[-1]}",
        "title": each.title,
        "data": list(each.data),
        "statistic": each.statistic,
        "num_runs": each.num_runs,
        "note": each.note,
        "protocol": asdict({protocol.name: protocol for protocol in PROTOCOLS}[each.protocol]),
        "rows": documents,
        "inconsistencies": list(inconsistencies(name)),
        "reproductions": [
            asdict(other) for other in REPRODUCTIONS if other.network in networks and other.data in each.data
        ],
    }


def _row(row: published.Result) -> dict[str, Any]:
    values = {field: value for field, value in asdict(row).items() if value not in (None, "", 0.0)}
    params = f"{row.params_exact:,}" if row.params_exact else row.params_printed
    unwanted = ("table", "params_exact", "params_printed", "params_note")
    return {field: value for field, value in values.items() if field not in unwanted} | (
        {"params": params} if params else {}
    )


def protocol_of(data: str) -> Protocol:
    """Return how the authors trained on a data set; an exhibit may have several."""
    names = [protocol.name for protocol in PROTOCOLS]
    return PROTOCOLS[names.index(data if data in names else "cifar")]


def inconsistencies(name: str) -> tuple[str, ...]:
    """Return what the paper says differently elsewhere about an exhibit."""
    return tuple(each.text for each in INCONSISTENCIES if name in each.exhibits)


def reproductions(network: str, data: str) -> tuple[Reproduction, ...]:
    """Return what other code measured for a network on a data set."""
    return tuple(each for each in REPRODUCTIONS if (each.network, each.data) == (network, data))
