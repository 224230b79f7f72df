"""Write the tables and figures of docs/the-paper.md from the committed records in results/ and the paper's figures.

python tools/the_paper.py           write them
python tools/the_paper.py --check   exit 1 if they are not what the records say
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from pages import ROOT, between, fenced, portable, table, write_or_check
from paper_figures import Drawing, Point, Timing, blocks, curves, errors, times
from paper_tables import arithmetic, depths, shape, stages, types
from results import Record, command, read_records
from speed import read_records as read_speeds
from wideresnet.base.format import human_count
from wideresnet.bench.words import OURS_BF16
from wideresnet.report.blocks import SUMMARY_HEADER, images_text, summary_row
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.report.runs import read_run
from wideresnet.spec import published
from wideresnet.spec.analysis import Analysis, read_analyses
from wideresnet.spec.files import read_json
from wideresnet.spec.names import parse
from wideresnet.spec.recipes import resolve
from wideresnet.spec.record import RunFolder

PAGE, FIGURES = ROOT / "docs" / "the-paper.md", ROOT / "docs" / "figures"
CURVES = "wrn-16-4-cifar10-paper-bf16-seed0"
"""The record whose curves are drawn."""

ANALYSES = ("wrn-16-2-cifar10-long", "wrn-40-1-cifar10-long")
"""Records whose weights have been analyzed, in results/analysis/."""

THIN, WIDE = ("PreActResNet-110", "PreActResNet-164", "PreActResNet-1001"), ("WRN-16-8", "WRN-40-4", "WRN-28-10")
"""The rows of Table 5 that are drawn: normalized by mean and standard deviation, as our records are."""

FIGURE3 = "figure3-scale0.1"
"""Our runs of a network of Figure 3 with a share of its epochs, in results/reproduce/."""

FIGURE4, FIGURE4_GPU, GPU = (f"results/speed/{name}" for name in ("cpu-avx512-figure4", "h100-figure4", "h100-train"))


def figure(drawing: Drawing, alt: str) -> str:
    """Show a figure."""
    return f"![{alt}](figures/{drawing.name}.svg)"


def draw_errors(records: Sequence[Record]) -> Drawing:
    """Collect error against parameters: the paper's, and ours by the unchanged schedule."""
    table4 = [_point(row, f"k={parse(row.network).width:g}") for row in published.results(4)]
    by_name = {row.network: row for row in published.results(5) if row.stochastic_depth is None}
    (narrow,) = (row for row in published.results(6, "WRN-16-4") if not row.dropout)
    thin = [_point(by_name[name], name) for name in THIN]
    wide = [_point(row, row.network) for row in (narrow, *(by_name[name] for name in WIDE))]
    return errors(table4, thin, wide, [_own_point(record) for record in records if _is_papers(record)])


def _point(row: published.Result, label: str) -> Point:
    assert row.cifar10_pct is not None
    params = sum(parameter.numel() for parameter in shape(row.network).parameters())
    return Point(label, parse(row.network).depth, params, row.cifar10_pct)


def _own_point(record: Record) -> Point:
    result = record.result
    return Point(result["network"], parse(result["network"]).depth, result["params"], result["test_error_pct"])


def _is_papers(record: Record) -> bool:
    """Tell whether a run had CIFAR-10 and all epochs of the paper's recipe; the precision may differ."""
    epochs = resolve("paper", record.recipe.network, "cifar10").schedule.epochs
    return (record.recipe.name, record.result["dataset"], record.result["epochs"]) == ("paper", "cifar10", epochs)


def show_errors(drawing: Drawing, records: Sequence[Record]) -> str:
    """Show error against parameters, and where the points come from."""
    own = [record for record in records if _is_papers(record)]
    said = ", ".join(
        f"[{record.result['network']}](../{record.folder}/result.json), seed {record.result['seed']}, in "
        f"{record.result['precision']}: {record.result['test_error_pct']:.2f} %"
        for record in own
    )
    (papers,) = (row for row in published.results(6, "WRN-16-4") if not row.dropout)
    return "\n\n".join(
        [
            figure(drawing, "CIFAR-10 test error against parameters, of the paper's networks and of ours"),
            f"Gray and blue: the paper's numbers. Star: ours, {said} at the last epoch; the paper has "
            f"{papers.cifar10_pct:.2f} % for WRN-16-4 (Table 6).",
            fenced("wrn paper table4", "wrn paper table5", "wrn paper table6", *(command(record) for record in own)),
        ]
    )


def draw_times(record: dict[str, Any]) -> Drawing:
    """Collect the time of a step: in the paper and in a record of `wrn bench figure4`."""
    paper = [Timing(case["network"], case["flops"], case["paper_ms"] / 1000) for case in record["cases"]]
    ours = [Timing(case["network"], case["flops"], _median_s(case)) for case in record["cases"]]
    return times([("the paper, Figure 4: Titan X", paper), (f"ours: {hardware_text(record['env'])}", ours)])


def _median_s(case: dict[str, Any]) -> float:
    return case["contenders"][0]["call_s"]["median"]


def show_times(drawing: Drawing, record: dict[str, Any], on_gpu: dict[str, Any], gpu: dict[str, Any]) -> str:
    """Show the time of a step, and the speeds that follow from it."""
    rows = []
    gpu_s = {case["network"]: _median_s(case) for case in on_gpu["cases"]}
    for case in record["cases"]:
        paper_s, own_s = case["paper_ms"] / 1000, _median_s(case)
        rows.append(
            (
                case["network"],
                f"{human_count(case['flops'])}FLOP",
                f"{case['paper_ms']:g}",
                f"{human_count(case['flops'] / paper_s)}FLOP/s",
                f"{1000 * own_s:,.0f}",
                f"{human_count(case['flops'] / own_s)}FLOP/s",
                case["precision"],
                f"{1000 * gpu_s[case['network']]:.1f}",
                f"{human_count(case['flops'] / gpu_s[case['network']])}FLOP/s",
            )
        )
    header = ("network", "a step of 32 images", "paper: ms", "paper: speed", "CPU: ms", "CPU: speed", "CPU: precision",
              "GPU: ms", "GPU: speed")  # fmt: skip
    wider = [
        (case["network"], row["flops_per_s"])
        for case in sorted(gpu["cases"], key=lambda case: case["flops"])
        for row in case["contenders"]
        if row["name"] == OURS_BF16 and "problem" not in row
    ]
    speeds = " and ".join(f"{human_count(speed)}FLOP/s for {name}" for name, speed in wider)
    return "\n\n".join(
        [
            figure(
                drawing, "Milliseconds of a training step against its operations; thin networks lie above wide ones"
            ),
            table(header, rows),
            f"Ours: {hardware_text(record['env'])}, {torch_text(record['env'])} "
            f"([record](../{record['folder']}/bench.json)), and {hardware_text(on_gpu['env'])} in fp32 "
            f"([record](../{on_gpu['folder']}/bench.json)). In batches of 128 in bf16, the GPU reaches "
            f"{speeds} ([record](../{gpu['folder']}/bench.json)).",
            fenced(portable(record["env"]["command"])),
        ]
    )


def show_recipe() -> str:
    """Write the recipe in numbers."""
    recipe = resolve("paper", "WRN-28-10", "cifar10")
    schedule, optimizer, feed = recipe.schedule, recipe.optimizer, recipe.feed
    drops = f"{', '.join(map(str, schedule.lr_drop_epochs[:-1]))} and {schedule.lr_drop_epochs[-1]}"
    rate = f"{schedule.lr:g}, times {schedule.lr_drop_factor:g} at the {schedule.lr_drop_at} of epochs {drops}"
    rows = [
        ("optimizer", f"SGD with {'Nesterov ' * optimizer.nesterov}momentum {optimizer.momentum:g}"),
        ("batch", schedule.batch_size),
        ("epochs", schedule.epochs),
        ("learning rate", rate),
        ("weight decay", f"{optimizer.weight_decay:g}, on {optimizer.weight_decay_on} parameters"),
        ("augmentation", f"random flips; random crops after padding by {feed.crop_padding} px ({feed.padding_mode})"),
    ]  # fmt: skip
    return f"{table(('CIFAR', '`--recipe paper`'), rows)}\n\n{fenced('wrn train WRN-28-10 --data cifar10')}"


def show_curves(drawing: Drawing, record: Record) -> str:
    """Show the curves of a run, and what happens after its drops."""
    first, second, *_ = record.recipe.schedule.lr_drop_epochs
    by_epoch = {epoch["epoch"]: epoch for epoch in record.metrics}
    between_drops = [by_epoch[epoch] for epoch in range(first, second)]
    low = min(between_drops, key=lambda epoch: epoch["train_loss"])
    high = max((epoch for epoch in between_drops if epoch["epoch"] > low["epoch"]), key=lambda e: e["train_loss"])
    rows = [
        (epoch["epoch"], f"{epoch['lr']:g}", f"{epoch['train_loss']:.3f}", f"{epoch['test_loss']:.3f}",
         f"{epoch['test_error_pct']:.2f}")
        for epoch in record.metrics if "test_error_pct" in epoch
    ]  # fmt: skip
    where = f"({hardware_text(record.env)}, {record.result['precision']}, seed {record.result['seed']}; "
    return "\n\n".join(
        [
            figure(drawing, "Error, loss and learning rate by epoch; dotted lines where the learning rate drops"),
            f"{record.result['network']} on CIFAR-10 {where}[record](../{record.folder}/recipe.json)). The training "
            f"loss is {by_epoch[first - 1]['train_loss']:.3f} before the first drop, {low['train_loss']:.3f} in epoch "
            f"{low['epoch']}, back at {high['train_loss']:.3f} in epoch {high['epoch']}, and "
            f"{by_epoch[second]['train_loss']:.3f} in epoch {second}, after the second drop.",
            table(("after epoch", "learning rate", "train loss", "test loss", "test error, %"), rows),
            fenced(command(record)),
        ]
    )


def dropout() -> str:
    """Write Table 6, and what dropout does to the curves of our short runs."""
    data = (("CIFAR-10", "cifar10_pct"), ("CIFAR-100", "cifar100_pct"), ("SVHN", "svhn_pct"))
    found: dict[str, dict[tuple[str, bool], float]] = {}
    for row in published.results(6):
        for name, field in data:
            if (value := getattr(row, field)) is not None:
                found.setdefault(row.network, {})[name, bool(row.dropout)] = value
    cells = [
        (network, *(_pair(values, name) for name, _ in data))
        for network, values in found.items()
    ]  # fmt: skip
    header = ("Table 6: error without dropout → with, %", *(name for name, _ in data))
    return f"{table(header, cells)}\n\n{fenced('wrn paper table6')}\n\n{_dropout_curves()}"


def _dropout_curves() -> str:
    """Show our short runs of Figure 3: how far the error rises between the first and the second drop."""
    folder = ROOT / "results" / "reproduce"
    document = read_json(folder / f"{FIGURE3}.json")
    rows = []
    for cell in document["cells"]:
        runs = [RunFolder(folder / run["name"]) for run in cell["runs"]]
        first, second, *_ = runs[0].read_recipe().schedule.lr_drop_epochs
        seeds = [{epoch["epoch"]: epoch["test_error_pct"] for epoch in run.read_metrics()} for run in runs]
        mean = {epoch: fmean(seed[epoch] for seed in seeds) for epoch in seeds[0]}
        low = min(range(first, second), key=lambda epoch: mean[epoch])
        high = max(range(low, second), key=lambda epoch: mean[epoch])
        at = [f"{mean[epoch]:.2f} ({epoch})" for epoch in (low, high)]
        rows.append((cell["label"], *at, f"+{mean[high] - mean[low]:.2f}", f"{cell['mean_pct']:.2f}", cell["n"]))
    header = ("test error, % (epoch)", "lowest after the first drop", "highest before the second", "rise",
              "last epoch", "seeds")  # fmt: skip
    scale, num, name = document["scale"], document["num_seeds"], document["cells"][0]["network"]
    return "\n\n".join(
        [
            f"![Test error by epoch, with and without dropout](../results/reproduce/{FIGURE3}-cifar10-curves.svg)",
            table(header, rows),
            f"Ours: {name} on CIFAR-10, {100 * scale:g} % of the paper's epochs with its "
            "schedule shortened evenly, in bf16; bands are all seeds.",
            fenced(
                f"wrn reproduce figure3 --dataset cifar10 --network {name} --seeds {num} --scale {scale:g} "
                "--precision bf16"
            ),
        ]
    )


def _pair(values: dict[tuple[str, bool], float], data: str) -> str:
    """Write the error without dropout and with it."""
    both = [values.get((data, with_dropout)) for with_dropout in (False, True)]
    return " → ".join(f"{value:.2f}" for value in both if value is not None) if None not in both else "-"


def read_analysis(record: Record) -> Analysis:
    """Read what `wrn analyze` has measured of a record's weights.

    Raises:
        SystemExit: it is of other weights.
    """
    path = ROOT / "results" / "analysis" / f"{record.folder.rpartition('/')[2]}.json"
    (analysis,) = read_analyses(path)
    folder = RunFolder(ROOT / record.folder)
    if analysis.weights_sha256 != folder.digests().values[folder.weights.name]:
        raise SystemExit(f"{path}: is not of the weights of {record.folder}; run wrn analyze again")
    return analysis


def show_reuse(drawings: Sequence[Drawing], analyses: Sequence[Analysis], names: Sequence[str]) -> str:
    """Show what the blocks of several networks contribute."""
    each_block, similarity = drawings
    rows = [summary_row(analysis, name) for analysis, name in zip(analyses, names, strict=True)]
    ranges = []
    for analysis, name in zip(analyses, names, strict=True):
        chosen = [
            analysis.similarity[place][place - 1]
            for place, block in enumerate(analysis.blocks)
            if place and not block.projects
        ]
        ranges.append(f"{min(chosen):.2f} to {max(chosen):.2f} in {name}")
    records = ", ".join(
        f"[{name}](../results/analysis/{folder}.json)" for name, folder in zip(names, ANALYSES, strict=True)
    )
    limit = max(analysis.num_images for analysis in analyses)
    folders = shlex.join(f"runs/{name.lower()}" for name in names)
    return "\n\n".join(
        [
            figure(each_block, "Test error without each block, share of the branch and gradient, over depth"),
            table(SUMMARY_HEADER, rows),
            figure(similarity, "Similarity (linear CKA) between the outputs of all pairs of blocks"),
            f"Similarity of a block with an identity shortcut to the block before it: {', '.join(ranges)}. Measured on "
            f"{images_text(analyses[0])} (records: {records}).",
            fenced(f"wrn analyze {folders} --data cifar10 --limit {limit} --out blocks"),
        ]
    )  # fmt: skip


def main() -> int:
    """Write or check the page and its figures."""
    records = read_records()
    by_folder = {record.folder.rpartition("/")[2]: record for record in records}
    speeds = {record["folder"]: record for record in read_speeds()}
    curve = read_run(ROOT / "results" / CURVES).curve
    analyzed = [by_folder[name] for name in ANALYSES]
    analyses, names = [read_analysis(record) for record in analyzed], [record.result["network"] for record in analyzed]
    drawn_curves = curves(curve, by_folder[CURVES].recipe.schedule.lr_drop_epochs)
    drawn_errors, drawn_times, drawn_blocks = draw_errors(records), draw_times(speeds[FIGURE4]), blocks(analyses, names)
    regions: dict[str, Callable[[], str]] = {
        "stages": stages,
        "types": types,
        "depths": depths,
        "arithmetic": arithmetic,
        "errors": lambda: show_errors(drawn_errors, records),
        "times": lambda: show_times(drawn_times, speeds[FIGURE4], speeds[FIGURE4_GPU], speeds[GPU]),
        "recipe": show_recipe,
        "curves": lambda: show_curves(drawn_curves, by_folder[CURVES]),
        "dropout": dropout,
        "reuse": lambda: show_reuse(drawn_blocks, analyses, names),
    }
    text = PAGE.read_text()
    for name, write in regions.items():
        text = between(text, f"<!-- {name}: made by tools/the_paper.py -->", f"<!-- end of {name} -->", write())
    pages = {PAGE: text}
    for drawing in (drawn_curves, drawn_errors, drawn_times, *drawn_blocks):
        path = FIGURES / f"{drawing.name}.svg"
        is_current = "--check" in sys.argv[1:] and path.is_file() and drawing.mark in path.read_text()
        pages[path] = path.read_text() if is_current else drawing.svg()
    return write_or_check(pages, "results/")


if __name__ == "__main__":
    sys.exit(main())
