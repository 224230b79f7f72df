"""What a user reads after a typical mistake: whole sentences, of every verb and of the library, in one golden table.

Each command line of `COMMANDS` runs in a folder of its own (see `make_scene`), each expression of `CALLS` in Python.
After a change of words, look at the difference and write the table anew:

    python tests/commands/test_sentences.py --write
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wideresnet
from wideresnet.base.errors import WRNError
from wideresnet.commands.main import main
from wideresnet.spec.recipe import Recipe
from wideresnet.weights import pretrained

GOLDEN = Path(__file__).parent.parent / "golden" / "sentences.json"

COMMANDS = """
wrn fly
wrn trian WRN-16-4
wrn train
wrn train WRN-16-4 --data digits --dropuot 0.3
wrn train WRN-16-4 --data digits --schedule onecycle
wrn train --resume nowhere
wrn train WRN-29-10 --data digits
wrn train WRN-28-1.03 --data digits
wrn train 'WRN-40-2-B(2,3)' --data digits
wrn train WRN-16-4 --data cifar11
wrn train WRN-16-4 --data nowhere/photos
wrn train WRN-16-4 --data empty
wrn train WRN-16-4 --data pets
wrn train WRN-16-4 --data digits --recipe papre
wrn train WRN-16-4 --data digits --recipe part.json
wrn train WRN-16-4 --data digits --recipe unknown.json
wrn train WRN-16-4 --data digits --recipe cut.json
wrn train WRN-16-4 --data digits --epochs 0
wrn train WRN-16-4 --data digits --epochs many
wrn train WRN-16-4 --data digits --batch-size 5000
wrn train WRN-16-4 --data digits --batch-size 8 --accumulate 9
wrn train WRN-16-4 --data digits --dropout 1
wrn train WRN-16-4 --data digits --momentum 0
wrn train WRN-16-4 --data digits --lr-drop-epochs 60,30
wrn train WRN-16-4 --data digits --image-scales 0.5:1
wrn train WRN-16-4 --data digits --image-scales half
wrn train WRN-16-4 --data digits --crop-padding 9
wrn train WRN-16-4 --data digits --freeze conv3
wrn train WRN-16-4 --data digits --freeze head
wrn train WRN-16-4 --data digits --layer-lr-decay 2
wrn train WRN-16-4 --data digits --balance classes
wrn train WRN-16-4 --data digits --time soon
wrn train WRN-16-4 --data digits --time 0
wrn train WRN-16-4 --data digits --from nowhere.pth
wrn train WRN-16-4 --data digits --from torchvision
wrn train WRN-16-4 --data digits --cutout 9
wrn train WRN-16-4 --data digits --auto-augment trivail
wrn train WRN-16-4 --data digits --holdout 1437
wrn train WRN-16-4 --data digits --extra-data
wrn train WRN-16-4 --data digits --kernels winograd --layout contiguous
wrn train WRN-16-4 --data digits --kernels winograd --precision bf16
wrn train WRN-16-4 --data digits --checkpoint-every -1
wrn train WRN-16-4 --data digits --resume
wrn train WRN-16-4 --data digits --resume --out nowhere
wrn train WRN-16-4 --data digits --resume --out begun --overwrite
wrn train --resume --out begun --lr 0.5
wrn train --resume --out begun --seeds 2
wrn train --resume --out limit=3
wrn train WRN-16-4 --data digits --out done
wrn train WRN-16-4 --data digits --out photos
wrn train WRN-16-4 --data digits --out done --overwrite
wrn train WRN-16-4 --data digits --seeds 2 --out done
wrn train WRN-16-4 --data digits --seeds 2 --processes 2
wrn train WRN-16-4 --data digits --seeds 2 --overwrite
wrn train WRN-16-4 --data digits --at-once 2
wrn train WRN-16-4 --data digits --processes 0
wrn train WRN-10-1 --data own.npz --from nowhere
wrn train WRN-10-1 --data own.npz --from begun
wrn train WRN-10-1 --data own.npz --from done --preprocessing scale
wrn train WRN-10-1 --data own.npz --from done --activation silu
wrn train WRN-10-1 --data digits --from wrn-10-1-OWN
wrn train WRN-16-4 --data own.npz --from WRN-10-1-own
wrn train --resume --out begun --from done
wrn check
wrn check nowhere/photos
wrn check pets --out a.png
wrn check own.npz --with nowhere
wrn check pets --class-order alphabet
wrn eval nowhere --data own.npz
wrn eval WRN-10-1-own
wrn eval WRN-10-1-owl --data own.npz
wrn eval done --data digits
wrn eval done --data own.npz --int8 --precision bf16
wrn eval done --limit 0
wrn eval done --page page.txt
wrn eval done done --data own.npz
wrn eval done --ensemble --data own.npz
wrn eval done WRN-10-1-own --ensemble --data digits
wrn eval done --corruptions --page page.txt
wrn eval done --corruptions --csv nowhere/errors.csv
wrn predict nowhere a.png
wrn predict nowhere
wrn predict a.png
wrn predict missing.png
wrn predict empty
wrn predict WRN-10-1-own
wrn predict done missing.png
wrn predict done empty
wrn predict done broken.png
wrn predict done a.png --top 0
wrn predict done a.png --explain
wrn predict done a.png --sheet sheet.jpg
wrn predict done a.png --csv nowhere/a.csv
wrn predict done a.png --int8 --precision bf16
wrn predict done a.png --data own.npz
wrn predict shipped/WRN-10-1-own a.png --int8
wrn predict done a.png --int8 --data digits
wrn predict missing.onnx a.png
wrn predict done/model.pt2 a.png
wrn predict missing.onnx a.png --device cuda
wrn eval missing.onnx --data own.npz --int8
wrn predict missing.onnx a.png --int8
wrn predict missing.onnx a.png --engine openvino
wrn predict done a.png --engine tensorrt
wrn predict done a.png --engine openvino --device cuda
wrn eval done --data own.npz --engine onnxruntime --precision bf16
wrn export done
wrn export done --format tflite
wrn export nowhere --format torch
wrn export done --format torch --int8
wrn export done --format torch --calibrate own.npz
wrn export done --format torch --out model.onnx
wrn export done --format torch --check missing.png
wrn analyze nowhere
wrn analyze pets --data digits
wrn analyze done --data digits
wrn analyze done --limit 3
wrn analyze done done
wrn analyze done --out a.png
wrn info
wrn info --weights nowhere
wrn info WRN-10-1 --weights done
wrn info --weights done --num-classes 3
wrn info WRN-34-2
wrn info WideNet-28-10
wrn info WRN-16-4 --num-classes 0
wrn info WRN-16-4 --input-size 0
wrn detect fly
wrn detect train
wrn detect train runs/x
wrn detect train --backbone WRN-34-2 --data nowhere
wrn detect train --backbone WRN-34-2 --data pets
wrn detect train --backbone WRN-28-10 --data pets
wrn detect train --backbone WRN-34-2 --data pets --recipe tinny
wrn detect train --backbone WRN-34-2 --data pets --norm frozen
wrn detect train --backbone WRN-34-2 --data pets --min-size 900 --max-size 800
wrn detect train --backbone WRN-34-2 --data pets --out done
wrn detect train --resume done
wrn detect train --resume --out nowhere
wrn detect eval nowhere
wrn detect eval done
wrn detect predict done a.png
wrn detect predict nowhere a.png --threshold 2
wrn report nowhere
wrn report done --out page.txt
wrn report done --out page.html
wrn report done done --out page.html
wrn bench train WRN-29-10
wrn bench train WRN-10-1 --against nothing
wrn bench train WRN-10-1 --batch-size many
wrn bench infer WRN-10-1 --repeats 0
wrn train WRN-16-4 --data digits --track mlflow
wrn reproduce table11
wrn reproduce table3 --at-once 0
wrn reproduce table3 --cpus-each 2
wrn reproduce table3 --on rya
wrn cache everything
"""

CALLS = """
Recipe.flat(epoch=3)
Recipe.flat(lr='fast')
Recipe.flat(schedule='cosin')
Recipe.flat(sam_rho=-1)
Recipe.flat(auto_augment='trivial', preprocessing='zca')
Recipe.flat(stochastic_depth=0)
Recipe.flat(dampening=0.1)
Recipe.flat(limit=2.5)
parse('WRN-34-2')
create('WRN-28-10', droput=0.3)
create('WRN-28-10', dropout=2)
create('WRN-28-10', num_classes=0)
Recipe.flat(init_sha256='0123')
load('nowhere')
recipe_for('quik', 'WRN-10-1', 'digits')
corruption_errors('done', corruptions=['gausian_noise'])
corruption_errors('done', limit=0)
fit(own, 'done')
fit(own, 'nowhere', resume=True)
fit(own, 'begun', resume=True)
fit(own.replace(batch_size=100), 'new')
fit(own, 'new', checkpoint_every_s=-1)
fit_seeds(own, 'new', 0)
"""


def make_scene(folder: Path) -> None:
    """Fill a folder with what the command lines name."""
    random = np.random.default_rng(0)
    labels = np.arange(32) % 4
    images = random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "own.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    for name in ("empty", "photos", "limit=3", "begun", *(f"pets/{s}/{c}" for s in ("train", "test") for c in "ab")):
        (folder / name).mkdir(parents=True)
    for path in (folder / "pets").glob("*/*"):
        Image.fromarray(images[0]).save(path / "0.png")
    (folder / "pets/train/a/1.png").write_bytes(b"")
    (folder / "photos/holiday.jpg").write_bytes(b"x")
    (folder / "broken.png").write_bytes(b"x")
    Image.fromarray(images[0]).save(folder / "a.png")
    (folder / "part.json").write_text('{"recipe": "ours", "lr": 0.05}')
    (folder / "unknown.json").write_text('{"recipe": "quick", "epoch": 5}')
    (folder / "cut.json").write_text('{"recipe": "quick"')
    own = Recipe.flat(network="WRN-10-1", data="own.npz", epochs=1, batch_size=8, crop_padding=1, device="cpu")
    wideresnet.fit(own, folder / "done")
    (folder / "done/notes.txt").write_text("mine")
    (folder / "shipped/WRN-10-1-own").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "shipped/WRN-10-1-own" / name).write_bytes((folder / "done" / name).read_bytes())
    (folder / "begun/recipe.json").write_text((folder / "done/recipe.json").read_text().replace("0.1", "0.2"))


def run_command(line: str) -> str:
    """Return the exit code and the one line that a mistake gets."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(shlex.split(line)[1:])
        except SystemExit as leaving:
            code = leaving.code
    assert out.getvalue() == "", line
    assert "Traceback" not in err.getvalue(), line
    (said,) = [text for text in err.getvalue().splitlines() if text.startswith("wrn")]
    return f"exit {code}: {said}"


def call(expression: str, names: dict[str, Any]) -> str:
    """Return the error's class and its sentence."""
    with pytest.raises(WRNError) as caught:
        eval(expression, names)
    assert "\n" not in str(caught.value), expression
    return f"{caught.type.__name__}: {caught.value}"


def collect(folder: Path) -> dict[str, str]:
    """Make every mistake in the folder, which must be empty, as if the package came with a single network."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "FOLDER", Path("shipped"))
        make_scene(Path())
        before = sorted(Path().rglob("*"))
        said = {line: run_command(line) for line in COMMANDS.split("\n") if line}
        own = Recipe.flat(network="WRN-10-1", data="own.npz", batch_size=8, crop_padding=1, device="cpu")
        names = {name: getattr(wideresnet, name) for name in wideresnet.__all__}
        said |= {line: call(line, {**names, "own": own}) for line in CALLS.split("\n") if line}
        assert sorted(Path().rglob("*")) == before  # a mistake leaves nothing behind
    return said


def test_every_mistake_gets_the_sentence_of_the_golden_table(tmp_path: Path) -> None:
    said, golden = collect(tmp_path), json.loads(GOLDEN.read_text())
    assert said.keys() == golden.keys()
    assert {line: text for line, text in said.items() if text != golden[line]} == {
        line: text for line, text in golden.items() if text != said[line]
    }


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WRN_DATA", str(Path(root, "data")))
        patch.setenv("WRN_AUTOTUNE", "off")
        Path(root, "scene").mkdir()
        table = collect(Path(root, "scene"))
    GOLDEN.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(table)} sentences in {GOLDEN}")
