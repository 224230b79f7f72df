"""Contact sheets: every image once, upright, with its class; names are only text."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wideresnet.base.errors import UsageError
from wideresnet.data.preprocess import Preprocessing
from wideresnet.inference import sheet as sheets
from wideresnet.inference.predict import predict_files
from wideresnet.networks import create
from wideresnet.report.sheet import COLUMNS, ROWS, SIDE_PX, Thumbnail, draw_sheet
from wideresnet.weights.hub import Weights, read_weights, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    network = create("WRN-10-1", 3)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(16, 3, 8, 8))
    write_weights(folder, Weights(network.eval(), Preprocessing("scale"), ("cat", "dog", "owl"), (8, 8)))
    return folder


def thumbnails(monkeypatch: pytest.MonkeyPatch) -> list[list[Thumbnail]]:
    """Collect what is drawn."""
    drawn: list[list[Thumbnail]] = []

    def collect(page: Any, title: str) -> bytes:
        drawn.append(list(page))
        return draw_sheet(page, title)

    monkeypatch.setattr(sheets, "draw_sheet", collect)
    return drawn


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], list[Path]]:
    def make(num: int) -> list[Path]:
        random, files = np.random.default_rng(0), []
        for i in range(num):
            files.append(tmp_path / f"{i}.png")
            Image.fromarray(random.integers(0, 20 + 19 * (i % 12), (10, 14, 3), np.uint8)).save(files[-1])
        return files

    return make


def test_many_images_go_on_several_pages_each_image_once(
    weights: Path, photos: Callable[[int], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, files = thumbnails(monkeypatch), photos(COLUMNS * ROWS + 3)
    answers = predict_files(weights, files)
    written = sheets.write_sheets(tmp_path / "out.png", weights, answers)
    assert written == [tmp_path / "out.png", tmp_path / "out-2.png"]
    assert [len(page) for page in drawn] == [COLUMNS * ROWS, 3]
    assert sorted(each.name for page in drawn for each in page) == sorted(file.name for file in files)
    for path in written:
        with Image.open(path) as picture:
            picture.load()


def test_they_are_sorted_by_class_and_probability_or_as_given(
    weights: Path, photos: Callable[[int], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, files = thumbnails(monkeypatch), photos(12)
    files[3].write_bytes(b"no image")
    answers = predict_files(weights, files, skip_unreadable=True)
    sheets.write_sheets(tmp_path / "a.png", weights, answers)
    sheets.write_sheets(tmp_path / "b.png", weights, answers, order="given")
    by_class, given = drawn
    assert [each.name for each in given] == [file.name for file in files]
    assert given[3].pixels is None
    assert (by_class[-1].name, by_class[-1].line) == ("3.png", "not read")
    known = {Path(answer["file"]).name: answer["predictions"] for answer in answers}
    ranks = [(known[e.name][0]["class"], -known[e.name][0]["probability"]) for e in by_class[:-1]]
    assert ranks == sorted(ranks)
    assert len({name for name, _ in ranks}) > 1
    best = known[by_class[0].name][0]
    assert by_class[0].line == f"{100 * best['probability']:.0f} % {best['class']}"


def test_thumbnails_are_upright_on_white_and_have_the_range_of_16_bits(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = thumbnails(monkeypatch)
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255  # the left half is white
    turned = Image.Exif()
    turned[0x0112] = 6  # stored with its top at the right
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, 1))).save(tmp_path / "a.png", exif=turned)
    Image.fromarray(np.dstack([pixels * 0, np.zeros((20, 40), np.uint8)])).save(tmp_path / "b.png")
    Image.fromarray(np.linspace(0, 4095, 800).reshape(20, 40).astype(np.uint16)).save(tmp_path / "c.png")
    files = [tmp_path / f"{name}.png" for name in "abc"]
    sheets.write_sheets(tmp_path / "out.png", weights, predict_files(weights, files), order="given")
    upright, clear, deep = (each.pixels for each in drawn[0])
    assert upright is not None
    assert clear is not None
    assert deep is not None
    assert upright.shape[1] == 2 * upright.shape[0]
    assert upright[:, :60].min() == 255
    assert upright[:, -60:].max() == 0
    assert clear.min() == 255
    assert (deep.min(), deep.max()) == (0, 255)  # 12 bits


def test_explained_images_are_hot_where_their_class_activation_map_is(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = thumbnails(monkeypatch)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    answers = predict_files(weights, [tmp_path / "a.png"])
    sheets.write_sheets(tmp_path / "out.png", weights, answers, explain=True)
    read = read_weights(weights)
    label = read.class_names.index(answers[0]["predictions"][0]["class"])
    with torch.no_grad():
        batch = read.preprocessing(torch.from_numpy(pixels.copy())[None])
        (activation,) = read.network.class_maps(batch, torch.tensor([[label]]))[0].numpy()
    shown = drawn[0][0].pixels
    assert shown is not None
    side = SIDE_PX // 8 * 8
    assert shown.shape == (side, side, 3)
    heat = (shown[..., 0].astype(int) - shown[..., 2]).clip(0)
    each = side // len(activation)
    hot = heat.reshape(len(activation), each, len(activation), each).mean((1, 3))
    assert np.unravel_index(hot.argmax(), hot.shape) == np.unravel_index(activation.argmax(), hot.shape)
    assert np.corrcoef(hot.ravel(), activation.clip(0).ravel())[0, 1] > 0.9  # it is smoothed


def test_an_exported_model_cannot_be_explained(weights: Path, tmp_path: Path) -> None:
    read = read_weights(weights)
    exported = Weights(read.network, read.preprocessing, read.class_names, (8, 8), precision="int8")
    with pytest.raises(UsageError, match="explain=True: an exported model"):
        sheets.write_sheets(tmp_path / "out.png", exported, [], explain=True)


@pytest.mark.parametrize(
    "name", ["caf\udce9.png", "a\nb\x1b[31m.png", "\u202egpj.exe", "\uffff\U0001f600", "$x^2$", "x" * 5000, ""]
)
def test_any_name_is_drawn(name: str) -> None:
    page = draw_sheet([Thumbnail(np.zeros((3, 2000, 1), np.uint8), name, name), Thumbnail(None, name, name)], name)
    with Image.open(io.BytesIO(page)) as picture:
        assert picture.width < 2000
        picture.load()
