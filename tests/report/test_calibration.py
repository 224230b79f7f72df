"""The calibration of a run on its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from page_runs import PREDICTIONS, Page
from safetensors.numpy import load_file, save_file

from wideresnet.base.metrics import expected_calibration_error
from wideresnet.report.pages import write_report
from wideresnet.spec.record import RunFolder


def fact(page: Page, name: str) -> str:
    return page.texts[page.texts.index(name) + 1]


def test_the_page_has_likelihood_and_calibration_and_draws_the_latter(run: Path) -> None:
    page = Page(write_report(run).page)
    result = RunFolder(run).read_result()
    stored = load_file(run / PREDICTIONS)
    assert result["test_ece_pct"] == expected_calibration_error(stored["logits"], stored["labels"])
    assert fact(page, "test loss (NLL)") == f"{result['test_loss']:.4f} nats"
    assert fact(page, "calibration error (ECE)") == f"{result['test_ece_pct']:.2f} %"
    assert f"expected calibration error (ECE), {result['test_ece_pct']:.2f} %" in page.text
    assert any("Reliability diagram" in (a["alt"] or "") for a in page.all("img"))


def test_the_page_says_whether_a_network_is_overconfident(run: Path) -> None:
    labels = np.arange(40) % 4
    for predicted, word in ((labels, "underconfident"), (np.zeros(40, int), "overconfident")):
        logits = np.eye(4, dtype=np.float32)[predicted]
        save_file({"logits": logits, "labels": labels}, run / PREDICTIONS)
        assert f"the network is {word}" in Page(write_report(run).page).text


def test_an_older_record_gets_its_calibration_from_the_stored_predictions_if_it_has_them(run: Path) -> None:
    folder = RunFolder(run)
    result = folder.read_result()
    ece = f"{result.pop('test_ece_pct'):.2f} %"
    folder.result.write_text(json.dumps(result))
    assert fact(Page(write_report(run).page), "calibration error (ECE)") == ece
    (run / PREDICTIONS).unlink()
    assert fact(Page(write_report(run).page), "calibration error (ECE)") == "-"
