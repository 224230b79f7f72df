"""One flipped bit in any file of a run is an error of one line, or it changes no answer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.inference.evaluate import evaluate_weights
from wideresnet.inference.predict import predict_files
from wideresnet.report.pages import write_report
from wideresnet.report.runs import read_predictions, read_run
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit

NUM_FLIPS = 24
FILES = (
    "model.safetensors", "test_predictions.safetensors", "config.json", "recipe.json", "metrics.jsonl", "result.json",
)  # fmt: skip
TIMES = ("seconds", "images_per_s", "weights")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run beside its data and an image."""
    folder = tmp_path_factory.mktemp("finished")
    random, arrays = np.random.default_rng(0), {}
    for split, num in (("train", 32), ("test", 12)):
        arrays[f"x_{split}"] = random.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % 4
    np.savez(folder / "own.npz", **arrays)
    Image.fromarray(arrays["x_test"][0]).save(folder / "image.png")
    fit(Recipe.flat(network="WRN-10-1", data=str(folder / "own.npz"), epochs=2, batch_size=16, crop_padding=1,
                    device="cpu", precision="fp32", lr_drop_epochs=(2,)), folder / "run")  # fmt: skip
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def evaluate(run: Path, home: Path) -> Any:
    result = evaluate_weights(run, home / "own.npz", device="cpu")
    return {key: value for key, value in result.items() if key not in TIMES and key != "notes"}


def predict(run: Path, home: Path) -> Any:
    return predict_files(run, [home / "image.png"], device="cpu")


def report(run: Path, home: Path) -> Any:
    del home
    read = read_run(run)
    predictions, _, problem = read_predictions(read)
    assert predictions is not None
    arrays = (predictions.labels, predictions.predicted, predictions.probability)
    return read.recipe, read.curve, read.result, [array.tolist() for array in arrays], predictions.class_names, problem


def resume(run: Path, home: Path) -> Any:
    del home
    folder = RunFolder(run)
    return fit(folder.read_recipe(), run, resume=True)


@pytest.mark.parametrize("act", [evaluate, predict, report, resume])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_an_error_or_changes_no_answer(
    finished: Path, run: Path, name: str, act: Callable[[Path, Path], Any]
) -> None:
    expected, content = act(run, finished), (run / name).read_bytes()
    random = np.random.default_rng(len(content))
    for bit in random.choice(8 * len(content), NUM_FLIPS, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (run / name).write_bytes(damaged)
        answer, said = None, ""
        try:
            answer = act(run, finished)
        except WRNError as error:
            said = str(error)
        assert said or answer == expected, f"bit {bit}"
        assert not said or (str(run) in said and "\n" not in said and len(said) < 500 + len(str(run)))


@pytest.mark.parametrize("name", [name for name in FILES if name != "result.json"])
def test_a_changed_file_is_named_with_the_way_to_accept_the_change(finished: Path, run: Path, name: str) -> None:
    if name == "metrics.jsonl":
        (run / name).write_bytes((run / name).read_bytes().replace(b'"train_loss": ', b'"train_loss": 1'))
    else:
        (run / name).write_bytes((run / name).read_bytes() + b" ")
    act = evaluate if name == "model.safetensors" else report
    with pytest.raises(DataError, match=rf"{name}: .*SHA-256.*damaged or changed.*remove 'sha256' from"):
        act(run, finished)


def test_a_record_without_digests_is_reported_with_a_note(run: Path) -> None:
    assert read_run(run).notes == ()
    folder = RunFolder(run)
    text = folder.result.read_text()
    folder.result.write_text(re.sub(r',\s*"sha256": \{[^}]*\}', "", text))
    assert folder.read_result()["epochs"] == 2
    (note,) = read_run(run).notes
    assert "no SHA-256" in note
    assert note in write_report(run).page.read_text().replace("&#x27;", "'")


def test_the_digests_are_those_of_the_files(run: Path) -> None:
    digests = RunFolder(run).digests().values
    assert set(digests) == set(FILES) - {"result.json"}
    for name in digests:
        RunFolder(run).digests().check(run / name, (run / name).read_bytes())


def test_a_folder_of_seeds_is_named_with_one_of_them(finished: Path, run: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    run.rename(seeds / "seed3")
    (seeds / "seeds.json").write_text("{}")
    for act in (evaluate, predict):
        with pytest.raises(UsageError, match=r"holds several seeds; name the folder of one, such as .*seed3"):
            act(seeds, finished)
