"""Write the results tables of README.md and docs/results.md from the committed records in results/, and the table of
recipes of docs/guide.md.

python tools/results.py           write them
python tools/results.py --check   exit 1 if they are not what the records say
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import ROOT, between, write_or_check
from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.format import human_count, human_seconds
from wideresnet.data import FACTS
from wideresnet.report.changes import find_changes, recipe_text
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.report.reproduction import markdown
from wideresnet.report.statistics import group_equal, settings_of, summarize
from wideresnet.spec import published
from wideresnet.spec.exhibits import EXHIBITS
from wideresnet.spec.field_results import field_results
from wideresnet.spec.files import read_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import RECIPES, resolve
from wideresnet.spec.record import RunFolder

BEGIN, END = "<!-- results: made by tools/results.py -->", "<!-- end of results -->"
RECIPES_BEGIN, RECIPES_END = "<!-- recipes: made by tools/results.py -->", "<!-- end of recipes -->"
REPRODUCED = "results/reproduce"
"""Where the records of `wrn reproduce` are."""
PUBLISHED_BEGIN, PUBLISHED_END = "<!-- published: made by tools/results.py -->", "<!-- end of published -->"
RECIPE_EXAMPLES = (("cifar10", 50_000), ("svhn", 604_388), ("your own", 1_000))
"""(data, number of training images) for the table of recipes."""


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: relative to the project's folder.
        recipe, result, env: what `recipe.json`, `result.json` and `env.json` hold.
        metrics: what `metrics.jsonl` holds, by epoch.
    """

    folder: str
    recipe: Recipe
    result: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]


def read_records(root: Path = ROOT, where: str = "results") -> list[Record]:
    """Read every finished run in a folder, in the order of their names."""
    folders = [RunFolder(path.parent) for path in sorted((root / where).glob("*/result.json"))]
    return [
        Record(
            folder=folder.path.relative_to(root).as_posix(),
            recipe=folder.read_recipe(),
            result=folder.read_result(),
            env=read_json(folder.env),
            metrics=folder.read_metrics(),
        )
        for folder in folders
    ]


def summary(records: list[Record], prefix: str = "") -> str:
    """Write one row for all seeds of a recipe on the same hardware.

    Args:
        records: the runs.
        prefix: the way from the page to the project's folder, for links.
    """
    rows = [
        "| network | data | recipe | epochs | parameters | test error, last epoch | images/s | time | on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in group_equal(records, repeated):
        first, results = group[0], [record.result for record in group]
        cells = (
            first.result["network"],
            first.result["dataset"],
            f"[{first.result['recipe']}]({prefix}{first.folder}/recipe.json){changes(first)}",
            first.result["epochs"],
            human_count(first.result["params"]),
            error([result["test_error_pct"] for result in results], [result["seed"] for result in results]),
            f"{summarize(result['images_per_s'] for result in results).median:,.0f}",
            human_seconds(summarize(result["seconds"] for result in results).median),
            hardware(first),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    num_machines = len({hardware_text(record.env) for record in records})
    if num_machines > 1:
        kinds = f"{num_machines} kinds of machines, see the last column"
        rows.append(f"\nThe rows come from {kinds}: speeds and times compare only within one.")
    return "\n".join(rows)


def fine_tuning(records: list[Record]) -> list[str]:
    """Write what trained weights are worth on a small set of another kind, a row for all seeds of a recipe."""
    rows = [
        "| network | data | starts from | recipe | test images | test error, last epoch | NLL, nats | ECE, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in group_equal(records, repeated):
        first, results = group[0], [record.result for record in group]
        loss, ece = (summarize(result[key] for result in results).mean for key in ("test_loss", "test_ece_pct"))
        cells = (
            first.result["network"],
            first.result["dataset"],
            first.recipe.init_from or "random weights",
            f"[{first.result['recipe']}](../{first.folder}/recipe.json), {first.result['epochs']} epochs",
            first.result["num_test_images"],
            error([result["test_error_pct"] for result in results], [result["seed"] for result in results]),
            f"{loss:.3f}",
            f"{ece:.2f}",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    about = (
        "coco-crops are objects of 160 photographs of COCO, cut out by `tools/coco_crops.py` and scaled to 32 px: 610 "
        "to train on and 191 of other photographs. Two fifths of them are persons, one of 16 classes. With so few "
        "images and seeds, differences of several points mean nothing."
    )
    return ["## Fine-tuning", about, "\n".join(rows)]


def repeated(record: Record) -> dict[str, Any]:
    """Collect what runs that share a row have in common: everything but the seed, and the hardware for the times."""
    return {**settings_of(record.recipe, record.result["dataset"]), "hardware": hardware(record)}


def error(percents: list[float], seeds: list[int]) -> str:
    """Write the test error of one run with its seed, or the mean of several with their standard deviation and each."""
    over = summarize(percents)
    if over.std is None:
        return f"{over.mean:.2f} % (seed {seeds[0]})"
    each = ", ".join(f"{percent:.2f}" for percent in percents)
    return f"{over.mean:.2f} ± {over.std:.2f} % (mean of {over.n} seeds: {each})"


def changes(record: Record) -> str:
    """Name what was overridden in the recipe, if anything, as a run's page does."""
    found = find_changes(record.recipe, record.result["dataset"], asked=record.env.get("asked", ()))
    return recipe_text(record.recipe, found).removeprefix(record.recipe.name)


def command(record: Record) -> str:
    """Write the command that made a record, with the name of a published set in the place of that machine's path."""
    words, facts = shlex.split(record.env["command"]), FACTS.get(record.result["dataset"])
    if facts and "--data" in words:
        words[words.index("--data") + 1] = facts.name
    return shlex.join(words)


def recipes_table() -> str:
    """Write what each named recipe means in numbers, for WRN-16-2 and a few sets."""
    rows = [
        "| recipe | data | training images | epochs | batch | steps | learning rate | image sizes | evaluated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in RECIPES:
        for data, num_train in RECIPE_EXAMPLES:
            known_as = data if data in FACTS else ""
            recipe = resolve(name, "WRN-16-2", data, known_as=known_as, num_train=num_train)
            schedule, feed = recipe.schedule, recipe.feed
            rate = f"{schedule.lr:g}, x {schedule.lr_drop_factor:g} at {', '.join(map(str, schedule.lr_drop_epochs))}"
            if schedule.kind == "cosine":
                rate = f"{schedule.lr:g} to 0, half a cosine"
                if schedule.warmup_fraction:
                    rate += f" after {100 * schedule.warmup_fraction:g} % of the run from 0"
            elif schedule.kind == "one_cycle":
                rate = f"0 to {schedule.lr:g} in {100 * schedule.warmup_fraction:g} % of the run, then to 0"
            batches = num_train // schedule.batch_size if feed.drop_last else ceil_div(num_train, schedule.batch_size)
            sizes = [
                f"{100 * scale:g} % from epoch {first_epoch(start, schedule.epochs)}"
                for start, scale in feed.image_scales
            ]
            cells = (
                name,
                data,
                f"{num_train:,}",
                schedule.epochs,
                schedule.batch_size,
                f"{schedule.epochs * batches:,}",
                rate,
                ", ".join(sizes) if len(sizes) > 1 else "100 %",
                "every epoch" if feed.eval_every == 1 else f"every {feed.eval_every} epochs",
            )
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def published_table() -> str:
    """Write what others have published for WRN-28-10, with the paper's figures first."""
    rows = ["| training | nearest recipe | CIFAR-10 | CIFAR-100 | source |", "|---|---|---|---|---|"]
    (own,) = (row for row in published.results(5) if row.network == "WRN-28-10")
    rows.append(f"| the paper's, median of 5 | `paper` | {own.cifar10_pct:.2f} | {own.cifar100_pct:.2f} | Table 5 |")
    found = field_results(network="WRN-28-10")
    for recipe, setting, source in dict.fromkeys((row.recipe, row.setting, row.source) for row in found):
        errors = {row.data: row.error_pct for row in found if (row.recipe, row.setting) == (recipe, setting)}
        cells = (
            setting,
            f"`{recipe}`" if recipe else "-",
            errors.get("cifar10", "-"),
            errors.get("cifar100", "-"),
            source,
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def first_epoch(start: float, num_epochs: int) -> int:
    """Return the first epoch, counted from 1, that begins when this share of the run is over."""
    return math.ceil(start * num_epochs - 1e-9) + 1


def hardware(record: Record) -> str:
    """Name what the run ran on, in which precision and with which PyTorch."""
    return f"{hardware_text(record.env)}, {record.result['precision']}, {torch_text(record.env)}"


def details(records: list[Record]) -> str:
    """Write the page docs/results.md: the table, and each run epoch by epoch."""
    tuned = read_records(where="results/finetune")
    parts = [
        "# Results",
        "Made from the records in `results/` by `tools/results.py`. The result of a run is its last epoch, never its "
        "best one. `images/s` is training alone; `time` includes evaluation; of several seeds both are medians.",
        summary(records, "../"),
        *(fine_tuning(tuned) if tuned else ()),
        *exhibits(),
    ]
    for record in records:
        result = record.result
        what = f"{result['recipe']}{changes(record)}, seed {result['seed']}"
        parts.append(f"## {result['network']}, {result['dataset']}, {what}")
        parts.append(f"`{command(record)}`")
        rows = [
            "| epoch | lr at its end | images scaled by | train loss | train error % | test error % |",
            "|---|---|---|---|---|---|",
        ]
        for epoch in record.metrics:
            test = f"{epoch['test_error_pct']:.2f}" if "test_error_pct" in epoch else ""
            rows.append(
                f"| {epoch['epoch']} | {epoch['lr']:.4g} | {epoch['image_scale']:g} | {epoch['train_loss']:.3f} "
                f"| {epoch['train_error_pct']:.2f} | {test} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def exhibits(root: Path = ROOT) -> list[str]:
    """Write what has been run of each table and figure of the paper, and what has not.

    The documents are those that `wrn reproduce --out results/reproduce` has left, see `experiments.collect`.
    """
    documents = [read_json(path) for path in sorted((root / REPRODUCED).glob("*.json")) if is_document(path)]
    rows = ["| of the paper | what it shows | run here |", "|---|---|---|"]
    for each in EXHIBITS:
        own = [document for document in documents if document["exhibit"]["name"] == each.name]
        done = [f"{run_text(document)} ([below](#{anchor(document)}))" for document in own]
        if each.name == "figure4":
            done = ["[times on a CPU](speed.md)"]
        rows.append(f"| {each.name} | {each.title} | {', '.join(done) or 'not run'} |")
    parts = ["## The paper's tables and figures", "`wrn reproduce` runs them.", "\n".join(rows)]
    for document in documents:
        parts += [f"### {heading(document)}", markdown(document).strip()]
        for path in sorted((root / REPRODUCED).glob(f"{document['name']}-*.svg")):
            parts.append(f"![{path.stem}](../{REPRODUCED}/{path.name})")
    return parts


def is_document(path: Path) -> bool:
    """Tell the document of an exhibit from the intent of a run, which is named after its run."""
    return "exhibit" in read_json(path)


def heading(document: dict[str, Any]) -> str:
    """Name a document."""
    return f"{document['exhibit']['label']}, {document['scaled_down'] or 'as in the paper'}"


def anchor(document: dict[str, Any]) -> str:
    """Return the name that GitHub gives to the heading of a document."""
    return re.sub(r"[^\w -]", "", heading(document).lower()).replace(" ", "-")


def run_text(document: dict[str, Any]) -> str:
    """Say how much of an exhibit has been run, and how."""
    runs = [run for cell in document["cells"] for run in cell["runs"]]
    ended = sum(run["state"] in ("finished", "failed") for run in runs)
    return f"{ended} of {len(runs)} runs, {document['scaled_down'] or 'as in the paper'}"


def main() -> int:
    """Write or check the pages."""
    records, readme, guide = read_records(), ROOT / "README.md", ROOT / "docs" / "guide.md"
    pages = {
        readme: between(readme.read_text(), BEGIN, END, summary(records)),
        ROOT / "docs" / "results.md": details(records),
        guide: between(
            between(guide.read_text(), RECIPES_BEGIN, RECIPES_END, recipes_table()),
            PUBLISHED_BEGIN,
            PUBLISHED_END,
            published_table(),
        ),
    }
    return write_or_check(pages, "results/")


if __name__ == "__main__":
    sys.exit(main())
