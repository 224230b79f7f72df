"""COCO's mAP: two maintained evaluators agree, and simple cases have the values that anybody can work out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import write_scenes

from wideresnet.base.errors import UsageError
from wideresnet.detection import metrics
from wideresnet.detection.coco import CocoSet, read_split
from wideresnet.detection.evaluate import judge
from wideresnet.detection.metrics import EVALUATORS, SUMMARY, box_iou, evaluate_coco, find_mistakes, pick_evaluator


def installed() -> list[str]:
    return [name for name in EVALUATORS if pytest.importorskip(name.replace("-", "_"))]


def random_set(seed: int = 0, num_images: int = 30) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of all sizes, some of them crowds, and detections near some of them, in the wrong class or nowhere."""
    random = np.random.default_rng(seed)
    categories = [{"id": number, "name": f"kind{number}"} for number in (1, 2, 5, 9)]
    images = [
        {"id": 10 + number, "width": 640, "height": 480, "file_name": f"{number}"} for number in range(num_images)
    ]
    annotations, detections = [], []
    for image in images:
        for _ in range(int(random.integers(0, 8))):
            side = np.exp(random.uniform(np.log(8), np.log(300), 2))
            left, top = random.uniform(0, 640 - side[0]), random.uniform(0, 480 - side[1])
            category = int(random.choice([1, 2, 5]))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": category,
                    "bbox": [left, top, *side], "area": float(side.prod()), "iscrowd": int(random.random() < 0.1),
                }
            )  # fmt: skip
            for _ in range(int(random.integers(0, 4))):
                moved = np.array([left, top, *side]) * random.normal(1, 0.08, 4)
                guess = category if random.random() < 0.8 else int(random.choice([1, 2, 5, 9]))
                detections.append(
                    {
                        "image_id": image["id"], "category_id": guess, "bbox": moved.tolist(),
                        "score": float(random.random()),
                    }
                )  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.mark.parametrize("seed", range(3))
def test_both_evaluators_agree_on_saved_detections_to_a_millionth(tmp_path: Path, seed: int) -> None:
    assert installed() == list(EVALUATORS)
    truth, detections = random_set(seed)
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    saved = json.loads((tmp_path / "detections.json").read_text())
    ours, theirs = (evaluate_coco(truth, saved, name) for name in EVALUATORS)
    assert ours["evaluator"] != theirs["evaluator"]
    assert {key for key in ours if key in SUMMARY} == {key for key in theirs if key in SUMMARY} == set(SUMMARY)
    for key in SUMMARY:
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key
    for one, two in zip(ours["classes"], theirs["classes"], strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    for name, curve in ours["curves"].items():
        np.testing.assert_allclose(curve, theirs["curves"][name], atol=1e-5)
    assert 1 < ours["ap_pct"] < 95


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> CocoSet:
    installed()
    return read_split(write_scenes(tmp_path_factory.mktemp("map") / "scenes"), "val")


def perfect(found: CocoSet, score: float = 0.9) -> list[dict[str, Any]]:
    return [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": score}
        for annotation in found.truth["annotations"]
    ]


@pytest.mark.parametrize("name", EVALUATORS)
def test_detections_that_are_the_objects_have_100_percent_and_none_have_0(found: CocoSet, name: str) -> None:
    installed()
    assert evaluate_coco(found.truth, perfect(found), name)["ap_pct"] == pytest.approx(100)
    none = evaluate_coco(found.truth, [], name)
    assert none["ap_pct"] == 0
    assert none["classes"][0] == {"class": "red", "category_id": 3, "num_objects": 4, "ap_pct": 0.0, "ap50_pct": 0.0}


def test_half_of_the_objects_of_one_class_cost_a_quarter(found: CocoSet) -> None:
    kept = [each for each in perfect(found) if each["category_id"] == 7 or each["image_id"] <= 2]
    result = evaluate_coco(found.truth, kept)
    # precision is 1 up to recall 0.5, so at 51 of the 101 points
    assert result["ap_pct"] == pytest.approx((100 + 100 * 51 / 101) / 2)
    assert [row["ap50_pct"] for row in result["classes"]] == pytest.approx([100 * 51 / 101, 100])
    assert result["curves"]["0.50"][40] == 1
    assert result["curves"]["0.50"][80] == 0.5


def test_mistakes_are_found_and_say_what_they_fit(found: CocoSet) -> None:
    right = perfect(found)
    twice = {**right[0], "score": 0.8}
    confused = {**right[2], "category_id": 7, "score": 0.95}
    nowhere = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 3], "score": 0.7}
    mistakes = find_mistakes(found.truth, [*right[:2], twice, confused, nowhere, *right[3:]])
    assert [each["like"] for each in mistakes["false_positives"]] == ["red", "twice", "no object"]
    assert mistakes["num_false_positives"] == 3
    assert mistakes["num_misses"] == 1
    (missed,) = mistakes["misses"]
    assert missed["bbox"] == right[2]["bbox"]
    assert missed["best"] == 0.95


def test_detections_in_a_crowd_are_no_mistakes(found: CocoSet) -> None:
    truth = {**found.truth, "annotations": [{**a, "iscrowd": 1} for a in found.truth["annotations"]]}
    mistakes = find_mistakes(truth, [*perfect(found), *perfect(found, 0.6)])
    assert mistakes["false_positives"] == []
    assert mistakes["misses"] == []


def test_overlap_is_intersection_over_union_and_in_crowds_the_share_of_the_box() -> None:
    boxes, others = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 10, 10], [0, 0, 10, 100]])
    np.testing.assert_allclose(box_iou(boxes, others, np.array([False, False])), [[50 / 150, 0.1]])
    np.testing.assert_allclose(box_iou(boxes, others, np.array([False, True])), [[50 / 150, 1.0]])


def test_the_judgment_has_what_a_page_shows(found: CocoSet) -> None:
    result = judge(found, [*perfect(found), {"image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 3], "score": 0.99}])
    assert result["num_images"] == 4
    assert result["num_objects"] == 8
    assert [entry["file"] for entry in result["pictures"]] == [f"val/{number:012d}.png" for number in (1, 2, 3, 4)]
    assert [len(entry["objects"]) for entry in result["pictures"]] == [3, 2, 2, 2]
    assert result["false_positives"][0]["file"] == "val/000000000001.png"
    json.dumps(result, allow_nan=False)


def test_without_an_evaluator_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(metrics.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"faster-coco-eval is not installed; pip install wideresnet\[detect\]"):
        pick_evaluator()
