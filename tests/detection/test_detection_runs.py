"""A detector's run from data to page: it learns, resumes after a kill to the same bits, and leaves its record."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_scenes import change, small, write_scenes
from PIL import Image

from wideresnet.base.errors import DataError, UsageError
from wideresnet.commands.main import main
from wideresnet.detection.fit import fit_detection
from wideresnet.detection.predict import detect_files, evaluate_detector
from wideresnet.report.detection import write_detection_report
from wideresnet.spec.detection import DetectionFolder, DetectionRecipe, is_detection, resolve, tiny
from wideresnet.spec.lock import FolderInUse
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted
from wideresnet.training.loop import Diverged

pytest.importorskip("faster_coco_eval")

FLAGS = (
    *(
        "--backbone",
        "WRN-18-0.25",
        "--recipe",
        "tiny",
        "--fpn-channels",
        "16",
        "--anchor-size",
        "8",
        "--batch-size",
        "2",
    ),
    *("--min-size", "64", "--max-size", "96", "--device", "cpu", "--workers", "0", "--threads", "1", "--lr", "0.01"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("runs") / "scenes")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A run that learns the scenes that it is trained on."""
    out = tmp_path_factory.mktemp("learned") / "run"
    recipe = small(
        root, epochs=30, lr_drop_epochs=(25,), lr=0.02, eval_on="train", eval_every=30, warmup_steps=10, regions=32
    )
    fit_detection(recipe, out)
    return out


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_a_detector_learns_a_few_scenes_and_leaves_its_record(learned: Path) -> None:
    folder = DetectionFolder(learned)
    result = folder.read_result()
    assert result["ap50_pct"] > 60, result
    assert result["backbone"] == "WRN-18-0.25"
    assert result["split"] == "train"
    assert result["num_objects"] == 16
    assert is_detection(learned)
    assert folder.read_detection_recipe().norm == "group"
    records = folder.read_metrics()
    assert [record["epoch"] for record in records] == list(range(1, 31))
    assert "ap_pct" in records[-1]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    parts = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
    assert records[0]["train_loss"] == pytest.approx(sum(records[0][part] for part in parts))
    assert not folder.checkpoint.exists()
    again, detections = evaluate_detector(learned, split="train", device="cpu", workers=0)
    assert again["ap_pct"] == result["ap_pct"]
    assert detections == json.loads(folder.detections.read_text())
    assert DetectionRecipe.from_json(json.loads(folder.recipe.read_text())) == folder.read_detection_recipe()


def test_the_tools_for_classifiers_name_the_other_command(learned: Path) -> None:
    with pytest.raises(DataError, match="of a 'detection' run; use wrn detect"):
        RunFolder(learned).read_recipe()


def test_a_classifiers_resume_names_the_other_command_before_there_is_a_result(learned: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text((learned / "recipe.json").read_text())
    with pytest.raises(DataError, match="is the recipe of a detection run; use wrn detect"):
        RunFolder(tmp_path).read_recipe()


def test_saved_detections_have_the_same_map_in_pycocotools(learned: Path, root: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth = coco.COCO(str(root / "annotations" / "instances_train.json"))
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(learned / "detections.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    result = DetectionFolder(learned).read_result()
    for place, name in enumerate(("ap_pct", "ap50_pct", "ap75_pct")):
        assert result[name] == pytest.approx(100 * evaluation.stats[place], abs=1e-6)


def test_a_run_killed_with_9_and_resumed_ends_with_the_same_bits(tmp_path: Path, root: Path) -> None:
    values: dict[str, Any] = {"epochs": 3, "flip": True, "scale_jitter": 0.3, "eval_every": 3, "workers": 1}
    fit_detection(small(root, **values), tmp_path / "whole")
    asked = tmp_path / "recipe.json"
    asked.write_text(json.dumps(small(root, **values).to_json()))
    command = [
        sys.executable, "-m", "wideresnet", "detect", "train", "--recipe", str(asked), "--out", str(tmp_path / "cut"),
        "--checkpoint-every", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut" / "checkpoint").glob("step-00000000[4-9]*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "result.json").exists()
    recipe = DetectionFolder(tmp_path / "cut").read_detection_recipe()
    while True:
        try:
            fit_detection(recipe, tmp_path / "cut", resume=True)
            break
        except FolderInUse:  # its worker, which ends a moment after it, holds the lock, too
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    read = [DetectionFolder(tmp_path / name).read_metrics() for name in ("cut", "whole")]
    for one, other in zip(*read, strict=True):
        assert {**one, "train_s": 0} == {**other, "train_s": 0}


def test_ctrl_c_saves_and_the_folder_tells_what_may_not_change(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wideresnet.detection import run

    steps = iter(range(10))
    take = run.train_step

    def interrupting(*args: Any, **kwargs: Any) -> None:
        take(*args, **kwargs)
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run, "train_step", interrupting)
    recipe = small(root, epochs=1, eval_every=1)
    with pytest.raises(Interrupted, match="stopped after step 3; everything is saved"):
        fit_detection(recipe, tmp_path / "run")
    stored = DetectionFolder(tmp_path / "run").read_detection_recipe()
    with pytest.raises(UsageError, match=r"has lr 0.01, asked for is 0.5; leave out lr="):
        fit_detection(stored.replace(lr=0.5), tmp_path / "run", resume=True)
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    (tmp_path / "run" / "env.json").write_text(json.dumps({**env, "num_processes": 2}))
    with pytest.raises(UsageError, match=r"was trained by processes=2, now 1"):
        fit_detection(stored, tmp_path / "run", resume=True)
    (tmp_path / "run" / "env.json").write_text(json.dumps(env))
    change(root, lambda document: document.update(info={"changed": True}))
    with pytest.raises(UsageError, match="no longer holds the images"):
        fit_detection(stored, tmp_path / "run", resume=True)
    change(root, lambda document: document.pop("info"))
    assert fit_detection(stored.replace(workers=1), tmp_path / "run", resume=True)["epochs"] == 1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, root: Path) -> None:
    with pytest.raises(Diverged, match="stopped before the update"):
        fit_detection(small(root, epochs=5, lr=1e9, warmup_steps=0, clip_grad_norm=0.0), tmp_path / "run")


def test_retinanet_and_several_processes_train_and_evaluate(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["detect", "train", "--data", str(root), *FLAGS, "--detector", "retinanet", "--epochs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "wideresnet", *command, "--processes", "2", "--out", str(out), "--json"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["num_processes"] == 2
    assert document["detector"] == "retinanet"
    assert document["num_images"] == 4
    assert "each process samples anchors and regions of its own share" in done.stderr
    # one process alone finds in the images what two found together
    assert main(["detect", "eval", str(out), "--json", "--device", "cpu", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["ap_pct"] == document["ap_pct"]


def test_predict_draws_boxes_and_writes_cocos_results_and_a_safe_table(
    learned: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = Path("photos")
    photos.mkdir()
    shown = Image.open(root / "train" / "000000000001.png")
    for name in ("000000000042.png", "=1+1.png"):
        shown.save(photos / name)
    (photos / "broken.png").write_bytes(b"nothing")
    words = ["detect", "predict", str(learned), "photos", "--device", "cpu", "--threshold", "0.3", "--json"]
    assert main(words) == 1  # and says which file
    assert "broken.png: cannot be read" in capsys.readouterr().err
    words += ["--skip-unreadable", "--pictures", "drawn", "--coco", "found.json", "--csv", "found.csv"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(image["file"]).name for image in document] == ["000000000042.png", "=1+1.png", "broken.png"]
    assert document[0]["image_id"] == 42
    assert document[0]["objects"]
    assert document[2]["notes"]
    best = document[0]["objects"][0]
    assert best["class"] in ("red", "blue")
    assert 0.3 <= best["score"] <= 1
    assert len(best["bbox"]) == 4
    found = json.loads(Path("found.json").read_text())
    assert all(each.keys() == {"image_id", "category_id", "bbox", "score"} for each in found)
    assert {each["category_id"] for each in found} <= {3, 7}
    assert {42, 2} == {each["image_id"] for each in found}
    with Path("found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(image["objects"]) for image in document)
    assert all(not row["file"].startswith("=") for row in rows)
    drawn = np.asarray(Image.open(document[0]["picture"]))
    assert drawn.shape == np.asarray(shown).shape
    assert (drawn != np.asarray(shown)).any()


def test_a_file_whose_name_is_a_formula_is_quoted(learned: Path, root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Image.open(root / "train" / "000000000001.png").save("=1+1.png")
    words = ["detect", "predict", str(learned), "=1+1.png", "--device", "cpu", "--threshold", "0", "--csv", "t.csv"]
    assert main(words) == 0
    assert Path("t.csv").read_text().splitlines()[1].startswith('"\'=1+1.png"')


def test_images_of_any_size_are_searched(learned: Path, tmp_path: Path) -> None:
    for size in ((1, 1), (3, 500), (700, 2)):
        Image.new("RGB", size).save(tmp_path / f"{size[0]}.png")
    found = detect_files(learned, [tmp_path], threshold=0.0, device="cpu")
    assert len(found) == 3
    for image in found:
        assert all(np.isfinite(each["bbox"]).all() for each in image["coco"])


def test_data_with_other_categories_is_refused(learned: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path / "other")
    for split in ("train", "val"):
        change(other, lambda document: document["categories"][0].update(name="green"), split)
    with pytest.raises(UsageError, match="2 categories that are not the 2 of the weights"):
        evaluate_detector(learned, other, device="cpu")
    change(other, lambda document: document["categories"][0].update(name="red"), "val")
    with pytest.raises(UsageError, match=r"the categories of instances_val.json are not those of instances_train.json"):
        fit_detection(small(other), tmp_path / "run")


def test_the_page_shows_map_curves_boxes_and_mistakes(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(learned)]) == 0
    page = (learned / "report.html").read_text()
    assert str(learned / "report.html") in capsys.readouterr().out
    for text in (
        "35.2", "test-std", "Precision and recall", "Most confident false positives", "Largest misses", "Detections",
        "Run it again", "wrn detect train --recipe",
    ):  # fmt: skip
        assert text in page, text
    pictures = page.split('<div class="pictures">')[1].split("</div>")[0]
    assert pictures.count("data:image/jpeg") == 8
    assert "No pictures" not in page


@pytest.mark.usefixtures("pages")
def test_the_page_of_a_run_whose_images_are_gone_says_so_and_names_are_only_text(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes", num_train=2, num_val=2)
    for split in ("train", "val"):
        change(data, lambda document: document["categories"][0].update(name="<script>alert(1)</script>"), split)
    run = tmp_path / "run"
    fit_detection(small(data, epochs=1, eval_every=1), run)
    page = (run / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    (data / "val").rename(data / "gone")
    write_detection_report(run)
    assert "No pictures of 2 images" in (run / "report.html").read_text()


def test_damage_to_the_record_is_one_line(learned: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(learned, copy)
    (copy / "evaluation.json").write_text("{}")
    with pytest.raises(DataError, match=r"evaluation.json: does not match its SHA-256"):
        write_detection_report(copy)
    (copy / "model.safetensors").write_bytes(weights(copy)[:-9])
    with pytest.raises(DataError, match=r"model.safetensors"):
        evaluate_detector(copy, device="cpu")


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wideresnet.detection import plan

    monkeypatch.setattr(plan, "memory_in_use_bytes", lambda _: 0)
    monkeypatch.setattr(plan, "available_memory_bytes", lambda _: 2**20)
    with pytest.raises(UsageError, match=r"batch_size=8: needs .* more memory, 1.0 MiB is available; too little for"):
        fit_detection(small(root, batch_size=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipes_are_named_with_their_numbers() -> None:
    reference, _ = resolve("reference", "WRN-34-2", "coco")
    assert (reference.epochs, reference.lr, reference.lr_drop_epochs) == (26, 0.02, (17, 23))
    assert resolve("reference", "WRN-34-2", "coco", {"detector": "retinanet"})[0].lr == 0.01
    once, base = resolve("1x", "WRN-34-2", "coco", {"seed": 3})
    assert (once.epochs, once.lr_drop_epochs, once.seed, base.seed) == (12, (9, 12), 3, 0)
    assert tiny("WRN-18-0.5", "x").batch_size == 4
    with pytest.raises(UsageError, match=r"recipe='tinny': did you mean tiny"):
        resolve("tinny", "WRN-34-2", "coco")
    with pytest.raises(UsageError, match="recipe field 'lrr' does not exist"):
        reference.replace(lrr=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_gpu_trains_evaluates_and_predicts(tmp_path: Path, root: Path, detector: str) -> None:
    recipe = small(root, detector=detector, device="cuda", threads=None, epochs=2)
    result = fit_detection(recipe, tmp_path / "run")
    assert result["device"] == "cuda"
    assert result["peak_memory_mib"] > 0
    on_gpu, _ = evaluate_detector(tmp_path / "run", device="cuda", precision="fp32", workers=0)
    on_cpu, _ = evaluate_detector(tmp_path / "run", device="cpu", workers=0)
    assert on_gpu["ap_pct"] == pytest.approx(on_cpu["ap_pct"], abs=2)
    assert detect_files(tmp_path / "run", [root / "val"], device="cuda")
