"""Add networks to those that come with the package, and write their model cards from what was measured.

python tools/pretrained.py add RUN... --data D   write src/wideresnet/pretrained/NAME/ from finished runs of wrn train
python tools/pretrained.py corrupt NAME --data D  measure it on corrupted test images, for its card
python tools/pretrained.py                       write each README.md and picture again from its card.json
python tools/pretrained.py --check               exit 1 if a README.md or a digest is not what card.json says

The first RUN is the one that is shipped, and must be the one of seed 0: runs are not chosen by their test errors. The
other runs, further seeds or recipes that were tried to their end, are listed in the card. A folder of several seeds
stands for its runs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from model_card import readme
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import human_bytes
from wideresnet.base.metrics import Calibration, calibration
from wideresnet.commands.translate import RENAMED, to_flags
from wideresnet.data import FACTS
from wideresnet.inference.corruptions import corruption_errors
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.machine.description import describe
from wideresnet.report.calibration import draw_calibration
from wideresnet.report.changes import find_changes, recipe_text
from wideresnet.report.environment import hardware_text, torch_text
from wideresnet.report.figures import to_svg
from wideresnet.report.text import shell_command
from wideresnet.spec.fields import show_value
from wideresnet.spec.files import digest, read_file, read_json, write_atomic, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import MODEL, RunFolder, SeedsFolder
from wideresnet.weights import pretrained
from wideresnet.weights.hub import read_weights, write_weights
from wideresnet.weights.pretrained import CARD, list_pretrained, shipped_name

README, RELIABILITY = "README.md", "reliability.svg"

LIMIT_BYTES = 12_000_000
"""Of all networks together, so that the package stays a small download. This package's choice."""

MAX_CHANGE_PCT = 0.5
"""By how much the test error measured here may differ from the run's, in points of percent: another device or precision
changes it by less, other test images by more. This package's choice."""

NAME = re.compile(r"[A-Za-z0-9][\w.(),-]*")

PATH = re.compile(r"(^|[\s=:'\"])(~|\.{0,2}[/\\]\w|[A-Za-z]:[/\\])")
"""How a path of somebody's machine begins."""


def add(runs: Sequence[Path], data: str, name: str | None = None) -> Path:
    """Write the folder of a network that comes with the package.

    Args:
        runs: run folders, or folders of several seeds; the first run, of seed 0, is the one that is shipped.
        data: as for `load_dataset`, where the data set of the runs is; all of its test images are used.
        name: of the network for users; None for network and data set, as in "WRN-16-4-cifar10".

    Returns:
        The folder, which is replaced if it exists.

    Raises:
        UsageError: runs that have not finished or do not belong together, other data, or too many bytes.
        DataError: the files of a run are damaged.
    """
    folders = [run for path in runs for run in _expanded(path)]
    shipped, trained = folders[0], [f"{run.read_recipe().network}-{run.read_result()['dataset']}" for run in folders]
    if (seed := shipped.read_recipe().seed) != 0:
        raise UsageError(f"{shipped.path}: has seed {seed}; give the run of seed 0 first, which is the shipped one")
    for run, what in zip(folders, trained, strict=True):
        if what != trained[0]:
            raise UsageError(f"{run.path}: is {what}, and {shipped.path} is {trained[0]}; give runs of one of them")
    name = name or trained[0]
    if not NAME.fullmatch(name):
        raise UsageError(f"name={name}: must be letters, digits and . _ - ( ) and comma; choose another name=")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, name)
        made.mkdir()
        digests = write_weights(made, read_weights(shipped.path), half=True)
        card = _card(name, made, digests, folders, data)
        write_json(made / CARD, card)
        write_pages(made)
        target = pretrained.FOLDER / name
        others = sum(_size(pretrained.FOLDER / other) for other in list_pretrained() if other != name)
        if others + _size(made) > LIMIT_BYTES:
            raise UsageError(
                f"{name}: {human_bytes(_size(made))}, with {human_bytes(others)} of the other networks more than "
                f"{human_bytes(LIMIT_BYTES)}; remove one of them"
            )
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)
    return target


def corrupt(name: str, data: str, limit: int | None = None) -> None:
    """Measure a network that comes with the package on corrupted test images, and write that into its card.

    Args:
        name: of the network.
        data: as for `load_dataset`.
        limit: number of test images, spread evenly over the set; None for all.
    """
    folder = pretrained.FOLDER / name
    found, card = corruption_errors(folder, data, limit=limit, device="cpu", precision="fp32"), read_json(folder / CARD)
    errors = {kind: [round(error, 3) for error in each] for kind, each in found["corruptions"].items()}
    card["corruptions"] = {
        "num_images": found["clean"]["num_images"], "clean": found["clean"]["error_pct"],
        "mean": round(found["mean_error_pct"], 3), "mean_nll": round(found["mean_loss"], 5),
        "mean_ece_pct": round(found["mean_ece_pct"], 3), **errors,
    }  # fmt: skip
    write_json(folder / CARD, card)
    write_pages(folder)


def write_pages(folder: Path) -> None:
    """Write the README.md of a network's folder and its picture from its card.json."""
    card = read_json(folder / CARD)
    write_atomic(folder / README, readme(card).encode())
    bins = Calibration(*(np.array(values, float) for values in card["reliability"].values()))
    write_atomic(folder / RELIABILITY, to_svg(draw_calibration(bins)))


def _reliability(run: RunFolder) -> dict[str, list[float | None]]:
    """Sort a run's predictions on the test images into bins, see `Calibration`; None where there is no image."""
    tensors = load_file(run.predictions)
    probability, predicted = tensors["logits"].double().softmax(1).max(1)
    bins = calibration(probability.numpy(), (predicted == tensors["labels"]).numpy())
    return {
        "num_images": bins.num_images.tolist(),
        "accuracy": [None if np.isnan(value) else round(float(value), 6) for value in bins.accuracy],
        "confidence": [None if np.isnan(value) else round(float(value), 6) for value in bins.confidence],
    }


def _expanded(path: Path) -> list[RunFolder]:
    """Return the run of a folder, or its runs if it holds several seeds; all must have finished."""
    runs = SeedsFolder(path).runs() if SeedsFolder(path).is_begun() else [RunFolder(path)]
    for run in runs:
        if not (run.is_run() and run.result.is_file()):
            raise UsageError(f"{run.path}: no finished run; name the folder of a wrn train that has ended")
    return runs


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _card(name: str, made: Path, digests: dict[str, str], runs: Sequence[RunFolder], data: str) -> dict[str, Any]:
    """Measure the weights of the first run in 32, 16 and 8 bits, and collect what the runs have recorded."""
    shipped, weights = runs[0], read_weights(made)
    result = shipped.read_result()
    recipe, changes = _read_recipe(shipped)
    measured = {
        "fp32": evaluate_weights(shipped.path, data, device="cpu", precision="fp32"),
        "fp16": evaluate_weights(made, data, device="cpu", precision="fp32"),
        "int8": evaluate_weights(made, data, int8=True),
    }
    here = measured["fp32"]
    if (here["dataset"], here["num_images"]) != (result["dataset"], result["num_test_images"]) or (
        abs(here["error_pct"] - result["test_error_pct"]) > MAX_CHANGE_PCT
    ):
        found = f"{here['error_pct']:.2f} % error on {here['num_images']:,} test images of {here['dataset']}"
        wanted = f"{result['test_error_pct']:.2f} % on {result['num_test_images']:,} of {result['dataset']}"
        raise UsageError(f"data={data}: {found}, the run had {wanted}; give the data that it was tested on")
    machine = describe("cpu")
    old = pretrained.FOLDER / name / CARD
    before = read_json(old) if old.is_file() else {}
    is_same = before.get("sha256", {}).get(MODEL) == digests[MODEL]
    return {
        "name": name,
        "network": recipe.network,
        "params": result["params"],
        "dataset": result["dataset"],
        "num_test_images": result["num_test_images"],
        "class_names": list(weights.class_names),
        "input_size": list(weights.input_size),
        "test_error_pct": measured["fp16"]["error_pct"],
        "errors": {
            how: {
                "error_pct": each["error_pct"],
                "num_errors": each["num_errors"],
                "nll": round(each["loss"], 5),
                "ece_pct": round(each["ece_pct"], 3),
            }
            for how, each in measured.items()
        },
        **({"corruptions": before["corruptions"]} if is_same and "corruptions" in before else {}),
        "reliability": _reliability(shipped),
        "seed": recipe.seed,
        "epochs": result["epochs"],
        "recipe_text": recipe_text(recipe, changes),
        "command": None if changes is None else _command(recipe, result["dataset"], changes),
        "recipe": recipe.to_json(),
        "runs": [_run_row(run) for run in runs],
        "bytes": (made / MODEL).stat().st_size,
        "sha256": digests,
        "measured_with": {key: machine[key] for key in ("wideresnet", "torch", "python", "commit")}
        | {"hardware": hardware_text(machine)},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _read_recipe(run: RunFolder) -> tuple[Recipe, dict[str, tuple[Any, Any]] | None]:
    """Return the recipe of a run without paths of its machine, and what was changed in the named recipe."""
    recipe, dataset = run.read_recipe(), run.read_result()["dataset"]
    if recipe.init_from is not None:
        source = shipped_name(recipe.init_from) or Path(recipe.init_from).name
        recipe = recipe.replace(init_from=source, init_sha256=recipe.init_sha256)
    recipe = recipe.replace(data=dataset)
    return recipe, find_changes(recipe, dataset, asked=read_json(run.env).get("asked", ()))


def _run_row(run: RunFolder) -> dict[str, Any]:
    """Collect what a card says of a run."""
    (recipe, changes), result, env = _read_recipe(run), run.read_result(), read_json(run.env)
    return {
        "seed": recipe.seed,
        "recipe_text": recipe_text(recipe, changes),
        "epochs": result["epochs"],
        "test_error_pct": result["test_error_pct"],
        "test_loss": round(result["test_loss"], 5),
        "test_ece_pct": None if (ece := result.get("test_ece_pct")) is None else round(ece, 3),
        "seconds": result["seconds"],
        "device": result["device"],
        "hardware": hardware_text(env),
        "precision": result["precision"],
        "wideresnet": env["wideresnet"],
        "torch": torch_text(env).removeprefix("torch "),
        "date": str(env.get("date", ""))[:10] or None,
    }


def _command(recipe: Recipe, dataset: str, changes: dict[str, tuple[Any, Any]]) -> str:
    """Write the command that trains such a network anywhere."""
    data = dataset if dataset in FACTS else "FOLDER"
    words = ["wrn", "train", recipe.network, "--data", data, "--recipe", recipe.name]
    for key, (_, value) in changes.items():
        flag = RENAMED.get(key, key).replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", show_value(value)]
    return shell_command(words)


def check() -> list[str]:
    """Say what is wrong with the networks that come with the package, one line each."""
    wrong, total = [], 0
    for name in list_pretrained():
        folder = pretrained.FOLDER / name
        card, total = read_json(folder / CARD), total + _size(folder)
        if card["name"] != name:
            wrong.append(f"{name}/{CARD}: is of {card['name']}")
        for file, expected in card["sha256"].items():
            if digest(read_file(folder / file)) != expected:
                wrong.append(f"{name}/{file}: does not match its SHA-256 in {CARD}")
        wrong += [
            f"{name}/{CARD}: {text!r} is a path of somebody's machine" for text in _texts(card) if PATH.search(text)
        ]
        if not (folder / README).is_file() or (folder / README).read_text() != readme(card):
            wrong.append(f"{name}/{README}: is not what {CARD} says; run python tools/pretrained.py")
    if total > LIMIT_BYTES:
        wrong.append(f"{human_bytes(total)} in all, more than {human_bytes(LIMIT_BYTES)}")
    return wrong


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a document of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def main(argv: Sequence[str] | None = None) -> int:
    """Add a network, or write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and exit 1 if a file is not what it should be"
    )
    verbs = parser.add_subparsers(dest="verb")
    adding = verbs.add_parser("add", help="add a network")
    adding.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="finished runs; the first, of seed 0, is shipped"
    )
    adding.add_argument("--data", required=True, help="where the data set of the runs is")
    adding.add_argument("--name", help="for users (network and data set, as in WRN-16-4-cifar10)")
    corrupting = verbs.add_parser("corrupt", help="measure a network on corrupted test images")
    corrupting.add_argument("name", metavar="NAME", help="of a network that comes with the package")
    corrupting.add_argument("--data", required=True, help="its data set")
    corrupting.add_argument("--limit", type=int, help="test images, spread evenly over the set (all)")
    args = parser.parse_args(argv)
    try:
        if args.verb == "add":
            print(f"wrote {add(args.runs, args.data, args.name)}")
        elif args.verb == "corrupt":
            corrupt(args.name, args.data, args.limit)
        elif not args.check:
            for name in list_pretrained():
                write_pages(pretrained.FOLDER / name)
        for complaint in (wrong := check()):
            print(complaint, file=sys.stderr)
        return 1 if wrong else 0
    except WRNError as error:
        print(f"pretrained: {to_flags(str(error), ('data', 'name'))}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
