"""The folder of docs/your-own-images.md has what the page says that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toy_photos import CLASSES, NEW_PER_CLASS, make, make_new, photo
from wideresnet.commands.main import main


def test_an_image_follows_from_its_number() -> None:
    assert photo("key", 3).tobytes() == photo("key", 3).tobytes()
    assert photo("key", 3).tobytes() != photo("key", 4).tobytes()


def test_wrn_check_finds_what_is_wrong_with_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "photos", per_class=8)
    assert main(["check", str(tmp_path / "photos"), "--out", str(tmp_path / "found"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    text = json.dumps(found)
    assert all(f"{name}/" in text or f'"{name}"' in text for name in CLASSES)
    assert "key/IMG_1007.jpg" in text
    assert "cup/copy of IMG_1003.jpg" in text
    make_new(tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == NEW_PER_CLASS * len(CLASSES)
