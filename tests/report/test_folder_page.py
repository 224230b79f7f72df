"""The page of a run on a folder of one's own images, from the folder to each part of the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from page_runs import Page, train
from PIL import Image

from wideresnet.inference.evaluate import prepare
from wideresnet.inference.page import measure_and_draw
from wideresnet.spec.record import RunFolder

CLASSES = {"apple": 20, "pear": 20, "plum": 10}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    for place, (name, num) in enumerate(CLASSES.items()):
        for split, share in (("train", num * 4 // 5), ("test", num // 5)):
            (folder / "fruit" / split / name).mkdir(parents=True)
            for i in range(share):
                pixels = random.integers(0, 120, (24, 30, 3), np.uint8)
                pixels[4:12, 4:12, place] = 250
                Image.fromarray(pixels).save(folder / "fruit" / split / name / f"{i}.png")
    copy = folder / "fruit" / "test" / "plum" / "0.png"
    copy.write_bytes((folder / "fruit" / "train" / "plum" / "3.png").read_bytes())
    return train(folder / "run", folder / "fruit", image_size=12, epochs=1)


def test_the_page_has_every_part(run: Path) -> None:
    page = Page(run / "report.html")
    headings = re.findall(r"<h2>(.*?)</h2>", page.source)
    assert [text for text in headings if text not in ("Worst mistakes", "Mistakes")] == [
        "Curves", "Some test images", "Where the network looks", "Confusion matrix", "Class by class", "Calibration",
        "What to try next", "Run it again", "Recipe", "Environment",
    ]  # fmt: skip
    assert re.search(r"Of 100 new images like the test images, about \d+ are classified right", page.text)
    assert "10 test images" in page.text
    assert ["class", "error", "recall, %", "precision, %", "F1, %", "test images", "training images"] in page.rows
    rows = {row[0]: row[-2:] for row in page.rows if row[0] in CLASSES and len(row) == 7}
    assert rows == {"apple": ["4", "16"], "pear": ["4", "16"], "plum": ["2", "8"]}
    data = RunFolder(run).read_recipe().data
    assert "1 test image of 10 is also in the training set" in page.text
    assert f"wrn check {data}" in page.texts
    assert "The network sees images of 12 px; the shorter side of the files has a median of 24 px." in page.text
    assert "expected calibration error" in page.text


def test_it_is_one_small_file_without_an_address_of_anything_else(run: Path) -> None:
    source = (run / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\(", source)
    assert len(source) < 2_000_000


def test_weights_on_a_test_set_get_a_page_with_the_same_parts(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    result = measure_and_draw(prepare(run, device="cpu"), out)
    page, own = Page(out), Page(run / "report.html")
    assert result["page"] == str(out)
    assert result["error_pct"] == RunFolder(run).read_result()["test_error_pct"]
    for part in ("Some test images", "Where the network looks", "Confusion matrix", "Class by class", "Calibration"):
        assert f"<h2>{part}</h2>" in page.source
    lead = re.search(r"Of 100 new images.*?\.", own.text)
    assert lead
    assert lead[0] in page.text
    assert not re.search(r"https?:|@import|url\(", page.source)
