"""The page of a run and the page that compares several: their records as figures, tables and HTML."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_seconds
from wideresnet.data import Dataset
from wideresnet.report import html
from wideresnet.report.advice import advice_section
from wideresnet.report.blocks import blocks_section
from wideresnet.report.calibration import calibration_section
from wideresnet.report.changes import find_changes, recipe_text
from wideresnet.report.figures import draw_comparison, draw_curves, draw_predictions, to_png
from wideresnet.report.maps import maps_section, read_maps
from wideresnet.report.predictions import kinds_text, mistakes_section, pictures_section, sample_tiles
from wideresnet.report.runs import Predictions, Run, read_ece, read_predictions, read_run
from wideresnet.report.statistics import group_equal, settings_of, settled_differently, summarize, varying
from wideresnet.report.summary import summary_section
from wideresnet.report.text import shell_command
from wideresnet.spec import published as paper
from wideresnet.spec import recipes
from wideresnet.spec.field_results import field_results
from wideresnet.spec.fields import show_value
from wideresnet.spec.files import write_atomic
from wideresnet.spec.recipe import FIELDS, GROUPS
from wideresnet.spec.record import SeedsFolder

TOP5_CLASSES = 50
"""From this number of classes on, five guesses say something; CIFAR-100's and ImageNet's papers give their error."""

_SPLITS = {"test": "the test set", "val": "the held-out training images"}


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote; `predictions` is None if the images are not available."""

    page: Path
    curves: Path
    predictions: Path | None


def write_report(run: str | Path, dataset: Dataset | None = None) -> ReportFiles:
    """Write `curves.png`, `predictions.png` and `report.html` into a run folder.

    Args:
        run: the folder.
        dataset: the data of the run, if it is loaded already.

    An unfinished run only gets its curves. If the data cannot be loaded again, the page has no images and says why.

    Raises:
        UsageError: the folder holds no run, or a run without a finished epoch.
        DataError: a file of the run is damaged.
    """
    read = read_run(Path(run))
    folder = read.folder
    curves, pictures = folder.curves, None
    write_atomic(curves, to_png(draw_curves(read.curve)))
    predictions, dataset, problem = read_predictions(read, dataset)
    changes = _changes(read, dataset)
    body = _headline(read, changes, predictions)
    seeds = SeedsFolder(folder.path.resolve().parent)
    if seeds.is_begun():
        body.append(
            html.link(html.Link("Compare with the other seeds", html.relative_address(folder.report, seeds.page)))
        )
    body += [html.paragraph(note, "note") for note in (*read.notes, problem) if note]
    body += _curves_section(read)
    if predictions is not None and dataset is not None:
        pictures = folder.pictures
        samples = sample_tiles(predictions, dataset.test.images)
        error_pct = 100 * predictions.is_wrong.mean()
        title = f"{read.recipe.network} on {dataset.name}: test error {error_pct:.2f} %"
        write_atomic(
            pictures, to_png(draw_predictions(samples, title, f"a choice, not in proportion: {kinds_text(samples)}"))
        )
        body += pictures_section(predictions, dataset.test.images, samples)
    if predictions is not None:
        num_train = np.bincount(dataset.train.labels, minlength=len(predictions.class_names)) if dataset else None
        if (maps := read_maps(folder, predictions)) is not None:
            body += maps_section(maps, predictions)
        elif folder.weights.is_file():
            draw = shell_command(["wrn", "eval", str(folder.path), "--page", f"{folder.path}-eval.html"])
            body += [html.paragraph("To see which places of an image speak for its class:"), html.command(draw)]
        body += [*mistakes_section(predictions, num_train), *calibration_section(predictions)]
    if read.result is not None:
        body += advice_section(read, changes, predictions, dataset)
    body += [*blocks_section(folder), *_recipe_section(read, changes)]
    body += [html.heading("Environment"), html.facts(_environment(read))]
    write_atomic(folder.report, html.page(f"{read.recipe.network} on {read.data_name}", body))
    return ReportFiles(folder.report, curves, pictures)


def write_comparison(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page about several runs: their curves in one figure, a table of results, medians over seeds.

    Runs are counted together if they only differ in seed and hardware, see `statistics.settings_of`. Runs that have not
    finished are shown but not counted.

    Args:
        runs: two or more run folders.
        out: the page, `.html`; an old one is replaced.

    Returns:
        The page.

    Raises:
        UsageError: there are fewer than two runs, one is given twice, a folder holds no run, or `out` is not `.html`.
        DataError: a file of a run is damaged.
    """
    paths, out = [Path(run) for run in runs], Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"out={out}: the comparison is one page; give a name that ends in .html")
    if len(paths) < 2:
        raise UsageError(
            f"a comparison needs two runs or more, got {len(paths)}; leave out out= for the page of a single run"
        )
    for place, path in enumerate(paths):
        if any(path.resolve() == other.resolve() for other in paths[:place]):
            raise UsageError(f"{path}: given twice; a run must not count twice in a median")
    labels = [path.resolve().name for path in paths]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    read = [read_run(path, label) for path, label in zip(paths, labels, strict=True)]
    unfinished = [run.curve.label for run in read if run.result is None]
    body = [html.title(f"{len(read)} runs", "test error after the last epoch")]
    if unfinished:
        body.append(html.paragraph(f"Not finished, so not counted in any median: {', '.join(unfinished)}.", "note"))
    body += [html.paragraph(text, "note") for text in settled_differently(read)]
    curves = [run.curve for run in read]
    last = ", ".join(f"{curve.label} {curve.error_pct[-1]:.2f} %" for curve in curves if curve.error_pct)
    body += [
        html.heading("Curves"),
        html.picture(
            functools.partial(draw_comparison, curves),
            f"Error, loss and learning rate by epoch of {len(read)} runs. Last error: {last or 'none yet'}.",
        ),
        html.paragraph(
            "Thick lines: on the test set (or on held-out images, if a run holds some out). "
            "Thin lines: training, averaged over the epoch's augmented batches.",
            "muted",
        ),
        *_medians_section(read),
        html.heading("Runs"),
        _runs_table(read, out),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.page(f"{len(read)} runs", body))
    return out


def _changes(run: Run, dataset: Dataset | None = None) -> dict[str, tuple[Any, Any]] | None:
    num_train, asked = len(dataset.train) if dataset else None, run.env.get("asked")
    return find_changes(run.recipe, run.data_name, num_train=num_train, asked=asked if isinstance(asked, list) else ())


def _headline(run: Run, changes: dict[str, Any] | None, predictions: Predictions | None) -> list[str]:
    recipe, result, env = run.recipe, run.result, run.env
    about = f"recipe {recipe_text(recipe, changes)}; seed {recipe.seed}"
    body = [html.title(f"{recipe.network} on {run.data_name}", about)]
    if result is None:
        curve, split = run.curve, _SPLITS[run.curve.split]
        sofar = f"{curve.error_pct[-1]:.2f} %" if curve.error_pct else "-"
        return [
            *body,
            html.headline(sofar, f"error on {split} so far, not the result"),
            html.facts([("epochs", run.progress), ("device", f"{env.get('device', '-')}: {run.processor}")]),
        ]
    num_images, error_pct = result["num_test_images"], result["test_error_pct"]
    num_errors = round(error_pct * num_images / 100)
    about = f"test error after the last epoch: {num_errors:,} of {num_images:,} images"
    pairs = [
        ("data", recipe.data),
        ("parameters", f"{result['params']:,}"),
        ("epochs", f"{result['epochs']:,}"),
        ("test loss (NLL)", f"{result['test_loss']:.4f} nats"),
        ("calibration error (ECE)", "-" if (ece := read_ece(run)) is None else f"{ece:.2f} %"),
        ("time", human_seconds(result["seconds"])),
        ("training speed", f"{result['images_per_s']:,.0f} images/s"),
        ("device", f"{result['device']}: {run.processor}"),
        ("precision", result["precision"]),
        ("peak memory", _peak_memory(result)),
    ]
    if predictions is not None and len(predictions.class_names) >= TOP5_CLASSES:
        pairs.insert(0, ("top-5 error", f"{predictions.top5_error_pct:.2f} %"))
    published = [
        f"{value:.2f} % (Table {row.table}{', dropout' if row.dropout else ''})"
        for row in paper.results(network=recipe.network, family=recipe.family)
        if (value := getattr(row, f"{result['dataset']}_pct", None)) is not None
    ]
    if published:
        pairs.append(("the paper's error", "; ".join(published)))
    others = [
        f"{row.error_pct:g} % ({row.setting}; {row.statistic}; {row.source})"
        for row in field_results(network=recipe.network, data=result["dataset"], recipe=recipe.name)
    ]
    if others:
        pairs.append((f"published, near recipe {recipe.name}", "; ".join(others)))
    plain = summary_section(num_images, num_errors, predictions)
    return [*body, html.headline(f"{error_pct:.2f} %", about), *plain, html.facts(pairs)]


def _peak_memory(result: dict[str, Any]) -> str:
    measured, predicted = result["peak_memory_mib"], result.get("predicted_memory_mib")
    return f"{measured:,.0f} MiB" + ("" if predicted is None else f" (predicted: {predicted:,.0f})")


def _curves_section(run: Run) -> list[str]:
    every = (
        "every epoch" if run.recipe.feed.eval_every == 1 else f"every {run.recipe.feed.eval_every} epochs and the last"
    )
    about = (
        f"Evaluated on {_SPLITS[run.curve.split]} after {every}. Training values are averages over an epoch's "
        "augmented batches, while the weights still change. The legend gives the last values."
    )
    if smoothing := run.recipe.optimizer.label_smoothing:
        about += f" The training loss is for labels smoothed by {smoothing:g}; the other loss is not."
    curve = run.curve
    alt = f"Error, loss and learning rate by epoch. Training error at the end: {curve.train_error_pct[-1]:.2f} %"
    alt += f", error on {_SPLITS[curve.split]}: {curve.error_pct[-1]:.2f} %." if curve.error_pct else "."
    drawing = html.picture(functools.partial(draw_curves, curve), alt)
    return [html.heading("Curves"), drawing, html.paragraph(about, "muted")]


def _environment(run: Run) -> list[tuple[str, str]]:
    return [(name, "-" if value is None else str(value)) for name, value in run.env.items() if name != "asked"]


def _recipe_section(run: Run, changes: dict[str, tuple[Any, Any]] | None) -> list[str]:
    name = run.recipe.name
    if changes:
        one = len(changes) == 1
        about = f"Marked: {len(changes)} field{'s' * (not one)} that differ{'s' * one} from the {name} recipe."
    elif changes is not None:
        about = f"Exactly the {name} recipe."
    elif name in recipes.RECIPES:
        about = "Every field; a recipe depends on the data, which is unknown here, so none is marked."
    else:
        about = f"Every field; {name!r} is not a recipe of this package, so none is marked as changed."
    was = {key: show_value(old) for key, (old, _) in (changes or {}).items()}
    values = run.recipe.values()
    groups = {
        group: [(key, show_value(values[key]), was.get(key), FIELDS[key].metadata["help"]) for key in keys]
        for group, keys in GROUPS.items()
    }
    folder = run.folder
    again = ["wrn", "train", run.recipe.network, "--data", run.recipe.data]
    again += ["--recipe", str(folder.recipe), "--out", f"{folder.path}-again"]
    return [
        html.heading("Run it again"),
        html.command(shell_command(again)),
        html.heading("Recipe"),
        html.paragraph(about, "muted"),
        html.recipe_table(groups),
    ]


def _differences(runs: Sequence[Run]) -> list[str]:
    """For each run, the settings in which the runs that started from the same recipe differ."""
    settings, texts = [settings_of(run.recipe, run.data_name) for run in runs], []
    for own in settings:
        names = varying([other for other in settings if other["recipe"] == own["recipe"]])
        texts.append(
            ", ".join(
                f"{name} {show_value(own[name])}" for name in names if name not in ("network", "data", "init_sha256")
            )
        )
    return [text or "-" for text in texts]


def _medians_section(runs: Sequence[Run]) -> list[str]:
    """The medians of runs that differ only in their seed; nothing if there is only one of each."""
    finished = [(run, differs) for run, differs in zip(runs, _differences(runs), strict=True) if run.result]
    groups = group_equal(finished, lambda pair: settings_of(pair[0].recipe, pair[0].data_name))
    rows = []
    for group in groups:
        first, differs = group[0]
        over = summarize(run.result["test_error_pct"] for run, _ in group if run.result)
        rows.append(
            (
                first.recipe.network,
                first.data_name,
                recipe_text(first.recipe, _changes(first)),
                differs,
                f"{over.median:.2f}",
                f"{over.min:.2f} to {over.max:.2f}" if over.n > 1 else "-",
                over.n,
                ", ".join(str(run.recipe.seed) for run, _ in group),
            )
        )
    if len(groups) == len(finished):
        return []
    header = ("network", "data", "recipe", "where they differ", "median, %", "range, %", "n", "seeds")
    about = "Of the test error after the last epoch; runs with different settings have separate rows."
    return [
        html.heading("Medians over seeds"),
        html.paragraph(about, "muted"),
        html.table("medians over seeds", header, rows, numbers=(4, 5, 6), wrapped=(2, 3)),
    ]


def _runs_table(runs: Sequence[Run], page: Path) -> str:
    rows = []
    for run, differs in zip(runs, _differences(runs), strict=True):
        result, own = run.result or {}, run.folder.report
        label = run.curve.label
        rows.append(
            (
                html.Link(label, html.relative_address(page, own)) if own.is_file() else label,
                f"{result['test_error_pct']:.2f}" if result else "-",
                f"{result['test_loss']:.4f}" if result else "-",
                "-" if (ece := read_ece(run)) is None else f"{ece:.2f}",
                run.recipe.network,
                run.data_name,
                recipe_text(run.recipe, _changes(run)),
                differs,
                run.recipe.seed,
                f"{result['params']:,}" if result else "-",
                run.progress,
                f"{result['images_per_s']:,.0f}" if result else "-",
                run.processor,
            )
        )
    header = ("run", "error, %", "NLL, nats", "ECE, %", "network", "data", "recipe", "where they differ", "seed")
    header += ("parameters", "epochs", "images/s", "device")
    return html.table("runs", header, rows, numbers=(1, 2, 3, 8, 9, 10, 11), wrapped=(6, 7))
