"""The page of a run and the page that compares several: their records as figures, tables and HTML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_seconds
from wideresnet.base.metrics import confusion
from wideresnet.data import Dataset
from wideresnet.data.facts import FACTS
from wideresnet.report import html
from wideresnet.report.figures import Tile, draw_curves, draw_predictions, to_png
from wideresnet.report.runs import Predictions, Run, read_predictions, read_run
from wideresnet.report.statistics import group_equal, settings_of, settled_differently, summarize, varying
from wideresnet.spec import published as paper
from wideresnet.spec import recipes
from wideresnet.spec.fields import show_value
from wideresnet.spec.recipe import FIELDS, GROUPS, Recipe
from wideresnet.spec.record import write_atomic

NUM_SAMPLES, NUM_WRONG_SAMPLES = 16, 6
NUM_WORST = 24

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
    body = _headline(read)
    predictions, dataset, problem = read_predictions(read, dataset)
    if problem:
        body.append(html.paragraph(problem, "note"))
    body += _curves_section(read)
    if predictions is not None and dataset is not None:
        pictures = folder.pictures
        chosen = _sample(predictions)
        samples = _tiles(chosen, predictions, dataset)
        num_wrong = sum(tile.is_wrong for tile in samples)
        title = f"{read.recipe.network} on {dataset.name}: {len(samples) - num_wrong} right, {num_wrong} wrong"
        write_atomic(pictures, to_png(draw_predictions(samples, title)))
        body += _pictures_section(predictions, dataset, samples)
    if predictions is not None:
        body += _mistakes_section(predictions)
    body += _recipe_section(read, dataset)
    body += [html.heading("Environment"), html.facts((k, "-" if v is None else str(v)) for k, v in read.env.items())]
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
    body = [f"<h1>{len(read)} runs</h1>"]
    if unfinished:
        body.append(html.paragraph(f"Not finished, so not counted in any median: {', '.join(unfinished)}.", "note"))
    body += [html.paragraph(text, "note") for text in settled_differently(read)]
    body += [
        html.heading("Curves"),
        html.curves_picture([run.curve for run in read]),
        html.paragraph(
            "Thick lines: on the test set (or on held-out images, if a run holds some out). "
            "Thin lines: training, averaged over the epoch's augmented batches.",
            "muted",
        ),
        html.heading("Medians over seeds"),
        html.paragraph(
            "Of the test error after the last epoch; runs with different settings have separate rows.", "muted"
        ),
        _median_table(read),
        html.heading("Runs"),
        _runs_table(read),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.page(f"{len(read)} runs", body))
    return out


def _headline(run: Run) -> list[str]:
    recipe, result, env = run.recipe, run.result, run.env
    body = [html.title(f"{recipe.network} on {run.data_name}", f"{recipe.name} recipe, seed {recipe.seed}")]
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
        ("test loss", f"{result['test_loss']:.4f}"),
        ("time", human_seconds(result["seconds"])),
        ("training speed", f"{result['images_per_s']:,.0f} images/s"),
        ("device", f"{result['device']}: {run.processor}"),
        ("precision", result["precision"]),
        ("peak memory", _peak_memory(result)),
    ]
    published = [
        f"{value:.2f} % (Table {row.table}{', dropout' if row.dropout else ''})"
        for row in paper.results(network=recipe.network, family=recipe.family)
        if (value := getattr(row, f"{result['dataset']}_pct", None)) is not None
    ]
    if published:
        pairs.append(("the paper's error", "; ".join(published)))
    return [*body, html.headline(f"{error_pct:.2f} %", about), html.facts(pairs)]


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
    return [html.heading("Curves"), html.curves_picture([run.curve]), html.paragraph(about, "muted")]


def _sample(predictions: Predictions) -> np.ndarray:
    """Indices of a few correct and wrong predictions, spread evenly over the set."""

    def spread(index: np.ndarray, wanted: int) -> np.ndarray:
        return index[np.linspace(0, len(index) - 1, min(wanted, len(index))).round().astype(int)]

    wrong = spread(np.flatnonzero(predictions.is_wrong), NUM_WRONG_SAMPLES)
    right = spread(np.flatnonzero(~predictions.is_wrong), NUM_SAMPLES - len(wrong))
    return np.sort(np.concatenate([wrong, right]))


def _tiles(index: np.ndarray, predictions: Predictions, dataset: Dataset) -> list[Tile]:
    names = predictions.class_names
    return [
        Tile(
            image=dataset.test.images[i],
            true=names[predictions.labels[i]],
            predicted=names[predictions.predicted[i]],
            probability=float(predictions.probability[i]),
            is_wrong=bool(predictions.is_wrong[i]),
        )
        for i in index
    ]


def _pictures_section(predictions: Predictions, dataset: Dataset, samples: list[Tile]) -> list[str]:
    wrong = np.flatnonzero(predictions.is_wrong)
    worst = wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:NUM_WORST]
    num_wrong = sum(tile.is_wrong for tile in samples)
    about = (
        f"{len(samples) - num_wrong} correct and {num_wrong} wrong predictions, each kind spread evenly over the set; "
        f"of all {len(dataset.test):,} images, {len(wrong):,} are wrong."
    )
    body = [html.heading("Some test images"), html.paragraph(about, "muted"), html.tiles(samples)]
    if len(wrong):
        about = "The wrong predictions with the highest probability; the true class is below the predicted one."
        tiles = html.tiles(_tiles(worst, predictions, dataset))
        body += [html.heading("Worst mistakes"), html.paragraph(about, "muted"), tiles]
    return body


def _mistakes_section(predictions: Predictions) -> list[str]:
    names = predictions.class_names
    matrix = confusion(predictions.labels, predictions.predicted, len(names))
    if not predictions.is_wrong.any():
        return [html.heading("Mistakes"), html.paragraph("None: every test image is classified correctly.")]
    whole = len(names) <= html.MAX_MATRIX_CLASSES
    return [
        html.heading("Confusion matrix" if whole else "Most confused classes"),
        html.confusion_table(matrix, names),
        html.heading("Error by class"),
        html.class_error_bars(matrix, names),
    ]


def _recipe_section(run: Run, dataset: Dataset | None) -> list[str]:
    base, about = _named_recipe(run, dataset)
    changed = recipes.changes_in_record(run.recipe, base) if base else {}
    values = {key: show_value(value) for key, value in run.recipe.values().items()}
    groups = {
        group: [
            (key, values[key], show_value(changed[key][0]) if key in changed else None, FIELDS[key].metadata["help"])
            for key in keys
        ]
        for group, keys in GROUPS.items()
    }
    if base:
        about = (
            f"Marked: {len(changed)} fields that differ from the {run.recipe.name} recipe."
            if changed
            else (f"Exactly the {run.recipe.name} recipe.")
        )
    folder = run.folder
    again = ["wrn", "train", run.recipe.network, "--data", run.recipe.data]
    again += ["--recipe", str(folder.recipe), "--out", f"{folder.path}-again"]
    return [
        html.heading("Run it again"),
        html.command(shlex.join(again)),
        html.heading("Recipe"),
        html.paragraph(about, "muted"),
        html.recipe_table(groups),
    ]


def _named_recipe(run: Run, dataset: Dataset | None) -> tuple[Recipe | None, str]:
    """The named recipe for this network and data; or None, and why it is unknown."""
    recipe, name = run.recipe, run.result["dataset"] if run.result else ""
    num_train = len(dataset.train) if dataset else FACTS[name].num_train if name in FACTS else None
    if recipe.name not in recipes.RECIPES:
        return None, f"Every field; {recipe.name!r} is not a recipe of this package, so none is marked as changed."
    if num_train is None:
        return None, "Every field; a recipe depends on the data, which is unknown here, so none is marked."
    return recipes.base_of(recipe.name, recipe.network, recipe.data, known_as=name, num_train=num_train), ""


def _differences(runs: Sequence[Run]) -> list[str]:
    """For each run, the settings in which the runs that started from the same recipe differ."""
    settings, texts = [settings_of(run.recipe, run.data_name) for run in runs], []
    for own in settings:
        names = varying([other for other in settings if other["recipe"] == own["recipe"]])
        texts.append(", ".join(f"{name} {show_value(own[name])}" for name in names if name not in ("network", "data")))
    return [text or "-" for text in texts]


def _median_table(runs: Sequence[Run]) -> str:
    finished = [(run, differs) for run, differs in zip(runs, _differences(runs), strict=True) if run.result]
    rows = []
    for group in group_equal(finished, lambda pair: settings_of(pair[0].recipe, pair[0].data_name)):
        first, differs = group[0]
        over = summarize(run.result["test_error_pct"] for run, _ in group if run.result)
        rows.append(
            (
                first.recipe.network,
                first.data_name,
                first.recipe.name,
                differs,
                f"{over.median:.2f}",
                f"{over.min:.2f} to {over.max:.2f}" if over.n > 1 else "-",
                over.n,
                ", ".join(str(run.recipe.seed) for run, _ in group),
            )
        )
    header = ("network", "data", "recipe", "where they differ", "median, %", "range, %", "n", "seeds")
    return html.table(header, rows, numbers=(4, 5, 6), wrapped=(3,))


def _runs_table(runs: Sequence[Run]) -> str:
    rows = []
    for run, differs in zip(runs, _differences(runs), strict=True):
        result = run.result or {}
        rows.append(
            (
                run.curve.label,
                run.recipe.network,
                run.data_name,
                run.recipe.name,
                differs,
                run.recipe.seed,
                f"{result['params']:,}" if result else "-",
                run.progress,
                f"{result['test_error_pct']:.2f}" if result else "-",
                f"{result['images_per_s']:,.0f}" if result else "-",
                run.processor,
            )
        )
    header = ("run", "network", "data", "recipe", "where they differ", "seed", "parameters", "epochs")
    header += ("error, %", "images/s", "device")
    return html.table(header, rows, numbers=(5, 6, 7, 8, 9), wrapped=(4,))
