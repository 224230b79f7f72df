"""The pages of runs: complete, true to the record, safe to open."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from page_runs import HOSTILE, NAMES, PREDICTIONS, RECORD, Page, change, train
from PIL import Image
from safetensors.numpy import load_file, save_file

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data import FACTS, load_dataset
from wideresnet.report.figures import heat
from wideresnet.report.pages import write_comparison, write_report
from wideresnet.spec import field_results
from wideresnet.spec.record import RunFolder
from wideresnet.spec.result import metrics_line


def test_a_run_gets_a_page_and_two_pictures(run: Path) -> None:
    files = write_report(run)
    assert files.predictions is not None
    assert (files.page, files.curves) == (run / "report.html", run / "curves.png")
    for path in (files.curves, files.predictions):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 400
    Page(files.page)


def test_the_page_loads_nothing_from_anywhere(run: Path) -> None:
    page = Page(write_report(run).page)
    loading = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "action", "data", "poster", "background")
    ]
    assert loading
    assert all(value and value.startswith("data:image/") for value in loading)
    assert not re.search(r"url\s*\(|@import|https?://", page.source)
    assert {name for name, _ in page.tags} & {"script", "link", "iframe", "object", "form"} == set()
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert policies[0]
    assert "default-src 'none'" in policies[0]
    for picture in page.pictures():  # a heat map holds its pixels
        assert not re.search(rb"""(?:href|src)\s*=\s*["'](?!#|data:image/png)|url\((?!#)|@import""", picture)


def test_names_of_classes_and_files_are_only_text(run: Path) -> None:
    page = Page(write_report(run).page)
    assert "<script" not in page.source
    assert "<b>.npz" not in page.source
    assert HOSTILE in page.text
    assert "pets & <b>.npz" in page.text


def test_the_headline_is_the_last_epochs_error_even_if_an_earlier_one_was_lower(run: Path) -> None:
    records = RunFolder(run).read_metrics()
    records[0]["test_error_pct"] = 1.25
    RunFolder(run).write_metrics(b"".join(map(metrics_line, records)))
    page = Page(write_report(run).page)
    result = RunFolder(run).read_result()
    assert f"{result['test_error_pct']:.2f} %" in page.texts
    wrong = round(result["test_error_pct"] * 40 / 100)
    assert any(f"{wrong} of 40 images" in text for text in page.texts)
    assert "1.25" not in page.text
    assert "best" not in page.text.lower()


def test_the_headline_has_network_data_cost_and_machine(run: Path) -> None:
    text = Page(write_report(run).page).text
    result = RunFolder(run).read_result()
    for wanted in (
        "WRN-10-1 on pets & <b>",
        "recipe quick, epochs 2, eval_every 1, device cpu, precision fp32; seed 0",
        f"{result['params']:,}",
        f"{result['images_per_s']:,.0f} images/s",
        "cpu: ",
        "fp32",
    ):
        assert wanted in text


def test_the_confusion_matrix_counts_every_test_image(run: Path) -> None:
    page = Page(write_report(run).page)
    stored = load_file(run / PREDICTIONS)
    expected = np.zeros((4, 4), int)
    for true, predicted in zip(stored["labels"], stored["logits"].argmax(1), strict=True):
        expected[true, predicted] += 1
    header = next(place for place, row in enumerate(page.rows) if row[0] == "true \\ predicted")
    assert page.rows[header][1:] == NAMES
    matrix = [row[1:] for row in page.rows[header + 1 : header + 5]]
    assert np.array_equal(np.array(matrix, int), expected)


def test_the_worst_mistakes_are_the_most_probable_wrong_predictions_and_show_those_images(run: Path) -> None:
    page = Page(write_report(run).page)
    stored = load_file(run / PREDICTIONS)
    logits, labels = stored["logits"].astype(float), stored["labels"]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    worst = wrong[np.argsort(-probabilities.max(1)[wrong])][:24]
    section = page.text.split("Worst mistakes")[1].split("Confusion matrix")[0]
    shown = [float(number) for number in re.findall(r"(\d+\.\d)\xa0%", section)]
    assert shown == [round(100 * float(p), 1) for p in probabilities.max(1)[worst]]
    with np.load(RunFolder(run).read_recipe().data) as data:
        images = data["x_test"]
    pngs = [p for p in page.pictures() if p.startswith(b"\x89PNG")]
    drawn = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
    assert all(any(np.array_equal(images[i], image) for image in drawn) for i in worst)


def store_predictions(run: Path, labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> None:
    logits = np.eye(num_classes, dtype=np.float32)[predicted] * 9
    save_file({"logits": logits, "labels": labels.astype(np.int64)}, run / PREDICTIONS)


def test_more_than_twenty_classes_are_shown_as_a_picture_and_the_most_confused_pairs(run: Path) -> None:
    labels = np.arange(25).repeat(4)
    predicted = labels.copy()
    predicted[:3], predicted[4] = 7, 8
    store_predictions(run, labels, predicted, 25)
    page = Page(write_report(run).page)
    header = page.rows.index(["true", "taken for", "images", "of the class, %"])
    assert page.rows[header + 1 : header + 3] == [["0", "7", "3", "75.0"], ["1", "8", "1", "25.0"]]
    assert "true \\ predicted" not in page.text
    assert [a["alt"] for a in page.all("img") if "Confusion matrix of 25 classes" in (a["alt"] or "")]
    assert "top-5" not in page.text


def test_a_hundred_classes_get_their_top_5_error_and_those_of_cifar100_their_superclasses(run: Path) -> None:
    names = FACTS["cifar100"].class_names
    change(run / "config.json", class_names=names)
    labels, predicted = np.arange(100).repeat(2), np.arange(100).repeat(2)
    predicted[0] = names.index("pear")  # an apple: both are fruit
    predicted[2] = names.index("boy")  # an aquarium fish
    predicted[4] = names.index("lion")  # a baby
    store_predictions(run, labels, predicted, 100)
    page = Page(write_report(run).page)
    assert "top-5 error" in page.texts
    assert "20 superclasses: of 3 mistakes 1 (33 %) stay within one" in page.text
    assert any(b"household furniture" in picture for picture in page.pictures())


def test_bars_of_errors_end_at_a_round_number(run: Path) -> None:
    labels = np.arange(4).repeat(50)
    predicted = labels.copy()
    predicted[:6] = 1  # 12 % of class 0
    store_predictions(run, labels, predicted, 4)
    page = Page(write_report(run).page)
    assert "A full bar is 20 %." in page.text
    assert 'style="width: 60.0%"' in page.source


def test_the_pictures_of_predictions_say_that_they_are_a_choice_and_what_the_error_is(run: Path) -> None:
    labels = np.arange(40) % 4
    predicted = (labels + 1) % 4
    predicted[:3] = labels[:3]
    store_predictions(run, labels, predicted, 4)
    change(run / "result.json", test_error_pct=92.5)
    page = Page(write_report(run).page)
    assert "A choice, not in proportion: 3 correct and 6 wrong predictions" in page.text
    assert "Of all 40 predictions 37 are wrong" in page.text


@pytest.mark.parametrize("name", ["caf\udce9", "\ud83d", "a\x00b\x1b[31m", "\u202ecod.exe", "\uffff", "$x^", "'\"><b>"])
def test_no_class_name_can_keep_a_run_from_its_page(run: Path, name: str) -> None:
    change(run / "config.json", class_names=[name, name + "2", "dog", "cat"])
    page = Page(write_report(run).page)
    assert page.source.count("<b>") == page.source.count("<figcaption><b>")
    assert not re.search("[\x00\x1b\u202e]", page.source)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_a_folder_whose_name_is_not_unicode_gets_its_page_and_its_comparison(run: Path, trained: Path) -> None:
    odd = Path(shutil.copytree(run, os.fsdecode(os.fsencode(run) + b"-caf\xe9")))
    page = Page(write_report(odd).page)
    assert rf"--out $'{run}-caf\xe9-again'" in page.text  # which a shell reads as those bytes
    comparison = Page(write_comparison([odd, trained], odd / "page.html"))
    assert r"run-caf\xe9" in comparison.text
    address = next(a["href"] for a in comparison.all("a"))
    assert address == "report.html"


def test_what_the_machine_decided_is_marked_only_if_it_was_asked_for(run: Path) -> None:
    def marked() -> list[str] | None:
        page = Page(write_report(run).page)
        return {row[0]: row[1:3] for row in page.rows if len(row) == 4}.get("precision")

    assert marked() == ["fp32", "recipe: auto"]  # the run was started with precision="fp32"
    change(run / "env.json", asked=[])
    assert marked() == ["fp32", ""]
    change(run / "env.json", asked=7)  # damaged
    assert marked() == ["fp32", ""]


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, contrast ratio of two colors '#rrggbb'."""

    def luminance(color: str) -> float:
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_text_has_the_contrast_that_wcag_asks_for_in_light_and_dark(run: Path) -> None:
    source = write_report(run).page.read_text()
    for theme in re.findall(r":root \{(.*?)\}", source, re.DOTALL):
        colors = dict(re.findall(r"--([a-z-]+): ([^;]+);", theme))
        for ink in ("ink", "muted", "accent", "wrong"):
            for background in ("bg", "soft"):
                assert contrast(colors[ink], colors[background]) >= 4.5, (ink, background, theme)
        for name in ("right-heat", "wrong-heat"):
            strongest, alpha = [int(c) for c in colors[name].split(", ")], float(heat(1.0))
            below = [int(colors["bg"][place : place + 2], 16) for place in (1, 3, 5)]
            cell = [round(alpha * c + (1 - alpha) * b) for c, b in zip(strongest, below, strict=True)]
            assert contrast(colors["ink"], "#" + "".join(f"{c:02x}" for c in cell)) >= 4.5, (name, theme)


def test_a_page_can_be_used_without_eyes_or_a_mouse(run: Path) -> None:
    page = Page(write_report(run).page)
    assert page.all("html") == [{"lang": "en"}]
    headings = [name for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2"}
    assert all(a.get("alt") for a in page.all("img"))
    scrolled = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert scrolled
    assert all(a.get("tabindex") == "0" and a.get("role") == "region" and a.get("aria-label") for a in scrolled)
    assert len(scrolled) == len(page.all("table"))


def test_a_run_without_mistakes_says_so(run: Path) -> None:
    labels = load_file(run / PREDICTIONS)["labels"]
    logits = np.eye(4, dtype=np.float32)[labels] * 9
    save_file({"logits": logits, "labels": labels}, run / PREDICTIONS)
    files = write_report(run)
    page = Page(files.page)
    assert files.predictions is not None
    assert "every test image" in page.text
    assert "Worst mistakes" not in page.text


def test_only_fields_that_differ_from_the_recipe_are_marked(run: Path) -> None:
    page = Page(write_report(run).page)
    fields = {row[0]: row[1:3] for row in page.rows if len(row) == 4 and row[0]}
    assert set(fields) >= RunFolder(run).read_recipe().values().keys()
    marked = {name for name, (_, was) in fields.items() if was}
    assert marked == {"epochs", "eval_every", "device", "precision"}
    assert fields["epochs"] == ["2", "recipe: 200"]


def test_the_page_has_the_command_that_repeats_the_run(run: Path) -> None:
    page = Page(write_report(run).page)
    data = RunFolder(run).read_recipe().data
    assert f"wrn train WRN-10-1 --data '{data}' --recipe {run}/recipe.json --out {run}-again" in page.texts


def test_an_unfinished_run_gets_its_curves_and_says_that_it_is_unfinished(run: Path) -> None:
    for name in ("result.json", PREDICTIONS, "config.json", "model.safetensors"):
        (run / name).unlink()
    change(run / "recipe.json", epochs=9)
    files = write_report(run)
    page = Page(files.page)
    assert files.predictions is None
    assert files.curves.is_file()
    assert "Not finished: 2 of 9" in page.text
    assert "not the result" in page.text
    assert "after the last epoch" not in page.text


def test_an_unfinished_run_without_an_evaluation_gets_a_page(run: Path) -> None:
    (run / "result.json").unlink()
    records = [
        {k: v for k, v in record.items() if not k.startswith("test_")} for record in RunFolder(run).read_metrics()
    ]
    RunFolder(run).write_metrics(b"".join(map(metrics_line, records)))
    assert "not the result" in Page(write_report(run).page).text


def test_without_its_data_a_page_has_no_pictures_and_says_why(run: Path) -> None:
    change(run / "recipe.json", data="/nowhere/pets.npz")
    files = write_report(run)
    page = Page(files.page)
    assert files.predictions is None
    assert re.search(r"No pictures, .*: /nowhere/pets\.npz", page.text)
    assert HOSTILE in page.text  # the confusion matrix stays, with the names that the weights carry


def test_with_other_labels_in_the_data_a_page_has_no_pictures(run: Path) -> None:
    stored = load_file(run / PREDICTIONS)
    save_file({name: array[::-1].copy() for name, array in stored.items()}, run / PREDICTIONS)
    files = write_report(run)
    assert files.predictions is None
    assert "other test images" in Page(files.page).text


def test_a_record_without_predictions_gets_a_page(run: Path) -> None:
    for name in (PREDICTIONS, "model.safetensors", "config.json"):
        (run / name).unlink()
    files = write_report(run)
    assert files.predictions is None
    assert "test_predictions.safetensors is not in" in Page(files.page).text


def test_a_folder_without_a_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        write_report(tmp_path / "nothing")


def test_a_run_without_a_finished_epoch_is_a_usage_error(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="no epoch has finished"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("env.json", "nonsense"),
        ("config.json", "nonsense"),
        ("metrics.jsonl", '{"epoch": 1}\n'),
        (PREDICTIONS, "nonsense"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(name)) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["Infinity", "1e308", "NaN", "1" + 400 * "0"])
@pytest.mark.parametrize("name", ["epoch", "lr", "train_error_pct", "test_loss"])
def test_a_number_that_no_run_measured_is_damage(run: Path, name: str, value: str) -> None:
    path = RunFolder(run).metrics
    path.write_text(re.sub(rf'"{name}": [^,}}]+', f'"{name}": {value}', path.read_text(), count=1))
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        write_report(run)


def test_gray_digits_are_reported_too(tmp_path: Path, make_npz: Callable[..., Path]) -> None:
    folder = train(tmp_path / "gray", make_npz(channels=1), epochs=1, holdout=16)
    files = write_report(folder)
    page = Page(files.page)
    assert files.predictions is not None
    assert "the held-out training images" in page.text


def test_reporting_imports_no_torch(tmp_path: Path) -> None:
    """On a committed record, with predictions and their data, so that every part of the page is drawn."""
    run = Path(shutil.copytree(RECORD, tmp_path / "run"))
    labels = load_dataset("digits").test.labels
    save_file({"logits": np.eye(10, dtype=np.float32)[labels[::-1]], "labels": labels}, run / PREDICTIONS)
    code = (
        "import sys; from wideresnet.commands.main import main; assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    for words in (["report", str(run)], ["report", str(run), str(RECORD), "--out", str(tmp_path / "page.html")]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (run / "predictions.png").is_file()


def test_a_page_names_published_errors_that_are_near_its_network_data_and_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = field_results.FieldResult("WRN-10-1", "digits", "paper", 4.2, "just so", "mean of 5", "Somebody 2020")
    far = [dataclasses.replace(near, error_pct=9.9, **other) for other in ({"recipe": "sam"}, {"network": "WRN-16-1"})]
    monkeypatch.setattr(field_results, "FIELD_RESULTS", (near, *far))
    shutil.copytree(RECORD, tmp_path / "run")
    text = Page(write_report(tmp_path / "run").page).text
    assert "published, near recipe paper" in text
    assert "4.2 % (just so; mean of 5; Somebody 2020)" in text
    assert "9.9 %" not in text
