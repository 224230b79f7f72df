"""Small runs with hostile names, and pages as parsed documents."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.spec.recipes import resolve
from wideresnet.training import fit

RECORD = Path(__file__).parent.parent.parent / "results" / "wrn-10-1-digits-paper-seed0"
PREDICTIONS = "test_predictions.safetensors"
HOSTILE = "<script>alert('x')</script> & \"$cat$\""
NAMES = [HOSTILE, "dog", "_owl", "\u65e5\u672c"]


VOID = {"meta", "img", "br", "source", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page; a tag that is not closed in order fails the test."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def pictures(self) -> list[bytes]:
        """The content of every picture in the page."""
        addresses = [a.get("src") or a.get("srcset") or "" for a in self.all("img") + self.all("source")]
        assert all(address.startswith("data:image/") for address in addresses)
        return [base64.b64decode(address.split(",", 1)[1], validate=True) for address in addresses]


def make_data(folder: Path) -> Path:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"class_names": np.array(NAMES)}
    for split, num in (("train", 64), ("test", 40)):
        labels = np.arange(num) % len(NAMES)
        arrays[f"x_{split}"] = random.integers(0, 200, (num, 8, 8, 3), dtype=np.uint8)
        arrays[f"x_{split}"] += (labels * 10).astype(np.uint8)[:, None, None, None]
        arrays[f"y_{split}"] = labels
    path = folder / "pets & <b>.npz"
    np.savez(path, **arrays)
    return path


def train(folder: Path, data: Path, **overrides: Any) -> Path:
    settings = {"epochs": 2, "batch_size": 16, "eval_every": 1, "precision": "fp32", "device": "cpu"} | overrides
    fit(resolve("quick", "WRN-10-1", str(data), settings, known_as="pets", num_train=64), folder)
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
